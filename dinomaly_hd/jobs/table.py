"""What a person sees of many jobs: a live table on a terminal, else a line for every change."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.progress import Progress, TextColumn

State = Literal["running", "failed", "waiting", "finished", "reused"]
STATES: tuple[State, ...] = ("running", "failed", "waiting", "finished", "reused")
HIDDEN = ("waiting", "finished", "reused")  # counted in the live table, since not all rows fit on a screen


class Row(NamedTuple):
    """One job: its state, the content of its progress.json, and one line on what went wrong."""

    name: str
    state: State
    progress: Mapping[str, Any] = {}
    note: str = ""


@contextmanager
def board(
    rows: Sequence[Row], *, say: Callable[[str], None], console: Console | None = None
) -> Iterator[Callable[[Row], None]]:
    """Show all jobs and yield what replaces the row of a name; ``say`` prints a line without a terminal."""
    shown = {row.name: row for row in rows}
    console = console or Console()
    columns = [TextColumn(f"{{task.{part}}}", markup=False) for part in ("description", "fields[text]")]
    with Progress(*columns, console=console, disable=not console.is_terminal) as table:
        total = table.add_task(counts(rows), text="")
        tasks = {row.name: table.add_task(row.name, text="", visible=False) for row in rows}
        if not console.is_terminal:
            say(counts(rows))

        def show(row: Row) -> None:
            before, shown[row.name] = shown[row.name], row
            text = f"{row.state}{f': {row.note}' if row.note else ''}{_how_far(row.progress)}"
            table.update(tasks[row.name], text=text, visible=row.state not in HIDDEN)
            table.update(total, description=counts(list(shown.values())))
            if not console.is_terminal and (before.state, before.note) != (row.state, row.note):
                say(f"{row.name}: {text} ({counts(list(shown.values()))})")

        yield show


def counts(rows: Sequence[Row]) -> str:
    """Return how many jobs are in each state, such as "running 2, waiting 3"."""
    number = Counter(row.state for row in rows)
    return ", ".join(f"{state} {number[state]}" for state in STATES if number[state])


def _how_far(progress: Mapping[str, Any]) -> str:
    if not progress.get("steps"):
        return ""
    minutes, seconds = divmod(round(progress.get("seconds_left") or 0), 60)
    return f" {progress.get('step')}/{progress['steps']}, {minutes}:{seconds:02d} left"
