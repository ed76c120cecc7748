"""The embedded data set: simulated maps of a gearbox (spec hdmap.md, 3), written whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray

from dinomaly_hd.data import tree
from dinomaly_hd.data.simulator.physics import QUANTUM, Band, Recording, record
from dinomaly_hd.data.simulator.settings import DOMAINS, Condition
from dinomaly_hd.errors import ConfigError, LayoutError, OutputError, nearest
from dinomaly_hd.files import TEMPORARY_PREFIX, locked, publish_json, publish_text

GENERATOR_VERSION = 1  # raise it whenever the same seed gives other bytes
FOLDERS = tuple(f"{split}/{folder}" for split, folder, _ in tree.FOLDERS)
COLD_SHARES = (0.2, 0.5, 0.5)  # of the images in each of them, which come first
CONTENTS_NAME = "simulation.json"
Contents = dict[str, Any]  # of that file: generator, size, seed and domains of the data beside it
LOCK_TIMEOUT_S = 600.0


Size = tuple[int, int, int]  # images per domain in each of FOLDERS
SIZES: dict[str, Size] = {"tiny": (8, 4, 4), "quick": (100, 100, 100), "full": (1000, 1000, 1000)}


class Split(NamedTuple):
    """The images of one folder in file order (N images, R = 31 rows, C = 95 columns)."""

    maps_NRC: NDArray[np.float32]
    conditions: tuple[Condition, ...]
    masks_NRC: NDArray[np.uint8]  # 1 on the damaged rows
    bands: tuple[Band, ...]  # one per image of a damaged unit, else empty


class SimulatedDomain(NamedTuple):
    """One domain's splits in the order of ``FOLDERS``, divided by its largest training value."""

    train: Split
    good: Split
    fault: Split


def simulate_domain(domain: str, *, size: Size, seed: int) -> SimulatedDomain:
    """Simulate one domain in memory.

    Maps are float32 multiples of 2**-20 and never clipped: test maps may exceed 1. The first half of each
    test split and the first fifth of the training split are cold. Image ``i`` of a condition depends on the
    size only through the divisor, the largest training value.
    """
    splits: list[list[Recording]] = []
    for split, (folder, images, share) in enumerate(zip(FOLDERS, size, COLD_SHARES, strict=True)):
        cold, damaged = int(share * images + 0.5), folder == "test/fault"
        parts: dict[Condition, int] = {"cold": cold, "warm": images - cold}
        splits.append(
            [
                record(domain, condition=condition, seed=seed, split=split, images=count, damaged=damaged)
                for condition, count in parts.items()
            ]
        )
    largest = max(float(part.maps_NRC.max(initial=0.0)) for part in splits[0])
    return SimulatedDomain(*(_joined(parts, divisor=largest) for parts in splits))


def _joined(recordings: list[Recording], *, divisor: float) -> Split:
    maps_NRC = np.concatenate([part.maps_NRC for part in recordings]) / divisor
    return Split(
        maps_NRC=(np.round(maps_NRC / QUANTUM) * QUANTUM).astype(np.float32),
        conditions=tuple(part.condition for part in recordings for _ in part.maps_NRC),
        masks_NRC=np.concatenate([part.masks_NRC for part in recordings]),
        bands=tuple(band for part in recordings for band in part.bands),
    )


def simulate(
    root: Path,
    *,
    size: str,
    seed: int,
    domains: Sequence[str] = tuple(DOMAINS),
    tick: Callable[[], None] = lambda: None,
) -> Path:
    """Write the data set to the folder ``root`` and return it; equal arguments give equal bytes everywhere.

    Beside the domains' folders there are ``conditions.csv`` (path, condition), ``severity.csv`` (path, row,
    severity, length), ``ground_truth/`` (float32 masks, 1 = damaged row, read by the one image reader) and
    ``simulation.json``. The folder appears whole or not at all; one that holds these data already is left as
    it is, anything else there is a LayoutError. ``tick`` is called once per image.
    """
    if size not in SIZES:
        raise ConfigError(f"size {size!r} is not a size of the simulator.{nearest(size, SIZES)}")
    for domain in domains:
        if domain not in DOMAINS:
            raise ConfigError(f"domain {domain!r} is not one of the simulator's.{nearest(domain, DOMAINS)}")
    if not domains:
        raise ConfigError(f"domains is empty, expected one or more of {', '.join(DOMAINS)}")
    in_order = [domain for domain in DOMAINS if domain in domains]
    wanted = {"generator": GENERATOR_VERSION, "size": size, "seed": seed, "domains": in_order}
    path = Path(os.path.abspath(root))
    if not _is_there(path, wanted):
        with locked(lock_of(path), timeout_s=LOCK_TIMEOUT_S):
            if not _is_there(path, wanted):  # another process may have written it meanwhile
                _write_whole(path, wanted, tick=tick)
    return root


def lock_of(root: Path) -> Path:
    return root.parent / f".{root.name}.lock"


def _is_there(root: Path, wanted: Contents) -> bool:
    """True if these data lie there, False if the place is free; anything else in the way is an error."""
    try:
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            return False
        obstacle = _obstacle(root, wanted)
    except OSError as error:
        raise LayoutError(f"{root}: cannot be read: {error}") from error
    if obstacle:
        raise LayoutError(
            f"{root}: {obstacle}, expected nothing or the simulated data of size {wanted['size']} and "
            f"seed {wanted['seed']}; name another folder or remove this one"
        )
    return True


def _obstacle(root: Path, wanted: Contents) -> str:
    """Say what is wrong with an occupied place, "" if nothing is."""
    if not root.is_dir():
        return "not a folder"
    try:
        found = json.loads((root / CONTENTS_NAME).read_text())
        others = {name: found[name] for name in ("generator", "size", "seed") if found[name] != wanted[name]}
        lacking = [domain for domain in wanted["domains"] if domain not in found["domains"]]
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return f"no readable {CONTENTS_NAME}"
    for name, value in others.items():
        return f"{name} is {value}"
    for domain in wanted["domains"]:
        if domain in lacking:
            return f"domain {domain} is missing"
        for folder, images in zip(FOLDERS, SIZES[wanted["size"]], strict=True):
            place = root / f"domain_{domain}" / folder
            count = sum(1 for _ in place.glob("*.tiff"))
            if count != images:
                return f"domain_{domain}/{folder} holds {count} images instead of {images}"
    return ""


@contextmanager
def built_whole(root: Path) -> Iterator[Path]:
    """Yield a new folder that becomes ``root`` at the end, or nothing does; to be used under root's lock."""
    # The name is fixed per root: the next writer clears what a killed one left.
    building = root.parent / f"{TEMPORARY_PREFIX}{root.name}"
    try:
        shutil.rmtree(building, ignore_errors=True)
        yield building
        os.rename(building, root)
    except OSError as error:
        raise OutputError(f"cannot write {root}: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_whole(root: Path, contents: Contents, *, tick: Callable[[], None]) -> None:
    with built_whole(root) as building:
        _write_images(building, contents, tick=tick)
        os.sync()  # simulation.json promises that every file before it is on disk
        publish_json(building / CONTENTS_NAME, contents)


def _write_images(root: Path, contents: Contents, *, tick: Callable[[], None]) -> None:
    conditions, severities = ["path,condition"], ["path,row,severity,length"]
    for domain in contents["domains"]:
        simulated = simulate_domain(domain, size=SIZES[contents["size"]], seed=contents["seed"])
        for folder, split in zip(FOLDERS, simulated, strict=True):
            place = f"domain_{domain}/{folder}"
            names = [f"{place}/{number:06d}.tiff" for number in range(len(split.maps_NRC))]
            (root / place).mkdir(parents=True)
            if split.bands:
                (root / tree.GROUND_TRUTH / place).mkdir(parents=True)
            for name, map_RC, condition in zip(names, split.maps_NRC, split.conditions, strict=True):
                _write_tiff(root / name, map_RC)
                conditions.append(f"{name},{condition}")
                tick()
            for name, mask_RC, band in zip(names, split.masks_NRC, split.bands, strict=False):
                _write_tiff(root / tree.GROUND_TRUTH / name, mask_RC.astype(np.float32))
                severities.append(f"{name},{band.row},{band.severity:.6f},{band.length}")
    publish_text(root / tree.CSV_NAME, "\n".join(conditions) + "\n")
    publish_text(root / "severity.csv", "\n".join(severities) + "\n")


def _write_tiff(path: Path, image_RC: NDArray[np.float32] | NDArray[np.uint8]) -> None:
    # Byte order, software and date would differ between machines.
    tifffile.imwrite(
        path, image_RC, byteorder="<", photometric="minisblack", software=False, datetime=False, metadata=None
    )
