"""Run many jobs on an engine: those that fail are started again, and none outlives this process."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, contextmanager
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.progress import Progress, TextColumn

from dinomaly_hd.errors import reason_of
from dinomaly_hd.files import publish_json, read_json
from dinomaly_hd.jobs.engines import ENGINES, LocalEngine, RayEngine, check_engine
from dinomaly_hd.jobs.job import JOB_FILE, PROGRESS, Ended, Exit, Job, Slots

POLL_S, PROGRESS_S = 0.2, 1.0
FINAL_CODES = (64, 65)  # of wrong settings and bad data: the same start would fail in the same way
LOST = -1000
State = Literal["running", "failed", "waiting", "finished", "reused"]
STATES: tuple[State, ...] = ("running", "failed", "waiting", "finished", "reused")
HIDDEN = ("waiting", "finished", "reused")  # counted in the live table, since not all rows fit on a screen


class Show(Protocol):
    """Shows a job's state, one line on what went wrong, and the content of its progress.json."""

    def __call__(
        self, name: str, state: State, *, note: str = "", progress: Mapping[str, Any] | None = None
    ) -> None: ...


def run_jobs(
    jobs: Sequence[Job],
    slots: Slots,
    *,
    tick: Callable[[], None],
    say: Callable[[str], None],
    on_ended: Callable[[Job, Ended], None],
    reused: Sequence[str] = (),
) -> dict[str, Ended]:
    """Run all jobs in their order and return how each ended, by name; a failed one does not stop the others.

    ``tick`` is called several times a second: what it raises stops all jobs, each with what it saved.
    ``on_ended`` is called for every job that has ended for good. ``reused`` are names that were done before.
    """
    check_engine(slots)
    assert len({job.name for job in jobs} | set(reused)) == len(jobs) + len(reused), "names are unique"
    if not jobs:
        return {}
    states: dict[str, State] = {**dict.fromkeys(reused, "reused"), **{job.name: "waiting" for job in jobs}}
    with closing(ENGINES[slots.engine](slots)) as engine, board(states, say=say) as show:
        return _run(deque(jobs), engine, tick=tick, show=show, on_ended=on_ended)


def _run(
    waiting: deque[Job],
    engine: LocalEngine | RayEngine,
    *,
    tick: Callable[[], None],
    show: Show,
    on_ended: Callable[[Job, Ended], None],
) -> dict[str, Ended]:
    running, results = dict[Future[Exit], Job](), dict[str, Ended]()
    starts, next_look = Counter[str](), 0.0
    while waiting or running:
        tick()
        while waiting and len(running) < engine.places():
            job = waiting.popleft()
            publish_json(job.folder / JOB_FILE, dict(job.content))
            (job.folder / PROGRESS).unlink(missing_ok=True)
            running[engine.start(job)] = job
            starts[job.name] += 1
            show(job.name, "running")
        for future in wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED).done:
            job, error = running.pop(future), future.exception()
            name = job.name
            # An error: it could not be started, or Ray lost it too often.
            code, reason = future.result() if error is None else Exit(LOST, reason_of(error))
            if code != 0 and code not in FINAL_CODES and starts[name] < job.attempts:
                waiting.append(job)
                show(name, "waiting", note=f"start {starts[name]} failed: {reason}")
                continue
            results[name] = Ended("FAILED" if code else "FINISHED", reason, starts[name])
            show(name, "failed" if code else "finished", note=reason)
            on_ended(job, results[name])
        if time.monotonic() >= next_look:
            next_look = time.monotonic() + PROGRESS_S
            for job in running.values():
                show(job.name, "running", progress=read_json(job.folder / PROGRESS))
    return results


@contextmanager
def board(
    states: Mapping[str, State], *, say: Callable[[str], None], console: Console | None = None
) -> Iterator[Show]:
    """Show all jobs, in a live table on a terminal, else a line for every change; yield what changes one."""
    console, now = console or Console(), {name: (state, "") for name, state in states.items()}
    columns = [TextColumn(f"{{task.{part}}}", markup=False) for part in ("description", "fields[text]")]

    def counts() -> str:
        number = Counter(state for state, _ in now.values())
        return ", ".join(f"{state} {number[state]}" for state in STATES if number[state])

    with Progress(*columns, console=console, disable=not console.is_terminal) as table:
        total = table.add_task(counts(), text="")
        tasks = {name: table.add_task(name, text="", visible=False) for name in now}
        if not console.is_terminal:
            say(counts())

        def show(
            name: str, state: State, *, note: str = "", progress: Mapping[str, Any] | None = None
        ) -> None:
            before, now[name] = now[name], (state, note)
            text = f"{state}{f': {note}' if note else ''}"
            if progress and progress.get("steps"):
                minutes, seconds = divmod(round(progress.get("seconds_left") or 0), 60)
                text += f" {progress.get('step')}/{progress['steps']}, {minutes}:{seconds:02d} left"
            table.update(tasks[name], text=text, visible=state not in HIDDEN)
            table.update(total, description=counts())
            if not console.is_terminal and before != now[name]:
                say(f"{name}: {text} ({counts()})")

        yield show
