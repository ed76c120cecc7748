"""Run many jobs on an engine: those that fail are started again, and none outlives this process."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.files import publish_json
from dinomaly_hd.jobs.job import JOB_FILE, PROGRESS, Ended, Job, Slots, read_progress
from dinomaly_hd.jobs.local import LocalEngine
from dinomaly_hd.jobs.process import Exit
from dinomaly_hd.jobs.ray_engine import RayEngine, check_ray
from dinomaly_hd.jobs.table import Board, Row

LOCAL, RAY = "local", "ray"
EMBEDDED = ""
ONE_SLOT = Slots(LOCAL, 1, EMBEDDED)
POLL_S = 0.2
PROGRESS_S = 1.0
FINAL_CODES = (64, 65)
"""Exit codes of wrong settings and bad data: the same start would fail in the same way."""


class Engine(Protocol):
    """Where jobs run."""

    def room(self) -> int:
        """Return how many more jobs may be started now."""

    def start(self, job: Job) -> None:
        """Start a job whose folder is ready."""

    def ended(self) -> Mapping[str, Exit]:
        """Return the jobs that ended since the last call, by name."""

    def stop(self) -> None:
        """End all jobs, which save what they have, and return when they have ended."""

    def close(self) -> None:
        """Give back what the engine holds."""


def _local(slots: int | None, address: str) -> Engine:
    del address
    return LocalEngine(slots=slots)


def _ray(slots: int | None, address: str) -> Engine:
    return RayEngine(slots=slots, address=address)


ENGINES: Mapping[str, Callable[[int | None, str], Engine]] = {LOCAL: _local, RAY: _ray}
"""What makes an engine of slots (None: as many as it has) and a cluster's address ("": a Ray of its own)."""


def check_engine(slots: Slots) -> None:
    """Refuse an engine that cannot be had; starts nothing.

    Raises:
        ConfigError: Unknown, an address without Ray, Ray not installed, or nothing answers at the address.
    """
    if slots.engine not in ENGINES:
        raise ConfigError(f"engine={slots.engine!r}: unknown.{nearest(slots.engine, ENGINES)}")
    if slots.engine == RAY:
        check_ray(slots.address)
    elif slots.address != EMBEDDED:
        raise ConfigError(
            f"ray_address={slots.address}: does nothing with engine={slots.engine}; leave it out"
        )


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
        tick: Called several times a second; what it raises stops all jobs.
        say: Prints a line.
        on_ended: Called for every job that has ended for good.
        reused: Names that the table shows as done before.

    Raises:
        ConfigError: Unknown engine, or it cannot be had.
        OutputError: A job's folder cannot be written.
        Interrupted: What ``tick`` raised; all jobs have ended, each with what it saved.
    """
    check_engine(slots)
    assert len({job.name for job in jobs} | set(reused)) == len(jobs) + len(reused), "names are unique"
    if not jobs:
        return {}
    place = ENGINES[slots.engine](slots.number, slots.address)
    try:
        rows = [Row(name, "reused") for name in reused] + [Row(job.name, "waiting") for job in jobs]
        with Board(rows, say=say) as board:
            return _Work(jobs, place, board, on_ended).run(tick)
    except BaseException:
        place.stop()
        raise
    finally:
        place.close()


class _Work:
    """Jobs that wait, run and have ended."""

    def __init__(
        self,
        jobs: Sequence[Job],
        engine: Engine,
        board: Board,
        on_ended: Callable[[Job, Ended], None],
    ) -> None:
        self.waiting, self.running = deque(jobs), dict[str, Job]()
        self.starts = dict.fromkeys((job.name for job in jobs), 0)
        self.results: dict[str, Ended] = {}
        self.engine, self.board, self.on_ended = engine, board, on_ended
        self.next_look = 0.0

    def run(self, tick: Callable[[], None]) -> dict[str, Ended]:
        while self.waiting or self.running:
            tick()
            while self.waiting and self.engine.room() > 0:
                self._start(self.waiting.popleft())
            for name, exit_ in self.engine.ended().items():
                self._handle(self.running.pop(name), exit_)
            self._show_progress()
            if self.running:
                time.sleep(POLL_S)
        return self.results

    def _start(self, job: Job) -> None:
        publish_json(job.folder / JOB_FILE, dict(job.content))
        (job.folder / PROGRESS).unlink(missing_ok=True)
        self.starts[job.name] += 1
        self.engine.start(job)
        self.running[job.name] = job
        self.board.show(Row(job.name, "running"))

    def _handle(self, job: Job, exit_: Exit) -> None:
        starts = self.starts[job.name]
        if exit_.code != 0 and exit_.code not in FINAL_CODES and starts < job.attempts:
            self.waiting.append(job)
            self.board.show(Row(job.name, "waiting", note=f"start {starts} failed: {exit_.reason}"))
            return
        status: Literal["FINISHED", "FAILED"] = "FINISHED" if exit_.code == 0 else "FAILED"
        ended = Ended(status, exit_.reason, starts)
        self.results[job.name] = ended
        self.board.show(Row(job.name, "finished" if exit_.code == 0 else "failed", note=exit_.reason))
        self.on_ended(job, ended)

    def _show_progress(self) -> None:
        if time.monotonic() >= self.next_look:
            self.next_look = time.monotonic() + PROGRESS_S
            for job in self.running.values():
                self.board.show(Row(job.name, "running", read_progress(job.folder)))
