"""A job: a process of its own with its own folder, which ends with the process that started it."""

import os
import signal
import stat
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dinomaly_hd.errors import ConfigError
from dinomaly_hd.files import publish_json, read_json

JOB_FILE, LOG, PROGRESS = "job.json", "log.txt", "progress.json"
PROGRESS_INTERVAL_S = 1.0


class Job(NamedTuple):
    """What is to be run: ``python -m {module} --config {folder}/job.json``.

    ``name`` is unique, ``content`` is written to job.json. All machines that may run it see ``folder``.
    ``attempts`` are the starts in all before it counts as failed; ``imports`` are modules that all jobs of
    an engine need, imported once by what forks them on this machine.
    """

    name: str
    module: str
    folder: Path
    content: Mapping[str, Any]
    attempts: int = 2
    imports: Sequence[str] = ()


class Slots(NamedTuple):
    """Where jobs run: an engine, how many at once (None: as many as it has), and a Ray cluster's address.

    An empty address stands for a Ray of this process's own.
    """

    engine: str
    number: int | None
    address: str


class Exit(NamedTuple):
    """A process that ended: its exit code, below 0 for a signal, and one line on what ended it."""

    code: int
    reason: str


class Ended(NamedTuple):
    """How a job ended after how many starts; ``reason`` is empty for a finished one, else one line."""

    status: Literal["FINISHED", "FAILED"]
    reason: str
    starts: int


def read_job(path: Path, *, code_digest: str) -> dict[str, Any]:
    """Return what a job is to do, for the process that does it; another code's job is refused."""
    content = read_json(path)
    if not content:
        raise ConfigError(f"config={path}: no job; give the job.json that a suite or a study wrote")
    theirs = content.get("code_digest", code_digest)
    if theirs != code_digest:
        raise ConfigError(
            f"{path}: made by code {theirs}, the code here is {code_digest}; install the same version on "
            "every machine and start again"
        )
    return content


def write_progress(folder: Path, *, step: int, steps: int, seconds_left: float) -> None:
    """Say how far a job is; at most once a second, so that it may be called after every step."""
    path = folder / PROGRESS
    recent = path.exists() and 0 <= time.time() - path.stat().st_mtime < PROGRESS_INTERVAL_S
    if step >= steps or not recent:
        publish_json(path, {"step": step, "steps": steps, "seconds_left": seconds_left})


def die_with_parent() -> None:
    """Stop this process as if by SIGTERM once the pipe on its standard input is closed.

    A job's parent holds the other end, so that a parent killed by SIGKILL leaves no orphans. Does nothing
    where standard input is no pipe, as in a job that is started by hand.
    """

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock would be held while the interpreter ends
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=wait, name="parent", daemon=True).start()
