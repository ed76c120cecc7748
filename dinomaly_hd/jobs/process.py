"""Processes of jobs, each forked by one that has imported what several of them need."""

import contextlib
import gc
import importlib
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from dinomaly_hd.jobs.job import JOB_FILE, LOG, Exit

SOURCE = Path(__file__).resolve().parents[2]
TAIL_BYTES = 16_384
STOP_S, POLL_S = 60.0, 0.1
ANSWER_BYTES = 16
STOPPED = Exit(128 + signal.SIGTERM, "stopped")
ERROR_LINE = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b")


class Starter:
    """Runs one job after another, each as a process of its own, whose standard input ends with this process.

    ``environment`` is set beside the machine's. Jobs run in a session of their own, with what forks them. At
    ``close`` a job that still runs has a minute to save what it has.
    """

    def __init__(self, *, directory: Path, environment: Mapping[str, str]) -> None:
        self._directory, self._variables = directory, {**os.environ, **environment}
        self._variables.pop("MLFLOW_RUN_ID", None)  # it is the parent's
        paths = [str(SOURCE), self._variables.get("PYTHONPATH", "")]
        self._variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self._forking: tuple[subprocess.Popen[bytes], socket.socket] | None = None

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
            if self._forking is not None and self._forking[0].poll() is not None:
                self.close()
            self._forking = self._forking or self._start(imports, log)
        try:
            answer = self._ask([module, str(folder)], stopping=stopping)
        except BaseException:  # else its answer would be taken for the next job's
            self.close()
            raise
        if answer is None:
            self.close()
            return STOPPED
        code = int(answer) if answer else self.close() or 1
        return Exit(code, "" if code == 0 else _reason(folder / LOG, code, began=began))

    def _start(
        self, imports: Sequence[str], log: BinaryIO
    ) -> "tuple[subprocess.Popen[bytes], socket.socket]":
        ours, theirs = socket.socketpair()
        ours.settimeout(POLL_S)
        with theirs:
            forking = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), *imports],
                cwd=self._directory,
                env=self._variables,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return forking, ours

    def _ask(self, job: Sequence[str], *, stopping: Callable[[], bool]) -> bytes | None:
        """Return a job's exit code, b"" where what forks has ended itself, None once it is ``stopping``."""
        assert self._forking is not None
        _, line = self._forking
        with contextlib.suppress(BrokenPipeError):
            line.sendall(f"{json.dumps(job)}\n".encode())
        while not stopping():
            with contextlib.suppress(TimeoutError):
                try:
                    return line.recv(ANSWER_BYTES)
                except ConnectionResetError:  # it has not even read what was asked
                    return b""
        return None

    def close(self) -> int:
        """Close the standard input of what forks, and of its job, which then ends as by SIGTERM.

        Returns the exit code of what forked.
        """
        if self._forking is None:
            return 0
        (forking, line), self._forking = self._forking, None
        line.close()
        assert forking.stdin is not None
        forking.stdin.close()
        deadline, killed = time.monotonic() + STOP_S, False
        while forking.poll() is None or (not killed and _is_there(forking.pid)):
            # Ray may interrupt a task that it cancels more than once.
            with contextlib.suppress(KeyboardInterrupt, ProcessLookupError):
                if not killed and time.monotonic() > deadline:
                    killed = True
                    os.killpg(forking.pid, signal.SIGKILL)
                time.sleep(POLL_S)
        return forking.returncode


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _reason(log: Path, code: int, *, began: int) -> str:
    """Return the last line of this start's log that tells of an error, else the last one."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    with log.open("rb") as stream:
        stream.seek(max(began, stream.seek(0, os.SEEK_END) - TAIL_BYTES))
        lines = [line for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if ERROR_LINE.match(line)]
    return (errors or lines or [f"exit code {code}"])[-1].strip()


def fork_jobs(line: socket.socket, imports: Sequence[str]) -> None:
    """Fork a process for each job that ``line`` names, and answer with its exit code."""
    # Signals are for the job; this process ends with ``line``.
    handlers = {
        number: signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, exit codes would be lost
    gc.disable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in imports:
            importlib.import_module(module)
    # NumPy's own threads end before a fork and begin again after it.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    gc.freeze()  # else a job's first search for garbage would copy all that is shared
    gc.enable()
    jobs = line.makefile()
    for job in jobs:
        module, folder = json.loads(job)
        with (Path(folder) / LOG).open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        child = os.fork()
        if not child:
            jobs.close()
            line.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            sys.argv = [module, "--config", str(Path(folder) / JOB_FILE)]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            sys.exit()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(BrokenPipeError):  # who asked is gone
            line.sendall(f"{code}\n".encode())


if __name__ == "__main__":
    fork_jobs(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
