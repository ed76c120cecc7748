"""Records into a data root of maps: HDMAP's folders, their manifest, teeth and indicators, and one scale."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import tifffile

from dinomaly_hd.config.vibration import MapSettings, RecordSettings, teeth_of
from dinomaly_hd.data.rows import WORD, WORD_RULE
from dinomaly_hd.data.tree import ALL, CSV_NAME, FOLDERS, PREFIX
from dinomaly_hd.errors import ConfigError, DataError, LayoutError
from dinomaly_hd.evaluation.plots import png_bytes
from dinomaly_hd.files import locked, publish, publish_json, publish_text, read_json
from dinomaly_hd.names import as_cell
from dinomaly_hd.trivial import INDICATORS
from dinomaly_hd.vibration.convert import Made, maps_of
from dinomaly_hd.vibration.length import Plan, plan_figure
from dinomaly_hd.vibration.readers import READERS
from dinomaly_hd.vibration.teeth import Pair

Split = Literal["train/good", "test/good", "test/fault"]
SPLITS: tuple[Split, ...] = ("train/good", "test/good", "test/fault")
assert tuple(f"{split}/{folder}" for split, folder, _ in FOLDERS) == SPLITS

MANIFEST, TEETH = "maps.csv", "teeth.csv"
STATE, LENGTH = "hdmap.json", "length.png"
UNLISTED = "unlisted"  # in the state: maps that are being written
FACTS = ["file", "start_s", "speed", "condition", "record", "noise"]  # the manifest's columns
LOCK_TIMEOUT_S = 60.0
SEVERITY = 0.3  # that the length needed is told for


class Source(NamedTuple):
    """A record and the folder of its maps; ``name`` is what the manifest calls it."""

    path: Path
    split: Split
    name: str


Maps = list[tuple[Source, float, Made]]
"""Maps in order, each with its record and the second at which that began."""


def hdmap(
    records: Path,
    *,
    output: Path,
    domain: str,
    split: Split,
    settings: RecordSettings,
    condition: str = ALL,
    scale: float | None = None,
    start_s: float = 0.0,
    say: Callable[[str], None],
    tick: Callable[[], None] = lambda: None,
) -> Path:
    """Convert a record, or a folder of them, to maps in ``output/domain_X/{split}``, and return ``output``.

    A folder that holds train/good, test/good or test/fault is converted as a whole, each to its own split.
    Records follow one another in time from ``start_s`` on. ``scale`` None divides by the domain's largest
    training value, which is kept for what is added later.

    Raises:
        ConfigError: Settings, condition or scale are not those that the domain was made with.
        DataError: A record cannot be converted, is there already, or there is none.
        LayoutError: The output folder holds other images.
        OutputError: It cannot be written.
    """
    for what, word in (("domain", domain), ("condition", condition)):  # the former is a folder's name
        if not WORD.fullmatch(word):
            raise ConfigError(f"{what}={word!r}: expected a word of {WORD_RULE}")
    sources = _sources(records, split)
    name = domain if domain.startswith(PREFIX) else f"{PREFIX}{domain}"
    shared = settings.model_dump(include=set(MapSettings.model_fields))
    with locked(output / ".hdmap.lock", timeout_s=LOCK_TIMEOUT_S):
        manifest, state = _read_manifest(output), read_json(output / STATE)
        _forget_interrupted(output, manifest, state)
        _check(manifest, sources, output / name)
        scale = _known_scale(state.get(name), shared, scale, sources, domain=name)
        maps: Maps = []
        clock_s, powers, rate = start_s, list[float](), 0.0
        for source in sources:
            found = maps_of(source.path, settings, powers=powers, tick=tick)
            maps += [(source, clock_s, one) for one in found.maps]
            clock_s, rate = clock_s + found.seconds, found.rate
            made = f"{len(found.maps)} of {source.split}, {found.seconds:.1f} s at {rate:g} Hz"
            say(f"maps of {source.name}: {made}")
        scale = scale or max(float(one.map_RC.max()) for source, _, one in maps if source.split == SPLITS[0])
        if scale <= 0:
            raise DataError(
                f"scale=auto: all training maps of {name} are 0; is {settings.vibration!r} silent?"
            )
        files, state[name] = list(_file_names(name, maps, manifest)), {"scale": scale, **shared}
        publish_json(output / STATE, {**state, UNLISTED: files})
        rows = _write_maps(output, files, maps, scale=scale, condition=condition)
        pair = Pair(*teeth_of(settings.teeth))
        _write_tables(output, pair, pd.concat([manifest, rows]), say=say)
        # The manifest comes after what it lists; before it, all of this is as if it had not been.
        publish_text(output / MANIFEST, pd.concat([manifest, rows])[FACTS].to_csv(index=False))
        publish_json(output / STATE, state)
    if len(sources) > 1:
        say(
            "note: column 0 is another tooth of wheel 2 in each record (row 0 too, unless there is one pulse "
            "a turn of wheel 1): what compares positions needs the maps of one long record"
        )
    if settings.statistic == "rms" and settings.periods > 1:
        _tell_length(output / LENGTH, pair, maps, rate=rate, periods=settings.periods, say=say)
    return output


def _sources(records: Path, split: Split) -> list[Source]:
    if not records.exists():
        raise DataError(f"input={records}: no such file or folder")
    splits = [name for name in SPLITS if (records / name).is_dir()]
    folders = [(name, records / name) for name in splits] or [(split, records)]
    found = [
        Source(path, name, as_cell(f"{path.parent.name}/{path.name}"))
        for name, folder in folders
        for path in (sorted(folder.iterdir()) if folder.is_dir() else [folder])
        if path == records or (path.suffix.lower() in READERS and path.is_file())
    ]
    if not found:
        raise DataError(f"input={records}: no record in it; expected files of {', '.join(READERS)}")
    return found


def _read_manifest(output: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(output / MANIFEST)
    except FileNotFoundError:
        return pd.DataFrame({"file": pd.Series(dtype=str), "record": pd.Series(dtype=str)})
    except (OSError, ValueError) as error:
        raise DataError(f"{output / MANIFEST}: cannot be read: {error}") from error


def _check(manifest: pd.DataFrame, sources: list[Source], place: Path) -> None:
    """Refuse a record that was converted before, and a folder with images that are not in the manifest."""
    for source in sources:
        folder = place / source.split
        own = manifest[manifest["file"].str.startswith(f"{place.name}/{source.split}/")]
        if (own["record"] == source.name).any():
            raise DataError(f"{source.name}: its maps are in {folder} already; choose another output")
        there = sum(1 for _ in folder.glob("*.tif*"))
        if there != len(own):
            raise LayoutError(f"{folder}: {there} images, {len(own)} in {MANIFEST}; choose another output")


def _known_scale(
    known: dict[str, Any] | None,
    shared: dict[str, Any],
    given: float | None,
    sources: list[Source],
    *,
    domain: str,
) -> float | None:
    """Return what cells are divided by, None if the training maps are still to say it."""
    if known is None:
        if given is None and all(source.split != SPLITS[0] for source in sources):
            raise ConfigError(
                f"scale=auto: {domain} has no maps in train/good; convert these first or give scale"
            )
        return given
    for key, value in shared.items():
        if known[key] != value:
            raise ConfigError(
                f"{key}={value}: {domain} was made with {key}={known[key]}, and its splits would not compare"
            )
    if given not in (None, known["scale"]):
        raise ConfigError(f"scale={given:g}: {domain} was divided by {known['scale']:g}; leave scale out")
    return float(known["scale"])


def _forget_interrupted(output: Path, manifest: pd.DataFrame, state: dict[str, Any]) -> None:
    """Remove the maps of a conversion that did not come to its manifest, and what it said of its domain."""
    for file in set(state.pop(UNLISTED, [])).difference(manifest["file"]):
        path = output / file
        if path.resolve().is_relative_to(output.resolve()):  # the state may be somebody else's
            path.unlink(missing_ok=True)
    for name in [*state]:
        if not manifest["file"].str.startswith(f"{name}/").any():
            del state[name]


def _file_names(domain: str, maps: Maps, manifest: pd.DataFrame) -> Iterator[str]:
    """Yield the maps' names, numbered on from those in the manifest."""
    numbers = {split: int(manifest["file"].str.startswith(f"{domain}/{split}/").sum()) for split in SPLITS}
    for source, _, _ in maps:
        yield f"{domain}/{source.split}/{numbers[source.split]:06d}.tiff"
        numbers[source.split] += 1


def _write_maps(
    output: Path, files: Sequence[str], maps: Maps, *, scale: float, condition: str
) -> pd.DataFrame:
    """Write the maps, and return their rows of all tables."""
    rows = []
    for file, (source, began_s, one) in zip(files, maps, strict=True):
        cells = one.map_RC / np.float32(scale)
        write = partial(tifffile.imwrite, data=cells, photometric="minisblack", metadata=None)
        publish(output / file, write, durable=False)
        values = (file, began_s + one.start_s, one.speed, condition, source.name, one.noise)
        rows.append({**dict(zip(FACTS, values, strict=True)), **one.indicators})
    return pd.DataFrame(rows)


def _write_tables(output: Path, pair: Pair, rows: pd.DataFrame, *, say: Callable[[str], None]) -> None:
    """Write indicators, teeth, and the conditions if all test maps have one."""
    try:
        known = pd.read_csv(output / INDICATORS)
    except FileNotFoundError:
        known = pd.DataFrame()
    own = rows.drop(columns=FACTS[1:]).dropna()  # those of earlier maps are known
    whole = pd.concat([known, own]).drop_duplicates("file", keep="last")  # of an interrupted start, too
    publish_text(output / INDICATORS, whole.to_csv(index=False))
    row_T, column_T = pair.cells()
    mesh_T = np.arange(pair.period)
    cells = {
        "row": row_T,
        "column": column_T,
        "tooth_1": mesh_T % pair.first,
        "tooth_2": mesh_T % pair.second,
    }
    publish_text(output / TEETH, pd.DataFrame(cells).sort_values(["row", "column"]).to_csv(index=False))
    unknown = rows.loc[rows["file"].str.contains("/test/"), "condition"] == ALL
    if len(unknown) and not unknown.any():
        listed = rows[["file", "condition"]].rename(columns={"file": "path"})
        publish_text(output / CSV_NAME, listed.to_csv(index=False))
    elif not unknown.all():
        say(f"note: {CSV_NAME} is not written: some test maps have no condition")


def _tell_length(
    path: Path, pair: Pair, maps: Maps, *, rate: float, periods: int, say: Callable[[str], None]
) -> None:
    """Say how exact the cells are, by the signal's own noise."""
    noise, speed, power = np.mean(
        [(one.noise**2, one.speed, np.square(one.map_RC).mean()) for _, _, one in maps], axis=0
    )
    signal = power - noise / periods
    if signal <= 0:
        say("the cells hold nothing but noise: average more periods")
        return
    plan = Plan.of(pair, speed=float(speed), rate=rate, noise=float(np.sqrt(noise / signal)))
    say(plan.sentence(periods=periods, severity=SEVERITY))
    save_plan(plan, path, periods=periods, severity=SEVERITY)


def save_plan(plan: Plan, path: Path, *, periods: int, severity: float) -> None:
    """Draw what a plan says."""
    picture = png_bytes(plan_figure(plan, periods=periods, severity=severity))
    publish(path, lambda stream: stream.write(picture))
