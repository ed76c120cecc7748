"""The engine of one machine: a fixed number of slots, each a GPU or a share of the cores."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from dinomaly_hd.jobs.job import Job
from dinomaly_hd.jobs.process import Exit, Process, Start, stop

DEVICES, THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"


class LocalEngine:
    """Runs as many jobs at once as there are slots.

    Args:
        slots: None takes one a GPU, or one for two cores where there is no GPU. More slots than GPUs share
            them in turn.
    """

    def __init__(self, *, slots: int | None) -> None:
        devices = _devices()
        count = slots or len(devices) or max(1, usable_cores() // 2)
        self._tokens = list(_tokens(count, devices))
        self._running: dict[str, tuple[Process, dict[str, str]]] = {}

    def room(self) -> int:
        """Return how many more jobs may be started now."""
        return len(self._tokens)

    def start(self, job: Job) -> None:
        """Start a job in a free slot.

        Raises:
            OutputError: Its folder cannot be written.
        """
        token = self._tokens.pop(0)
        start = Start(job.module, job.folder.absolute(), Path.cwd(), token)
        self._running[job.name] = Process(start), token

    def ended(self) -> dict[str, Exit]:
        """Return the jobs that ended since the last call, by name, and free their slots."""
        exits = {name: process.poll() for name, (process, _) in self._running.items()}
        done = {name: exit_ for name, exit_ in exits.items() if exit_ is not None}
        for name in done:
            self._tokens.append(self._running.pop(name)[1])
        return done

    def stop(self) -> None:
        """End all jobs: by SIGTERM, on which they save what they have, and after a minute by SIGKILL."""
        stop([process for process, _ in self._running.values()])

    def close(self) -> None:
        """Nothing is held beside the jobs."""


def usable_cores() -> int:
    """Return how many cores this process may use."""
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _devices() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get(DEVICES)
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def _tokens(count: int, devices: list[str]) -> Iterator[dict[str, str]]:
    """Yield what each slot sets in its job's environment."""
    threads = os.environ.get(THREADS, str(max(1, usable_cores() // count)))
    for number in range(count):
        yield {THREADS: threads, **({DEVICES: devices[number % len(devices)]} if devices else {})}
