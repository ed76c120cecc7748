"""One start of a job: the process, its log, and what came of it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from dinomaly_hd.errors import OutputError
from dinomaly_hd.jobs.job import JOB_FILE, LOG

SOURCE = Path(__file__).resolve().parents[2]
TAIL_BYTES = 16_384
NOT_FOR_JOBS = ("MLFLOW_RUN_ID",)
STOP_S, STOP_POLL_S = 60.0, 0.05
ERROR_LINE = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b")


class Exit(NamedTuple):
    """A process that ended: its exit code, below 0 for a signal, and one line on what ended it."""

    code: int
    reason: str


class Start(NamedTuple):
    """What is needed to start a job on any machine: module, folder, working directory, environment.

    ``environment`` is what is set beside the machine's own.
    """

    module: str
    folder: Path
    directory: Path
    environment: Mapping[str, str]


class Process:
    """A running job in its own session, whose standard input ends when this process does.

    Raises:
        OutputError: Its log cannot be written.
    """

    def __init__(self, start: Start) -> None:
        self._log = start.folder / LOG
        environment = {**os.environ, **start.environment}
        for name in NOT_FOR_JOBS:
            environment.pop(name, None)
        paths = [str(SOURCE), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        try:
            with self._log.open("ab") as log:
                log.write(
                    f"== {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC on {socket.gethostname()}\n".encode()
                )
                log.flush()
                self._began = log.tell()
                self._process = subprocess.Popen(
                    [sys.executable, "-m", start.module, "--config", str(start.folder / JOB_FILE)],
                    cwd=start.directory,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise OutputError(f"cannot start a job in {start.folder}: {error}") from error

    def poll(self) -> Exit | None:
        """Return how it ended, None as long as it runs."""
        code = self._process.poll()
        if code is None:
            return None
        assert self._process.stdin is not None
        self._process.stdin.close()
        return Exit(code, "" if code == 0 else self._reason(code))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the job and all that it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def _reason(self, code: int) -> str:
        """Return the last line of this start's log that tells of an error, else the last one."""
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
        lines = [line for line in self._tail().splitlines() if line.strip()]
        errors = [line for line in lines if ERROR_LINE.match(line)]
        return (errors or lines or [f"exit code {code}"])[-1].strip()

    def _tail(self) -> str:
        with self._log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._began, end - TAIL_BYTES))
            return log.read().decode(errors="replace")


def stop(processes: Collection[Process]) -> None:
    """End processes: by SIGTERM, on which a job saves what it has, and after a minute by SIGKILL."""
    for process in processes:
        process.signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(STOP_POLL_S)
    for process in processes:
        process.signal(signal.SIGKILL)
