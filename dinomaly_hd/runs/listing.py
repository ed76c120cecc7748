"""The runs below a result folder as a table of text: what each is, what it found, how it ended."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import psutil

from dinomaly_hd.files import read_json
from dinomaly_hd.runs.folder import FINISHED, STATE, all_runs, read_results, read_state

Order = Literal["newest", "mean", "C", "C_cold"]
HEAD = ("changed", "label", "seed", "data", "mean", "C", "C_cold", "status", "folder")
AUROC = (  # where it stands in results.json
    ("mean_metrics", "auroc"),
    ("per_domain_metrics", "domain_C", "auroc"),
    ("per_domain_metrics", "domain_C", "by_condition", "cold", "auroc"),
)
LONGEST = 70


def list_runs(result_dir: Path, *, sort: Order, limit: int, tick: Callable[[], None]) -> list[str]:
    """Return the lines of the table: the newest runs, last one last, or the best ones, best one first."""
    folders = all_runs(result_dir)
    comparisons = {folder.parent for folder in folders}  # of which the members are listed
    dated = sorted(
        ((folder / STATE).stat().st_mtime, folder) for folder in folders if folder not in comparisons
    )
    rows = []
    for changed, folder in dated[-limit:] if sort == "newest" else dated:
        tick()
        rows.append(_cells(folder, changed))
    if sort != "newest":
        rows.sort(key=lambda cells: -float(cells[HEAD.index(sort)].replace("-", "-1")))
    table = [HEAD, *rows[:limit]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, cells, widths)).rstrip() for cells in table]
    return [*lines, f"{len(table) - 1} of {len(dated)} runs below {result_dir}; AUROC in %"]


def _cells(folder: Path, changed: float) -> list[str]:
    """Read a run as far as it can be read."""
    state, settings = read_state(folder), read_json(folder / "experiment_settings.json")
    status, pid, results = state.get("status", "unknown"), state.get("pid"), dict[str, Any]()
    if status == FINISHED:
        results = read_results(folder) or {"label": "results.json cannot be read"}
    elif status == "RUNNING" and not (isinstance(pid, int) and psutil.pid_exists(pid)):
        status = "RUNNING, no process here"
    cells = [
        time.strftime("%Y-%m-%d %H:%M", time.localtime(changed)),
        results.get("label") or _in(settings, "config", "model", "variant"),
        _in(settings, "config", "seed"),
        f"{Path(str(settings.get('data_root'))).name} {_in(settings, 'config', 'data', 'domains')}",
        *(f"{100 * share:.2f}" if isinstance(share := _in(results, *at), float) else "-" for at in AUROC),
        status,
        folder,
    ]
    texts = ["-" if cell is None else str(cell) for cell in cells]
    seen = [text if text.isprintable() else ascii(text) for text in texts[:-1]]
    return [text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..." for text in seen] + texts[-1:]


def _in(content: Any, *steps: str) -> Any:
    """Return what stands in nested mappings, None where it does not."""
    for step in steps:
        content = content.get(step) if isinstance(content, dict) else None
    return content
