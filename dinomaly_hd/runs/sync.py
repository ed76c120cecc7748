"""Upkeep between runs: completing in MLflow what an outage or a kill cut off, and closing what died."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import filelock

from dinomaly_hd.errors import DinomalyHDError, TrackingError
from dinomaly_hd.runs.folder import FINISHED, IN_MLFLOW, LOCK, RunFolder, all_runs, read_state
from dinomaly_hd.runs.mirror import Mirrored, mirror
from dinomaly_hd.runs.outbox import OUTBOX
from dinomaly_hd.runs.store import close_all_stale_runs, default_uri

ENDINGS = (FINISHED, "FAILED", "KILLED")


class Synchronised(NamedTuple):
    """Folders completed, points and operations sent, folders at work or refused, runs closed."""

    completed: int
    points: int
    operations: int
    at_work: int
    refused: int
    closed: int


def complete(folder: Path, *, root: Path) -> Mirrored:
    """Give MLflow what it lacks of a run folder that no process works on; again, it sends nothing.

    A run whose process died before it could say how it ended was killed.

    Raises:
        TrackingError: The store does not answer or refuses.
    """
    status = read_state(folder).get("status")
    ended = status if status in ENDINGS else "KILLED"
    done = mirror(folder, uri=default_uri(root), root=root, ended=ended)
    RunFolder(folder, resumed=True).set_state(
        status=ended, mlflow_run_id=done.run_id, **{IN_MLFLOW: done.refused == 0}
    )
    return done


def complete_finished(folder: Path, *, root: Path, say: Callable[[str], None]) -> None:
    """Do so for a finished run whose process was killed before all was sent.

    A store that does not answer is named and left for the next time: the folder is the truth.
    """
    if read_state(folder).get(IN_MLFLOW, True):
        return
    try:
        complete(folder, root=root)
    except TrackingError as error:
        say(f"warning: {folder}: {error}")
    else:
        say(f"completed in MLflow: {folder}")


def lacking(result_dir: Path) -> list[Path]:
    """Return the tracked run folders of which MLflow is not known to have everything."""
    return [
        folder
        for folder in all_runs(result_dir)
        if (folder / OUTBOX).is_file() and not read_state(folder).get(IN_MLFLOW, False)
    ]


def synchronise(
    result_dir: Path, *, root: Path, say: Callable[[str], None], tick: Callable[[], None]
) -> Synchronised:
    """Complete every run folder below ``result_dir`` that no process works on; mark dead runs KILLED.

    ``say`` gets a line for each folder, ``tick`` is called before each and may raise.

    Raises:
        TrackingError: The store does not answer at all.
    """
    points = operations = completed = at_work = refused = 0
    for folder in lacking(result_dir):
        tick()
        try:
            with filelock.FileLock(folder / LOCK, timeout=0):
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
    return Synchronised(completed, points, operations, at_work, refused, len(closed))
