"""What a person sees of many jobs: a live table on a terminal, else a line for every change."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dinomaly_hd.jobs.job import Progress

State = Literal["waiting", "running", "finished", "failed", "reused"]
ORDER: dict[State, str] = {
    "running": "cyan",
    "failed": "red",
    "waiting": "dim",
    "finished": "green",
    "reused": "green",
}
"""States from the most to the least wanted where not all rows fit on the screen, and their colours."""
LINES_AROUND = 6


class Row(NamedTuple):
    """One job: its state, how far it is, and one line on what went wrong."""

    name: str
    state: State
    progress: Progress | None = None
    note: str = ""


class Board:
    """Shows the rows of all jobs; use as a context manager.

    Args:
        rows: All jobs in their order.
        say: Prints a line, where the output is no terminal.
    """

    def __init__(self, rows: Sequence[Row], *, say: Callable[[str], None]) -> None:
        self._rows = {row.name: row for row in rows}
        self._say = say
        self._live = Live(refresh_per_second=2, transient=False) if sys.stdout.isatty() else None

    def __enter__(self) -> "Board":
        if self._live is not None:
            self._live.start()
            self._live.update(render(list(self._rows.values()), console=self._live.console))
        else:
            self._say(counts(list(self._rows.values())))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, row: Row) -> None:
        """Replace the row of this name."""
        before, self._rows[row.name] = self._rows[row.name], row
        if self._live is not None:
            self._live.update(render(list(self._rows.values()), console=self._live.console))
        elif (before.state, before.note) != (row.state, row.note):
            note = f": {row.note}" if row.note else ""
            self._say(f"{row.name}: {row.state}{note} ({counts(list(self._rows.values()))})")


def counts(rows: Sequence[Row]) -> str:
    """Return how many jobs are in each state, such as "waiting 3, running 2"."""
    number = Counter(row.state for row in rows)
    return ", ".join(f"{state} {number[state]}" for state in ORDER if number[state])


def render(rows: Sequence[Row], *, console: Console) -> Group:
    """Return the table, cut to the screen's height; the jobs at work come first."""
    ranks = list(ORDER)
    ordered = sorted(rows, key=lambda row: ranks.index(row.state))
    shown = ordered[: max(1, console.height - LINES_AROUND)]
    table = Table("member", "state", "step", "time left", "", box=None, pad_edge=False)
    for row in shown:
        step, left = ("", "") if row.progress is None else _progress(row.progress)
        table.add_row(Text(row.name), Text(row.state, style=ORDER[row.state]), step, left, Text(row.note))
    hidden = f" ({len(rows) - len(shown)} not shown)" if len(shown) < len(rows) else ""
    return Group(table, Text(counts(rows) + hidden))


def _progress(progress: Progress) -> tuple[str, str]:
    minutes, seconds = divmod(round(progress.seconds_left), 60)
    return f"{progress.step}/{progress.steps}", f"{minutes}:{seconds:02d}"
