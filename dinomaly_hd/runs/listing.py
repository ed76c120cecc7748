"""The runs below a result folder as a table of text: what each is, what it found, how it ended."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil

from dinomaly_hd.files import read_json
from dinomaly_hd.runs.folder import FINISHED, STATE, all_runs, read_results, read_state

Order = Literal["newest", "mean", "C", "C_cold"]
HEAD = ("changed", "label", "seed", "data", "mean", "C", "C cold", "status", "folder")
LONGEST = 34  # of a cell, but for the last two
FIGURES = {
    "mean": ("mean_metrics", "auroc"),
    "C": ("per_domain_metrics", "domain_C", "auroc"),
    "C_cold": ("per_domain_metrics", "domain_C", "by_condition", "cold", "auroc"),
}
"""Where AUROC stands in results.json."""


class Row(NamedTuple):
    """A run; figures in percent, NaN where it has none."""

    changed: float
    label: str
    seed: str
    data: str
    figures: dict[str, float]
    status: str
    folder: Path

    def cells(self) -> list[str]:
        found = ["-" if math.isnan(value) else f"{value:.2f}" for value in self.figures.values()]
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.changed))
        told = [when, self.label, self.seed, self.data, *found]
        short = [cell if len(cell) <= LONGEST else f"{cell[: LONGEST - 3]}..." for cell in told]
        cells = [*short, self.status, str(self.folder)]
        return [cell if cell.isprintable() else ascii(cell) for cell in cells]


def list_runs(result_dir: Path, *, sort: Order, limit: int, tick: Callable[[], None]) -> list[str]:
    """Return the lines of the table: the newest runs, last one last, or the best ones, best one first."""
    folders = all_runs(result_dir)
    parents = {folder.parent for folder in folders}  # comparisons, whose members are listed
    dated = sorted((_changed(folder), folder) for folder in folders if folder not in parents)
    rows = []
    for changed, folder in dated[-limit:] if sort == "newest" else dated:
        tick()
        rows.append(_row(folder, changed))
    if sort != "newest":
        rows.sort(key=lambda row: -1 if math.isnan(row.figures[sort]) else row.figures[sort], reverse=True)
    table = [list(HEAD), *(row.cells() for row in rows[:limit])]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if 4 <= place <= 6 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in table
    ]
    return [*lines, f"{len(table) - 1} of {len(dated)} runs below {result_dir}; AUROC in %"]


def _changed(folder: Path) -> float:
    try:
        return (folder / STATE).stat().st_mtime
    except OSError:  # removed meanwhile
        return 0.0


def _row(folder: Path, changed: float) -> Row:
    """Read a run as far as it can be read."""
    state, settings = read_state(folder), read_json(folder / "experiment_settings.json")
    status = str(state.get("status", "unknown"))
    results = (read_results(folder) or {}) if status == FINISHED else {}
    if status == FINISHED and not results:
        status = f"{FINISHED}, no readable results.json"
    pid = state.get("pid")
    if status == "RUNNING" and not (isinstance(pid, int) and psutil.pid_exists(pid)):
        status = "RUNNING, no process here"
    names = results.get("domains") or str(_in(settings, "config", "data", "domains") or "").split(",")
    domains = ",".join(str(name).removeprefix("domain_") for name in names)
    figures = {name: _in(results, *steps) for name, steps in FIGURES.items()}
    return Row(
        changed,
        str(results.get("label") or _in(settings, "config", "model", "variant") or "-"),
        str(_in(settings, "config", "seed") or results.get("seed", "-")),
        f"{Path(str(settings.get('data_root', '-'))).name} {domains}",
        {name: 100 * value if isinstance(value, float) else math.nan for name, value in figures.items()},
        status,
        folder,
    )


def _in(content: Any, *steps: str) -> Any:
    """Return what stands in nested mappings, None where it does not."""
    for step in steps:
        content = content.get(step) if isinstance(content, dict) else None
    return content
