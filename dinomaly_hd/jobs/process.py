"""Processes of jobs, each forked by one that has imported what several of them need."""

import contextlib
import gc
import importlib
import json
import os
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from dinomaly_hd.jobs.job import JOB_FILE, LOG, Exit

SOURCE = Path(__file__).resolve().parents[2]
TAIL_BYTES = 16_384
STOP_S, POLL_S = 60.0, 0.1
STOPPED = Exit(128 + signal.SIGTERM, "stopped")
ERROR_LINE = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b")


class Starter:
    """Runs one job after another, each as a process of its own, whose standard input ends with this process.

    ``environment`` is set beside the machine's. Jobs run in a session of their own, with what forks them. At
    the end a job that still runs has a minute to save what it has.
    """

    def __init__(self, *, directory: Path, environment: Mapping[str, str]) -> None:
        self._directory, self._variables = directory, {**os.environ, **environment}
        self._variables.pop("MLFLOW_RUN_ID", None)  # it is the parent's
        paths = [str(SOURCE), self._variables.get("PYTHONPATH", "")]
        self._variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self._forking: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def run(
        self, module: str, folder: Path, *, stopping: Callable[[], bool], imports: Sequence[str] = ()
    ) -> Exit:
        """Run one start of a job until it has ended, or is ``stopping`` and has saved.

        ``imports``: modules to import once, before the first job; they must start no threads.
        """
        with (folder / LOG).open("ab") as log:
            log.write(f"== {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC on {socket.gethostname()}\n".encode())
            log.flush()
            began = log.tell()
            if self._forking is not None and self._forking.poll() is not None:
                self._end()
            self._forking = self._forking or self._start(imports, log)
        asked, answers = self._forking.stdin, self._forking.stdout
        assert asked is not None
        assert answers is not None
        asked.write(f"{json.dumps([module, str(folder)])}\n".encode())
        asked.flush()
        while not select.select([answers], [], [], POLL_S)[0]:
            if stopping():
                self._end()
                return STOPPED
        answer = answers.readline()
        code = int(answer) if answer else self._end() or 1
        return Exit(code, "" if code == 0 else _reason(folder / LOG, code, began=began))

    def _start(self, imports: Sequence[str], log: BinaryIO) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            # Other systems' libraries may not be forked.
            [sys.executable, "-m", __name__, *(imports if sys.platform == "linux" else ())],
            cwd=self._directory,
            env=self._variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )

    def _end(self) -> int:
        """Close the standard input of what forks and of its job, which then ends as by SIGTERM."""
        forking, self._forking = self._forking, None
        if forking is None:
            return 0
        deadline = time.monotonic() + STOP_S
        assert forking.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            forking.stdin.close()
        while forking.poll() is None:
            left = deadline - time.monotonic()
            # Ray may interrupt a task that it cancels more than once.
            with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
                if left <= 0:
                    os.killpg(forking.pid, signal.SIGKILL)
                forking.wait(max(1.0, left))
        assert forking.stdout is not None
        forking.stdout.close()
        return forking.returncode


def _reason(log: Path, code: int, *, began: int) -> str:
    """Return the last line of this start's log that tells of an error, else the last one."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    with log.open("rb") as stream:
        stream.seek(max(began, stream.seek(0, os.SEEK_END) - TAIL_BYTES))
        lines = [line for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if ERROR_LINE.match(line)]
    return (errors or lines or [f"exit code {code}"])[-1].strip()


def fork_jobs(imports: Sequence[str]) -> None:
    """Fork a process for each job that a line of standard input names, and answer with its exit code."""
    # Signals are for the job; this process ends with its standard input.
    handlers = {
        number: signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    for module in imports:
        importlib.import_module(module)
    # NumPy's own threads end before a fork and begin again after it.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    gc.freeze()  # else a job's first search for garbage would copy all that is shared
    while line := sys.stdin.readline():
        module, folder = json.loads(line)
        child = os.fork()
        if not child:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            with (Path(folder) / LOG).open("ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            sys.argv = [module, "--config", str(Path(folder) / JOB_FILE)]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            sys.exit()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(BrokenPipeError):  # who asked is gone
            os.write(1, f"{code}\n".encode())


if __name__ == "__main__":
    fork_jobs(sys.argv[1:])
