"""The engine of one machine: a fixed number of slots, each a GPU or a share of the cores."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue

from dinomaly_hd.jobs.job import JOB_FILE, LOG, Exit, Job

SOURCE = Path(__file__).resolve().parents[2]
DEVICES, THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"
TAIL_BYTES = 16_384
STOP_S, POLL_S = 60.0, 0.1
ERROR_LINE = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b")


def run_process(
    module: str,
    folder: Path,
    *,
    directory: Path,
    environment: Mapping[str, str],
    stopping: Callable[[], bool],
) -> Exit:
    """Run one start of a job in a session of its own, whose standard input ends when this process does.

    ``environment`` is set beside the machine's. Once ``stopping`` it ends by SIGTERM, on which a job saves
    what it has, and after a minute by SIGKILL.
    """
    variables = {**os.environ, **environment}
    variables.pop("MLFLOW_RUN_ID", None)  # it is the parent's
    paths = [str(SOURCE), variables.get("PYTHONPATH", "")]
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with (folder / LOG).open("ab") as log:
        log.write(f"== {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC on {socket.gethostname()}\n".encode())
        log.flush()
        began = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--config", str(folder / JOB_FILE)],
            cwd=directory,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    assert process.stdin is not None
    with process.stdin, contextlib.ExitStack() as ending:
        ending.callback(_stop, process)
        while process.poll() is None and not stopping():
            time.sleep(POLL_S)
    code = process.returncode
    return Exit(code, "" if code == 0 else _reason(folder / LOG, code, began=began))


def _stop(process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + STOP_S
    while process.poll() is None:
        left = deadline - time.monotonic()
        # Ray may interrupt a task that it cancels more than once.
        with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGTERM if left > 0 else signal.SIGKILL)
            process.wait(max(1.0, left))


def _reason(log: Path, code: int, *, began: int) -> str:
    """Return the last line of this start's log that tells of an error, else the last one."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    with log.open("rb") as stream:
        stream.seek(max(began, stream.seek(0, os.SEEK_END) - TAIL_BYTES))
        lines = [line for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if ERROR_LINE.match(line)]
    return (errors or lines or [f"exit code {code}"])[-1].strip()


class LocalEngine:
    """Runs as many jobs at once as there are slots.

    ``slots=None`` takes one a GPU, or one for two cores where there is no GPU. More slots than GPUs share
    them in turn.
    """

    def __init__(self, *, slots: int | None) -> None:
        devices = _devices()
        self._count = slots or len(devices) or max(1, usable_cores() // 2)
        self._tokens: SimpleQueue[dict[str, str]] = SimpleQueue()
        for token in _tokens(self._count, devices):
            self._tokens.put(token)
        self._pool, self._stopping = ThreadPoolExecutor(self._count), threading.Event()

    def places(self) -> int:
        """Return how many jobs may run at once."""
        return self._count

    def start(self, job: Job) -> Future[Exit]:
        """Start a job whose folder is ready."""
        return self._pool.submit(self._run, job, Path.cwd())

    def close(self) -> None:
        """End what still runs, each with what it saved."""
        self._stopping.set()
        self._pool.shutdown()

    def _run(self, job: Job, directory: Path) -> Exit:
        token, folder = self._tokens.get(), job.folder.absolute()
        try:
            return run_process(
                job.module, folder, directory=directory, environment=token, stopping=self._stopping.is_set
            )
        finally:
            self._tokens.put(token)


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


def _tokens(count: int, devices: list[str]) -> list[dict[str, str]]:
    """Return what each slot sets in its job's environment."""
    threads = os.environ.get(THREADS, str(max(1, usable_cores() // count)))
    gpus = [{DEVICES: devices[number % len(devices)]} if devices else {} for number in range(count)]
    return [{THREADS: threads, **gpu} for gpu in gpus]
