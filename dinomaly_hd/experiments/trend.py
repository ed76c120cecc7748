"""The scores of a run over the time at which its maps were recorded: alarms and changes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dinomaly_hd.data.tree import PREFIX
from dinomaly_hd.errors import ConfigError, DataError, nearest
from dinomaly_hd.evaluation.plots import CURVE_COLOURS, new_figure, png_bytes
from dinomaly_hd.files import make_dated_folder, publish, publish_text, read_json
from dinomaly_hd.names import NORMALS
from dinomaly_hd.runs.folder import SCORES, find_run
from dinomaly_hd.trivial import PREFIX as TRIVIAL
from dinomaly_hd.vibration.alarm import DAY_S, Level, alarm_level, change_points
from dinomaly_hd.vibration.dataset import MANIFEST

FEWEST_MAPS = 3


def trend(
    run: str,
    *,
    domain: str | None,
    score: str,
    false_alarms: float,
    data_root: Path | None,
    output: Path | None,
    result_dir: Path,
    say: Callable[[str], None],
) -> Path:
    """Write ``trend.csv`` and ``trend.png`` of one domain's test maps, say what they show, return the folder.

    Raises:
        ConfigError: No such run, domain or score.
        DataError: The data root has no manifest, or too few maps or scores.
    """
    folder = find_run(result_dir, run)
    name = _domain(folder, domain)
    root = data_root or Path(str(read_json(folder / "experiment_settings.json").get("data_root", "")))
    test, normals = (pd.read_csv(folder / SCORES / f"{name}{ending}.csv") for ending in ("", NORMALS))
    column = _column(test, score)
    course, maps_a_day = _course(test, root, name)
    usual, values = (own[column].to_numpy(np.float64) for own in (normals, course))
    level = alarm_level(usual, false_alarms=false_alarms, maps_a_day=maps_a_day)
    table = course[["path", "start_s", "speed", "label", column]].assign(alarm=values >= level.value)
    beyond = f", extrapolated beyond {len(usual)} normals" if level.extrapolated else ""
    first = table.loc[table["alarm"], "start_s"].head(1).tolist()
    began = f"first alarm at {first[0]:.1f} s" if first else "no alarm"
    say(
        f"{name}: alarm level {level.value:.4g} for {false_alarms:g} false alarms a day of "
        f"{maps_a_day:.0f} maps{beyond}; {int(table['alarm'].sum())} of {len(table)} maps above, {began}"
    )
    try:
        places = change_points(values, noise=float(usual.std(ddof=1)) or 1.0)
        changes = table["start_s"].iloc[places].tolist()
        say(f"changes of the mean: {', '.join(f'{second:.1f} s' for second in changes) or 'none'}")
    except ConfigError as error:
        changes = []
        say(f"changes of the mean are not looked for: {error}")
    output = output or make_dated_folder(result_dir / "trend")
    publish_text(output / "trend.csv", table.to_csv(index=False, float_format="%.10g"))
    picture = png_bytes(_figure(table, column, level, changes, title=f"{folder.name}, {name}"))
    publish(output / "trend.png", lambda stream: stream.write(picture))
    say(f"trend: {output}")
    return output


def _column(test: pd.DataFrame, score: str) -> str:
    column = score if score == "score" else f"{TRIVIAL}{score}"
    if column not in test:
        columns = [str(own) for own in test]
        known = ["score", *(own.removeprefix(TRIVIAL) for own in columns if own.startswith(TRIVIAL))]
        raise ConfigError(f"score={score!r}: the run has no such score.{nearest(score, known)}")
    return column


def _course(test: pd.DataFrame, root: Path, name: str) -> tuple[pd.DataFrame, float]:
    """Return the test maps in order of time, and how many maps a day of recording gives."""
    file = root / MANIFEST
    try:
        maps = pd.read_csv(file)[["file", "start_s", "speed"]].sort_values("start_s")
    except FileNotFoundError:
        raise DataError(f"{file}: not there; it says when maps were recorded, hdmap writes it") from None
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{file}: cannot be read, and says when maps were recorded: {error}") from error
    course = test.merge(maps, left_on="path", right_on="file")
    steps = maps.loc[maps["file"].str.startswith(f"{name}/"), "start_s"].diff()
    step_s = float(steps[steps > 0].median())
    if len(course) < FEWEST_MAPS or not step_s > 0:
        listed = f"lists {len(course)} of {len(test)} maps of {name}"
        raise DataError(f"{file}: {listed}, expected {FEWEST_MAPS} or more at times of their own")
    return course.sort_values("start_s"), DAY_S / step_s


def _domain(folder: Path, asked: str | None) -> str:
    known = sorted(path.stem for path in (folder / SCORES).glob("*.csv") if not path.stem.endswith(NORMALS))
    if asked is None:
        if len(known) != 1:
            raise ConfigError(
                f"domain: the run has {len(known)} ({', '.join(known)}); choose one with --domain"
            )
        return known[0]
    for name in (asked, f"{PREFIX}{asked}"):
        if name in known:
            return name
    raise ConfigError(f"domain={asked!r}: the run has no such domain.{nearest(asked, known)}")


def _figure(table: pd.DataFrame, column: str, level: Level, changes: list[float], *, title: str) -> Figure:
    figure = new_figure(9, 3.5)
    axes = figure.subplots()
    for label, name, colour in ((0, "good", CURVE_COLOURS[0]), (1, "fault", CURVE_COLOURS[1])):
        own = table[table["label"] == label]
        axes.plot(own["start_s"], own[column], ".", color=colour, label=name)
    axes.axhline(level.value, color="0.3", linestyle="--", label="alarm level")
    for second in changes:
        axes.axvline(second, color="0.6", linestyle=":")
    axes.set_xlabel("seconds; dotted: the mean changes")
    axes.set_ylabel(column)
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False)
    return figure
