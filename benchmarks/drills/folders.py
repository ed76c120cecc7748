"""Drill 9: broken folder trees, each reported whole by one error before there is a model."""

import contextlib
import os
import random
import shutil
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from benchmarks.common import ended, entry_point
from benchmarks.drills import Drill, Tally
from benchmarks.drills.hostile import Sandbox, start
from dinomaly_hd.data.hdmap import EXAMPLES
from entry_points.common import QUIET
from tests.files import add_domain

SEED = 9
DATA_CODE = 65
ENTRY_POINTS = ("baseline", "horizontal", "topk")
COMBINATIONS, FAST_COMBINATIONS = 60, 3
LETTERS = "BCDEFGH"
MANY = 150
MOST_WEIGHTS = 100
"""What is made to see whether settings fit together; the smallest model has a million."""
LONGEST_TRY_S = 600.0
FLAGS = {"preset": "quick", "seed": "42", "gpu": "cpu", "maps_per_group": "0", "result_dir": "results"}


class Damage(NamedTuple):
    """What breaks a domain, and how the line of each fault begins after the domain's name."""

    what: str
    do: Callable[[Path], object]
    faults: tuple[str, ...]


def _remove(*names: str) -> Callable[[Path], object]:
    return lambda domain: [shutil.rmtree(domain / name) for name in names]


def _empty(name: str) -> Callable[[Path], object]:
    return lambda domain: [path.unlink() for path in (domain / name).iterdir()]


def _write(name: str, data: bytes = b"x") -> Callable[[Path], object]:
    return lambda domain: (domain / name).write_bytes(data)


def _link(name: str, target: str) -> Callable[[Path], None]:
    """Put a link in the place of what may be there."""

    def do(domain: Path) -> None:
        if (domain / name).is_dir():
            shutil.rmtree(domain / name)
        (domain / name).symlink_to(target)

    return do


def _folder_is_file(domain: Path) -> None:
    shutil.rmtree(domain / GOOD)
    (domain / GOOD).write_text("x")


def _poison(domain: Path) -> None:
    image = tifffile.imread(domain / OLD)
    image[3, 7] = np.nan
    tifffile.imwrite(domain / OLD, image)


NEW, OLD = "test/good/x.tiff", "test/fault/1.tiff"
GOOD, FAULT, TRAIN = "test/good", "test/fault", "train/good"
MISSING, EMPTY = "no such folder", "holds no images"
DAMAGES = (
    Damage("empty", _remove("train", "test"), (f"{TRAIN}: {MISSING}",)),
    Damage("no training folder", _remove("train"), (f"{TRAIN}: {MISSING}",)),
    Damage("no training images", _empty(TRAIN), (f"{TRAIN}: {EMPTY}",)),
    Damage("a file for a folder", _folder_is_file, (f"{GOOD}: {MISSING}",)),
    Damage("a link to nothing", _link(NEW, "none.tiff"), (f"{NEW}: cannot be read: No such file",)),
    Damage("a link to itself", _link(NEW, "x.tiff"), (f"{NEW}: cannot be read: Too many levels",)),
    Damage("a folder that links to itself", _link(GOOD, "good"), (f"{GOOD}: {MISSING}",)),
    Damage("a folder that links to nothing", _link(FAULT, "none"), (f"{FAULT}: {MISSING}",)),
    Damage("a device", _link(NEW, "/dev/zero"), (f"{NEW}: not a regular file",)),
    Damage("a file that is none outside", _link(NEW, "/etc/hostname"), (f"{NEW}: not a TIFF",)),
    Damage(
        "a loop of folders",
        _link("test/around", ".."),
        tuple(f"test/around/{n}: not an image of a known" for n in ("test", "train")),
    ),
    Damage(
        "a folder called an image", lambda domain: (domain / NEW).mkdir(), (f"{NEW}: cannot be read: Is a",)
    ),
    Damage("a pipe", lambda domain: os.mkfifo(domain / NEW), (f"{NEW}: not a regular file",)),
    Damage("no image", _write(f"{TRAIN}/notes.txt"), (f"{TRAIN}/notes.txt: not an image of a known",)),
    Damage("no bytes", _write(NEW, b""), (f"{NEW}: 0 bytes, expected 1",)),
    Damage(
        "cut short",
        lambda domain: os.truncate(domain / OLD, (domain / OLD).stat().st_size - 40),
        (f"{OLD}: cut short",),
    ),
    Damage("a NaN", _poison, (f"{OLD}: 1 of 2945 values are NaN",)),
    Damage(
        "a name of no text", _write(f"{GOOD}/\udcff.tiff"), (f"{GOOD}/\\udcff.tiff: the path is not UTF-8",)
    ),
    Damage(
        "a name of two lines", _write(f"{GOOD}/a\nb.tiff"), (f"{GOOD}/a\\nb.tiff: the name holds control",)
    ),
)


@contextlib.contextmanager
def weights_made() -> Iterator[list[int]]:
    """Yield a list of the sizes of all weights that anybody makes meanwhile, but for those of no memory."""
    sizes: list[int] = []

    def remember(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        del module, name
        if parameter is not None and parameter.device.type != "meta":
            sizes.append(parameter.numel())

    handle = register_module_parameter_registration_hook(remember)
    try:
        yield sizes
    finally:
        handle.remove()


@contextlib.contextmanager
def _ended_by(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the midst of what takes longer: a pipe or a device may be waited for for ever."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"hangs for {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _reported(box: Sandbox, said: str, code: int, faults: Sequence[str]) -> str | None:
    """Return what was wrong about how a broken tree was reported: one error, each cause in one line."""
    lines = said.splitlines()
    if code != DATA_CODE or not lines or not lines[0].startswith(("LayoutError: ", "ImageError: ")):
        return f"exit code {code}: {said[-300:]}"
    if left := sorted(path.name for path in box.work.iterdir()):
        return f"left behind: {', '.join(left)}"
    listed, grouped = lines[1:] or lines, defaultdict[str, list[str]](list)
    for fault in faults:
        grouped[fault.partition(": ")[2]].append(fault)
    if len(lines) > 1 and not lines[0].endswith(f": {len(faults)} faults"):
        return f"not {len(faults)} faults: {lines[0]}"
    for reason, own in grouped.items():
        counted = f"{len(own)} times: {reason}" if reason and len(own) > EXAMPLES else ""
        wanted = [counted] if counted else own
        if any(sum(part in line for line in listed) != 1 for part in wanted):
            return f"not named, or not once: {', '.join(wanted)[:200]} in {said[:300]}"
    return None


def _try(box: Sandbox, point: str, faults: Sequence[str], **flags: str) -> str | None:
    values = {**FLAGS, "data_root": str(box.maps), **flags}
    with weights_made() as sizes, _ended_by(LONGEST_TRY_S):
        ended = start(box, point, **values)
    if sum(sizes) > MOST_WEIGHTS:
        return f"a model of {sum(sizes)} weights was made first"
    return _reported(box, ended.said, ended.code, faults) or (", ".join(ended.escaped) or None)


def broken_roots(folder: Path, tally: Tally) -> None:
    """Ask for domains and roots that are not there, and for the root of a hundred faults."""
    box = Sandbox(folder / "roots")
    add_domain(box.maps, "domain_B")
    (box.root / "file").write_text("x")
    (box.root / "loop").symlink_to("loop")
    for name, reason in (("none", MISSING), ("file", "not a folder"), ("loop", MISSING)):
        root = str(box.root / name)
        tally.add(f"root: {name}", _try(box, "baseline", [f"data_root={root}: {reason}"], data_root=root))
    asked = {
        "A,C": ["unknown domain 'C'. Known: domain_A, domain_B."],
        "A,domain_A": ["domain domain_A is asked for twice"],
        "C,A,../roots": ["unknown domain 'C'", "unknown domain '../roots'"],
    }
    for domains, faults in asked.items():
        tally.add(f"domains: {domains}", _try(box, "baseline", faults, domains=domains))
    (box.maps / "conditions.csv").write_text("path\n")
    line = "conditions.csv: the first line must be 'path,condition'"
    tally.add("conditions", _try(box, "baseline", [line], domains="A,B"))
    (box.maps / "conditions.csv").unlink()
    bad = [f"domain_B/{GOOD}/bad{number}.tiff: not a TIFF" for number in range(MANY)]
    for name in bad:
        (box.maps / name.partition(":")[0]).write_bytes(b"x")
    tally.add(f"{MANY} bad images", _try(box, "baseline", bad, domains="A,B"))


def in_a_process(folder: Path) -> str | None:
    box = Sandbox(folder / "process")
    add_domain(box.maps, "domain_B")
    _remove(TRAIN)(box.maps / "domain_B")
    _write(NEW)(box.maps / "domain_A")
    flags = {**FLAGS, "data_root": box.maps, "domains": "A,B", "result_dir": box.work / "results"}
    done = ended(entry_point("baseline", flags), box.work, **QUIET)
    faults = [f"domain_B/{TRAIN}: {MISSING}", f"domain_A/{NEW}: not a TIFF"]
    wrong = _reported(box, done.stderr, done.returncode, faults)
    return wrong or (f"printed {done.stdout}" if done.stdout else None)


def broken_trees(folder: Path, full: bool) -> Tally:
    """Break trees in every way that we know, alone and together, and start entry points on them."""
    tally, draw = Tally(), random.Random(SEED)
    plans = [([damage], point) for damage, point in zip(DAMAGES, cycle(ENTRY_POINTS), strict=False)]
    plans += [
        (draw.sample(DAMAGES, draw.randint(2, len(LETTERS))), draw.choice(ENTRY_POINTS))
        for _ in range(COMBINATIONS if full else FAST_COMBINATIONS)
    ]
    for number, (damages, point) in enumerate(plans):
        box, faults = Sandbox(folder / f"tree{number}"), []
        domains = [f"domain_{letter}" for letter in LETTERS[: len(damages)]]
        for name, damage in zip(domains, damages, strict=True):
            add_domain(box.maps, name)
            damage.do(box.maps / name)
            faults += [f"{name}/{fault}" for fault in damage.faults]
        fault = _try(box, point, faults, domains=",".join(["domain_A", *domains]))
        tally.add(" and ".join(damage.what for damage in damages), fault)
    broken_roots(folder, tally)
    tally.add("python -m entry_points.baseline", in_a_process(folder))
    return tally


DRILLS = (Drill(9, "a broken tree is reported whole, before any model", broken_trees),)
