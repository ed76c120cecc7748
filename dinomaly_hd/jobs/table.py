"""What a person sees of many jobs: a live table on a terminal, else a line for every change."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dinomaly_hd.jobs.job import Progress

State = Literal["waiting", "running", "finished", "failed", "reused"]
# From the most to the least wanted where not all rows fit on the screen, with their colours.
ORDER: dict[State, str] = {
    "running": "cyan",
    "failed": "red",
    "waiting": "dim",
    "finished": "green",
    "reused": "green",
}
LINES_AROUND = 6


class Row(NamedTuple):
    """One job: its state, how far it is, and one line on what went wrong."""

    name: str
    state: State
    progress: Progress | None = None
    note: str = ""


@contextmanager
def board(rows: Sequence[Row], *, say: Callable[[str], None]) -> Iterator[Callable[[Row], None]]:
    """Show all jobs in their order; yields what replaces the row of a name. ``say`` prints a line."""
    shown = {row.name: row for row in rows}
    if not sys.stdout.isatty():
        say(counts(rows))

        def tell(row: Row) -> None:
            before, shown[row.name] = shown[row.name], row
            if (before.state, before.note) != (row.state, row.note):
                note = f": {row.note}" if row.note else ""
                say(f"{row.name}: {row.state}{note} ({counts(list(shown.values()))})")

        yield tell
        return
    with Live(refresh_per_second=2) as live:

        def draw(row: Row) -> None:
            shown[row.name] = row
            live.update(render(list(shown.values()), console=live.console))

        yield draw


def counts(rows: Sequence[Row]) -> str:
    """Return how many jobs are in each state, such as "running 2, waiting 3"."""
    number = Counter(row.state for row in rows)
    return ", ".join(f"{state} {number[state]}" for state in ORDER if number[state])


def render(rows: Sequence[Row], *, console: Console) -> Group:
    """Return the table, cut to the screen's height; the jobs at work come first."""
    ordered = sorted(rows, key=lambda row: list(ORDER).index(row.state))
    shown = ordered[: max(1, console.height - LINES_AROUND)]
    table = Table("member", "state", "step", "time left", "", box=None, pad_edge=False)
    for row in shown:
        step = left = ""
        if row.progress is not None:
            minutes, seconds = divmod(round(row.progress.seconds_left), 60)
            step, left = f"{row.progress.step}/{row.progress.steps}", f"{minutes}:{seconds:02d}"
        table.add_row(Text(row.name), Text(row.state, style=ORDER[row.state]), step, left, Text(row.note))
    hidden = f" ({len(rows) - len(shown)} not shown)" if len(shown) < len(rows) else ""
    return Group(table, Text(counts(rows) + hidden))
