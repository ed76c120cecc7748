"""The scores of a run over the time at which its maps were recorded: alarms and changes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dinomaly_hd.data.tree import NORMALS, PREFIX
from dinomaly_hd.errors import ConfigError, DataError, nearest
from dinomaly_hd.evaluation.plots import CURVE_COLOURS, new_figure, png_bytes
from dinomaly_hd.files import make_dated_folder, publish, publish_text, read_json
from dinomaly_hd.runs.folder import SCORES, find_run
from dinomaly_hd.trivial import PREFIX as TRIVIAL
from dinomaly_hd.vibration.alarm import DAY_S, Level, alarm_level, change_points
from dinomaly_hd.vibration.dataset import MANIFEST


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
        ConfigError: No such run, domain or score, or ruptures is not installed.
        DataError: The data root has no manifest, or too few scores.
    """
    folder = find_run(result_dir, run)
    name = _domain(folder, domain)
    root = data_root or Path(str(read_json(folder / "experiment_settings.json").get("data_root", "")))
    test, normals = (pd.read_csv(folder / SCORES / f"{name}{ending}.csv") for ending in ("", NORMALS))
    column = score if score in test else f"{TRIVIAL}{score}"
    if column not in test:
        columns = [str(own) for own in test]
        known = ["score", *(own.removeprefix(TRIVIAL) for own in columns if own.startswith(TRIVIAL))]
        raise ConfigError(f"score={score!r}: the run has no such score.{nearest(score, known)}")
    try:
        maps = pd.read_csv(root / MANIFEST)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{root / MANIFEST}: cannot be read, and says when maps were recorded: {error}"
        ) from error
    course = test.merge(maps, left_on="path", right_on="file", suffixes=("", "_of_map")).sort_values(
        "start_s"
    )
    if len(course) < 3:
        raise DataError(
            f"{root / MANIFEST}: lists {len(course)} of {len(test)} maps of {name}, expected 3 or more"
        )
    own = maps[maps["file"].str.startswith(f"{name}/")]
    step_s = float(own.sort_values("start_s").groupby("record")["start_s"].diff().median())
    step_s = step_s if step_s > 0 else float(np.median(np.diff(np.sort(own["start_s"]))))
    usual = normals[column].to_numpy(np.float64)
    level = alarm_level(usual, false_alarms=false_alarms, maps_a_day=DAY_S / step_s)
    values = course[column].to_numpy(np.float64)
    noise = float(usual.std(ddof=1))
    changes = change_points(values, noise=noise if noise > 0 else 1.0)
    table = course[["path", "start_s", "speed", "label", column]].assign(alarm=values >= level.value)
    output = output or make_dated_folder(result_dir / "trend")
    publish_text(output / "trend.csv", table.to_csv(index=False, float_format="%.10g"))
    picture = png_bytes(_figure(table, column, level, changes, title=f"{folder.name}, {name}"))
    publish(output / "trend.png", lambda stream: stream.write(picture))
    first = table[table["alarm"]].head(1)
    began = f"first alarm at {first['start_s'].iloc[0]:.1f} s" if len(first) else "no alarm"
    beyond = f", extrapolated beyond {len(usual)} normals" if level.extrapolated else ""
    say(
        f"{name}: alarm level {level.value:.4g} for {false_alarms:g} false alarms a day of "
        f"{DAY_S / step_s:.0f} maps{beyond}; {int(table['alarm'].sum())} of {len(table)} maps above, {began}"
    )
    at = ", ".join(f"{table['start_s'].iloc[place]:.1f} s" for place in changes) or "none"
    say(f"changes of the mean: {at}")
    say(f"trend: {output}")
    return output


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


def _figure(table: pd.DataFrame, column: str, level: Level, changes: list[int], *, title: str) -> Figure:
    figure = new_figure(9, 3.5)
    axes = figure.subplots()
    for label, name, colour in ((0, "good", CURVE_COLOURS[0]), (1, "fault", CURVE_COLOURS[1])):
        own = table[table["label"] == label]
        axes.plot(own["start_s"], own[column], ".", color=colour, label=name)
    axes.axhline(level.value, color="0.3", linestyle="--", label="alarm level")
    for place in changes:
        axes.axvline(table["start_s"].iloc[place], color="0.6", linestyle=":")
    axes.set_xlabel("seconds; dotted: the mean changes")
    axes.set_ylabel(column)
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False)
    return figure
