"""A job: a process of its own with its own folder, which ends with the process that started it."""

import math
import os
import signal
import stat
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dinomaly_hd.errors import ConfigError
from dinomaly_hd.files import publish_json, read_json

JOB_FILE, LOG, PROGRESS = "job.json", "log.txt", "progress.json"
CODE = "code_digest"
PROGRESS_INTERVAL_S = 1.0


class Job(NamedTuple):
    """What is to be run: ``python -m {module} --config {folder}/job.json``.

    Attributes:
        name: Row of the live table, unique.
        module: An entry point that reads ``job.json``.
        folder: Holds job.json, log.txt and progress.json; all machines that may run it see it.
        content: Written to job.json; with a ``code_digest`` other code refuses the job.
        attempts: Starts in all before the job counts as failed, 1 or more.
    """

    name: str
    module: str
    folder: Path
    content: Mapping[str, Any]
    attempts: int = 2


class Slots(NamedTuple):
    """Where jobs run: an engine, how many at once (None: as many as it has), and a Ray cluster's address.

    An empty address stands for a Ray of this process's own.
    """

    engine: str
    number: int | None
    address: str


class Ended(NamedTuple):
    """How a job ended after how many starts; ``reason`` is empty for a finished one, else one line."""

    status: Literal["FINISHED", "FAILED"]
    reason: str
    starts: int


class Progress(NamedTuple):
    """How far a job is: optimizer steps done and in all, and seconds to the last one."""

    step: int
    steps: int
    seconds_left: float


def read_job(path: Path, *, code_digest: str) -> dict[str, Any]:
    """Return what a job is to do, for the process that does it.

    Raises:
        ConfigError: There is no such file, or other code wrote it.
    """
    content = read_json(path)
    if not content:
        raise ConfigError(f"config={path}: no job; give the job.json that a suite or a study wrote")
    theirs = content.get(CODE, code_digest)
    if theirs != code_digest:
        raise ConfigError(
            f"{path}: made by code {theirs}, the code here is {code_digest}; install the same version on "
            "every machine and start again"
        )
    return content


def write_progress(folder: Path, *, step: int, steps: int, seconds_left: float) -> None:
    """Say how far a job is; at most once a second, so that it may be called after every step.

    Raises:
        OutputError: It cannot be written.
    """
    path = folder / PROGRESS
    try:
        age_s = time.time() - path.stat().st_mtime
    except OSError:
        age_s = math.inf
    if step >= steps or not 0 <= age_s < PROGRESS_INTERVAL_S:
        publish_json(path, {"step": step, "steps": steps, "seconds_left": seconds_left})


def read_progress(folder: Path) -> Progress | None:
    """Return how far a job is, None where it has not said yet."""
    content = read_json(folder / PROGRESS)
    try:
        return Progress(int(content["step"]), int(content["steps"]), float(content["seconds_left"]))
    except (KeyError, TypeError, ValueError):
        return None


def die_with_parent() -> None:
    """Stop this process as if by SIGTERM once the pipe on its standard input is closed.

    A job's parent holds the other end, so that a parent killed by SIGKILL leaves no orphans. Does nothing
    where standard input is no pipe, as in a job that is started by hand.
    """
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=_wait_for_parent, name="parent", daemon=True).start()


def _wait_for_parent() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock would be held while the interpreter ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)
