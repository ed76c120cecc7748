"""Upkeep between runs: completing in MLflow what an outage or a kill cut off, and closing what died."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import filelock

from dinomaly_hd.errors import DinomalyHDError
from dinomaly_hd.runs.folder import (
    FINISHED,
    IN_MLFLOW,
    LOCK,
    MODEL,
    RunFolder,
    all_runs,
    read_state,
)
from dinomaly_hd.runs.journal import Journal
from dinomaly_hd.serving import send_model
from dinomaly_hd.runs.mirror import SyncReport, sync_run
from dinomaly_hd.runs.outbox import OUTBOX_NAME
from dinomaly_hd.runs.store import close_all_stale_runs, default_uri

ENDINGS = (FINISHED, "FAILED", "KILLED")


class Upkeep(NamedTuple):
    """What `synchronise` did: folders completed, points and operations sent, folders at work or refused, runs
    closed.
    """

    completed: int
    points: int
    operations: int
    at_work: int
    refused: int
    closed: int


def complete(folder: Path, *, root: Path) -> SyncReport:
    """Give MLflow what it lacks of a run folder that no process works on; again, it sends nothing.

    A run whose process died before it could say how it ended was killed.

    Raises:
        TrackingError: The store does not answer or refuses.
    """
    uri, state = default_uri(root), read_state(folder)
    status = state.get("status")
    ended = status if status in ENDINGS else "KILLED"
    done = sync_run(Journal(folder / "journal.jsonl"), uri=uri, root=root, ended=ended)
    if ended == FINISHED and (folder / MODEL).is_dir():
        send_model(done.run_id, uri=uri, folder=folder / MODEL)
    RunFolder(folder, resumed=True).set_state(
        status=ended, mlflow_run_id=done.run_id, **{IN_MLFLOW: done.refused == 0}
    )
    return done


def lacking(result_dir: Path) -> list[Path]:
    """Return the tracked run folders of which MLflow is not known to have everything."""
    return [
        folder
        for folder in all_runs(result_dir)
        if (folder / OUTBOX_NAME).is_file() and not read_state(folder).get(IN_MLFLOW, False)
    ]


def synchronise(
    result_dir: Path, *, root: Path, say: Callable[[str], None], tick: Callable[[], None]
) -> Upkeep:
    """Complete every run folder that no process works on, and mark runs of dead processes KILLED.

    Args:
        result_dir: Its run folders, at any depth.
        root: The project's folder.
        say: Gets a line for each folder.
        tick: Called before each folder; may raise.

    Raises:
        TrackingError: The store does not answer at all.
    """
    points = operations = completed = at_work = refused = 0
    for folder in lacking(result_dir):
        tick()
        lock = filelock.FileLock(folder / LOCK, timeout=0)
        try:
            with lock:
                done = complete(folder, root=root)
        except filelock.Timeout:
            at_work += 1
            say(f"{folder}: at work, left alone")
        except (DinomalyHDError, OSError) as error:  # a damaged or read-only folder does not stop the rest
            refused += 1
            say(f"{folder}: {error}")
        else:
            completed += 1
            points, operations = points + done.points, operations + done.operations
            say(f"{folder}: complete; {done.points} points and {done.operations} other records sent")
    closed = close_all_stale_runs(default_uri(root))
    for run_id in closed:
        say(f"MLflow run {run_id}: left RUNNING by a dead process, now KILLED")
    return Upkeep(completed, points, operations, at_work, refused, len(closed))
