"""Records into a data root of maps: HDMAP's folders, their manifest, teeth and indicators, and one scale."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import tifffile

from dinomaly_hd.config.vibration import MapSettings, RecordSettings, teeth_of
from dinomaly_hd.data.tree import ALL, CONDITION, CONDITION_RULE, CSV_NAME, FOLDERS, PREFIX
from dinomaly_hd.errors import ConfigError, DataError, LayoutError
from dinomaly_hd.evaluation.plots import png_bytes
from dinomaly_hd.files import locked, publish, publish_json, publish_text, read_json
from dinomaly_hd.names import as_cell
from dinomaly_hd.trivial import INDICATORS
from dinomaly_hd.vibration.convert import Made, Track, maps_of
from dinomaly_hd.vibration.length import Plan, plan_figure
from dinomaly_hd.vibration.readers import READERS
from dinomaly_hd.vibration.teeth import Pair

Split = Literal["train/good", "test/good", "test/fault"]
SPLITS: tuple[Split, ...] = ("train/good", "test/good", "test/fault")
assert tuple(f"{split}/{folder}" for split, folder, _ in FOLDERS) == SPLITS

MANIFEST, TEETH = "maps.csv", "teeth.csv"
STATE, LENGTH = "hdmap.json", "length.png"
LOCK_TIMEOUT_S = 60.0
SEVERITY = 0.3  # that the length needed is told for


class Source(NamedTuple):
    """A record and the folder of its maps; ``name`` is what the manifest calls it."""

    path: Path
    split: Split
    name: str


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
    track: Track = lambda periods, _: periods,
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
    if not CONDITION.fullmatch(condition):
        raise ConfigError(f"condition={condition!r}: expected a word of {CONDITION_RULE}")
    sources = _sources(records, split)
    name = domain if domain.startswith(PREFIX) else f"{PREFIX}{domain}"
    with locked(output / ".hdmap.lock", timeout_s=LOCK_TIMEOUT_S):
        manifest, state = _read_manifest(output), read_json(output / STATE)
        _check(manifest, state.get(name), sources, settings, domain=name, output=output)
        made: list[tuple[Source, float, list[Made]]] = []
        clock_s, powers = start_s, list[float]()
        for source in sources:
            found = maps_of(source.path, settings, powers=powers, tick=tick, track=track)
            made.append((source, clock_s, found.maps))
            clock_s += found.seconds
            say(f"{source.name}: {len(found.maps)} maps of {found.seconds:.1f} s at {found.rate:g} Hz")
        divisor = _scale(made, state.get(name), scale, domain=name)
        rows = _write_maps(output, name, made, manifest, divisor=divisor, condition=condition)
        pair = Pair(*teeth_of(settings.teeth))
        state[name] = {"scale": divisor, **settings.model_dump(include=set(MapSettings.model_fields))}
        _write_tables(output, pair, pd.concat([manifest, rows]), state, say=say)
        if len(sources) > 1:
            say(
                "note: column 0 is another tooth of wheel 2 in each record (row 0 too, unless there is one "
                "pulse a turn of wheel 1): what compares positions needs the maps of one long record"
            )
        _tell_length(output, pair, made, rate=found.rate, settings=settings, say=say)
    return output


def _sources(records: Path, split: Split) -> list[Source]:
    def inside(folder: Path) -> list[Path]:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in READERS and path.is_file())

    if records.is_file():
        found = [(split, records)]
    elif not records.is_dir():
        raise DataError(f"input={records}: no such file or folder")
    elif any((records / name).is_dir() for name in SPLITS):
        found = [
            (name, path) for name in SPLITS if (records / name).is_dir() for path in inside(records / name)
        ]
    else:
        found = [(split, path) for path in inside(records)]
    if not found:
        raise DataError(f"input={records}: no record in it; expected files of {', '.join(READERS)}")
    return [Source(path, name, as_cell(f"{path.parent.name}/{path.name}")) for name, path in found]


def _read_manifest(output: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(output / MANIFEST)
    except FileNotFoundError:
        return pd.DataFrame({"file": pd.Series(dtype=str), "record": pd.Series(dtype=str)})
    except (OSError, ValueError) as error:
        raise DataError(f"{output / MANIFEST}: cannot be read: {error}") from error


def _check(
    manifest: pd.DataFrame,
    known: dict[str, Any] | None,
    sources: list[Source],
    settings: RecordSettings,
    *,
    domain: str,
    output: Path,
) -> None:
    for key, value in settings.model_dump(include=set(MapSettings.model_fields)).items():
        if known is not None and known[key] != value:
            raise ConfigError(
                f"{key}={value}: {output}/{domain} was made with {key}={known[key]}; splits would not compare"
            )
    for source in sources:
        place = f"{domain}/{source.split}"
        own = manifest[manifest["file"].str.startswith(f"{place}/")]
        if (own["record"] == source.name).any():
            raise DataError(f"{source.name}: its maps are in {output}/{place} already; choose another output")
        there = sum(1 for _ in (output / place).glob("*.tif*"))
        if there != len(own):
            raise LayoutError(
                f"{output}/{place}: {there} images, {len(own)} in {MANIFEST}; choose another output"
            )


def _scale(
    made: list[tuple[Source, float, list[Made]]],
    known: dict[str, Any] | None,
    given: float | None,
    *,
    domain: str,
) -> float:
    if known is not None:
        if given not in (None, known["scale"]):
            raise ConfigError(f"scale={given:g}: {domain} was divided by {known['scale']:g}; leave scale out")
        return float(known["scale"])
    if given is not None:
        return given
    largest = [
        float(one.map_RC.max()) for source, _, maps in made if source.split == SPLITS[0] for one in maps
    ]
    if not largest or max(largest) <= 0:
        raise ConfigError(
            f"scale=auto: {domain} has no maps in train/good yet; convert these first or give scale"
        )
    return max(largest)


def _write_maps(
    output: Path,
    domain: str,
    made: list[tuple[Source, float, list[Made]]],
    manifest: pd.DataFrame,
    *,
    divisor: float,
    condition: str,
) -> pd.DataFrame:
    numbers = {split: int(manifest["file"].str.startswith(f"{domain}/{split}/").sum()) for split in SPLITS}
    rows = []
    for source, began_s, maps in made:
        for one in maps:
            file = f"{domain}/{source.split}/{numbers[source.split]:06d}.tiff"
            numbers[source.split] += 1
            publish(
                output / file,
                lambda stream, one=one: tifffile.imwrite(  # type: ignore[misc]
                    stream, one.map_RC / np.float32(divisor), photometric="minisblack", metadata=None
                ),
                durable=False,
            )
            facts = {"start_s": began_s + one.start_s, "speed": one.speed, "condition": condition}
            rows.append({"file": file, **facts, "record": source.name, "noise": one.noise, **one.indicators})
    return pd.DataFrame(rows)


def _write_tables(
    output: Path, pair: Pair, rows: pd.DataFrame, state: dict[str, Any], *, say: Callable[[str], None]
) -> None:
    """Write what stands beside the maps; the manifest is the last, so that what it lists is there."""
    known = read_indicators(output)
    facts = ["file", "start_s", "speed", "condition", "record", "noise"]
    own = rows.drop(columns=facts[1:]).dropna()
    publish_text(output / INDICATORS, pd.concat([known, own]).to_csv(index=False))
    row_T, column_T = pair.cells()
    mesh_T = np.arange(pair.period)
    cells = {
        "row": row_T,
        "column": column_T,
        "tooth_1": mesh_T % pair.first,
        "tooth_2": mesh_T % pair.second,
    }
    teeth = pd.DataFrame(cells).sort_values(["row", "column"])
    publish_text(output / TEETH, teeth.to_csv(index=False))
    tested = rows[rows["file"].str.contains("/test/")]
    if (tested["condition"] != ALL).all() and len(tested):
        listed = rows[["file", "condition"]].rename(columns={"file": "path"})
        publish_text(output / CSV_NAME, listed.to_csv(index=False))
    elif (tested["condition"] != ALL).any():
        say(f"note: {CSV_NAME} is not written: some test maps have no condition")
    publish_json(output / STATE, state)
    publish_text(output / MANIFEST, rows[facts].to_csv(index=False))


def read_indicators(root: Path) -> pd.DataFrame:
    """Return the indicators of a data root's maps by ``file``, empty where there are none."""
    try:
        return pd.read_csv(root / INDICATORS)
    except (OSError, ValueError):
        return pd.DataFrame()


def _tell_length(
    output: Path,
    pair: Pair,
    made: list[tuple[Source, float, list[Made]]],
    *,
    rate: float,
    settings: RecordSettings,
    say: Callable[[str], None],
) -> None:
    """Say how exact the cells are, by the signal's own noise."""
    maps = [one for _, _, own in made for one in own]
    if settings.statistic != "rms" or settings.periods == 1:
        return
    noise, speed = np.mean([(one.noise**2, one.speed) for one in maps], axis=0)
    power = float(np.mean([np.square(one.map_RC).mean() for one in maps])) - noise / settings.periods
    if power <= 0:
        say("the cells hold nothing but noise: average more periods")
        return
    plan = Plan.of(pair, speed=float(speed), rate=rate, noise=float(np.sqrt(noise / power)))
    say(plan.sentence(periods=settings.periods, severity=SEVERITY))
    save_plan(plan, output / LENGTH, periods=settings.periods, severity=SEVERITY)


def save_plan(plan: Plan, path: Path, *, periods: int, severity: float) -> None:
    """Draw what a plan says."""
    picture = png_bytes(plan_figure(plan, periods=periods, severity=severity))
    publish(path, lambda stream: stream.write(picture))
