"""Run many jobs on an engine: those that fail are started again, and none outlives this process."""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing

from dinomaly_hd.errors import ConfigError, nearest, reason_of
from dinomaly_hd.files import publish_json, read_json
from dinomaly_hd.jobs.job import JOB_FILE, PROGRESS, Ended, Exit, Job, Slots
from dinomaly_hd.jobs.local import LocalEngine
from dinomaly_hd.jobs.ray_engine import RayEngine, check_ray
from dinomaly_hd.jobs.table import Row, board

LOCAL, RAY = "local", "ray"
ONE_SLOT = Slots(LOCAL, 1, "")
ENGINES: Mapping[str, Callable[[Slots], LocalEngine | RayEngine]] = {
    LOCAL: lambda slots: LocalEngine(slots=slots.number),
    RAY: lambda slots: RayEngine(slots=slots.number, address=slots.address),
}
POLL_S, PROGRESS_S = 0.2, 1.0
FINAL_CODES = (64, 65)  # of wrong settings and bad data: the same start would fail in the same way
LOST = -1000


def check_engine(slots: Slots) -> None:
    """Refuse an engine that cannot be had; starts nothing.

    Raises:
        ConfigError: Unknown, an address without Ray, Ray not installed, or nothing answers at the address.
    """
    if slots.engine not in ENGINES:
        raise ConfigError(f"engine={slots.engine!r}: unknown.{nearest(slots.engine, ENGINES)}")
    if slots.engine == RAY:
        check_ray(slots.address)
    elif slots.address:
        does_nothing = f"does nothing with engine={slots.engine}; leave it out"
        raise ConfigError(f"ray_address={slots.address}: {does_nothing}")


def run_jobs(
    jobs: Sequence[Job],
    slots: Slots,
    *,
    tick: Callable[[], None],
    say: Callable[[str], None],
    on_ended: Callable[[Job, Ended], None],
    reused: Sequence[str] = (),
) -> dict[str, Ended]:
    """Run all jobs and return how each ended, by name; a failed one does not stop the others.

    Args:
        jobs: In the order of their starts.
        slots: Where, and how many at once.
        tick: Called several times a second; what it raises stops all jobs, each with what it saved.
        say: Prints a line, where there is no terminal for a live table.
        on_ended: Called for every job that has ended for good.
        reused: Names that the table shows as done before.

    Raises:
        ConfigError: Unknown engine, or it cannot be had.
        OutputError: A job's folder cannot be written.
    """
    check_engine(slots)
    assert len({job.name for job in jobs} | set(reused)) == len(jobs) + len(reused), "names are unique"
    rows = [Row(name, "reused") for name in reused] + [Row(job.name, "waiting") for job in jobs]
    if not jobs:
        return {}
    with closing(ENGINES[slots.engine](slots)) as engine, board(rows, say=say) as show:
        return _run(deque(jobs), engine, tick=tick, show=show, on_ended=on_ended)


def _run(
    waiting: deque[Job],
    engine: LocalEngine | RayEngine,
    *,
    tick: Callable[[], None],
    show: Callable[[Row], None],
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
            show(Row(job.name, "running"))
        for future in wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            name, (code, reason) = job.name, _exit_of(future)
            if code != 0 and code not in FINAL_CODES and starts[name] < job.attempts:
                waiting.append(job)
                show(Row(name, "waiting", note=f"start {starts[name]} failed: {reason}"))
                continue
            results[name] = Ended("FAILED" if code else "FINISHED", reason, starts[name])
            show(Row(name, "failed" if code else "finished", note=reason))
            on_ended(job, results[name])
        if time.monotonic() >= next_look:
            next_look = time.monotonic() + PROGRESS_S
            for job in running.values():
                show(Row(job.name, "running", read_json(job.folder / PROGRESS)))
    return results


def _exit_of(future: Future[Exit]) -> Exit:
    error = future.exception()  # it could not be started, or Ray lost it too often
    return future.result() if error is None else Exit(LOST, reason_of(error))
