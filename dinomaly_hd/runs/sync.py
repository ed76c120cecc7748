"""Upkeep between runs: completing in MLflow what an outage or a kill cut off, and closing what died."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import filelock
import yaml

from dinomaly_hd.errors import DinomalyHDError, TrackingError
from dinomaly_hd.runs.folder import IN_MLFLOW, LOCK, read_state, states
from dinomaly_hd.runs.journal import OUTBOX
from dinomaly_hd.runs.mirror import mirror
from dinomaly_hd.runs.processes import close_runs_not_begun, close_stale_runs
from dinomaly_hd.runs.store import client_for, default_uri, in_one_line


@dataclass
class Synchronised:
    """Folders completed, points and operations sent, folders at work or refused, runs closed."""

    completed: int = 0
    points: int = 0
    operations: int = 0
    at_work: int = 0
    refused: int = 0
    closed: int = 0


def complete_finished(folder: Path, *, root: Path, say: Callable[[str], None]) -> None:
    """Give MLflow what it lacks of a finished run whose process was killed before all was sent.

    A store that does not answer is named and left for the next time: the folder is the truth.
    """
    if read_state(folder).get(IN_MLFLOW, True):
        return
    try:
        mirror(folder, uri=default_uri(root), root=root)
    except TrackingError as error:
        say(f"warning: {folder}: {error}")
    else:
        say(f"completed in MLflow: {folder}")


def lacking(result_dir: Path) -> list[Path]:
    """Return the tracked run folders of which MLflow is not known to have everything."""
    return [
        folder
        for folder, state in states(result_dir)
        if (folder / OUTBOX).is_file() and not state.get(IN_MLFLOW, False)
    ]


def synchronise(
    result_dir: Path, *, root: Path, say: Callable[[str], None], tick: Callable[[], None]
) -> Synchronised:
    """Complete every run folder below ``result_dir`` that no process works on; close dead processes' runs.

    ``say`` gets a line for each, ``tick`` is called before each folder.
    """
    done, uri = Synchronised(), default_uri(root)
    for folder in lacking(result_dir):
        tick()
        try:
            with filelock.FileLock(folder / LOCK, timeout=0):
                sent = mirror(folder, uri=uri, root=root)
        except filelock.Timeout:
            done.at_work += 1
            say(f"{folder}: at work, left alone")
        except (DinomalyHDError, OSError) as error:  # a damaged or read-only folder does not stop the rest
            done.refused += 1
            say(f"{folder}: {error}")
        else:
            done.completed += 1
            done.points += sent.points
            done.operations += sent.operations
            say(f"{folder}: complete; {sent.points} points and {sent.operations} other records sent")
    with in_one_line(f"MLflow at {uri}"):
        client = client_for(uri)
        for experiment_id in [one.experiment_id for one in client.search_experiments()]:
            killed = close_stale_runs(client, experiment_id)
            failed = close_runs_not_begun(client, experiment_id, entry_points=entry_points_with_tags(root))
            done.closed += len(killed) + len(failed)
            for run_id in killed:
                say(f"MLflow run {run_id}: left RUNNING by a dead process, now KILLED")
            for run_id in failed:
                say(f"MLflow run {run_id}: `mlflow run` ended before the run began, now FAILED")
    return done


def entry_points_with_tags(root: Path) -> Collection[str]:
    project = root / "MLproject"
    names = yaml.safe_load(project.read_text())["entry_points"].keys() if project.is_file() else set()
    # Less those that leave no tags at work.
    return names - {"predict", "export", "simulate", "hdmap", "trend", "doctor", "sync"}
