"""Upkeep between runs: completing in MLflow what an outage or a kill cut off, and closing what died."""

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import psutil
import yaml

from dinomaly_hd.errors import DinomalyHDError, TrackingError, reason_of
from dinomaly_hd.runs.folder import FINISHED, IN_MLFLOW, LOCK, RunFolder, all_runs, read_state
from dinomaly_hd.runs.journal import KEY_TAG, OUTBOX, Outbox, now_ms
from dinomaly_hd.runs.mirror import Mirror, mirror
from dinomaly_hd.runs.store import client_for, default_uri, in_one_line, is_outage, matching, send_tags

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

ENDINGS = (FINISHED, "FAILED", "KILLED")
HEARTBEAT_LOST_S, BEGIN_S = 600.0, 3600.0
PROCESS_TAG = "process"


@dataclass
class Synchronised:
    """Folders completed, points and operations sent, folders at work or refused, runs closed."""

    completed: int = 0
    points: int = 0
    operations: int = 0
    at_work: int = 0
    refused: int = 0
    closed: int = 0


def complete(folder: Path, *, root: Path) -> Mirror:
    """Give MLflow what it lacks of a run folder that no process works on; again, it sends nothing.

    A run whose process died before it could say how it ended was killed.
    """
    status = read_state(folder).get("status")
    ended = status if status in ENDINGS else "KILLED"
    done = mirror(folder, uri=default_uri(root), root=root, ended=ended)
    whole = {IN_MLFLOW: done.refused == 0}
    RunFolder(folder, resumed=True).set_state(status=ended, mlflow_run_id=done.run_id, **whole)
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
    tracked = [folder for folder in all_runs(result_dir) if (folder / OUTBOX).is_file()]
    return [folder for folder in tracked if not read_state(folder).get(IN_MLFLOW, False)]


def synchronise(
    result_dir: Path, *, root: Path, say: Callable[[str], None], tick: Callable[[], None]
) -> Synchronised:
    """Complete every run folder below ``result_dir`` that no process works on; close dead processes' runs.

    ``say`` gets a line for each, ``tick`` is called before each folder.
    """
    done = Synchronised()
    for folder in lacking(result_dir):
        tick()
        try:
            with filelock.FileLock(folder / LOCK, timeout=0):
                sent = complete(folder, root=root)
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
    uri = default_uri(root)
    with in_one_line(f"MLflow at {uri}"):
        client = client_for(uri)
        for experiment_id in [one.experiment_id for one in client.search_experiments()]:
            killed = close_stale_runs(client, experiment_id)
            failed = close_runs_not_begun(client, experiment_id, entry_points=_entry_points(root))
            done.closed += len(killed) + len(failed)
            for run_id in killed:
                say(f"MLflow run {run_id}: left RUNNING by a dead process, now KILLED")
            for run_id in failed:
                say(f"MLflow run {run_id}: `mlflow run` ended before the run began, now FAILED")
    return done


def close_runs_not_begun(
    client: "MlflowClient", experiment_id: str, *, entry_points: Collection[str]
) -> list[str]:
    """Mark runs FAILED that `mlflow run` made an hour ago and whose process never began; return their ids.

    It leaves them RUNNING where it fails itself, for want of conda, say. A process of ours leaves tags.
    """
    query = "attributes.status = 'RUNNING' and tags.`mlflow.source.type` = 'PROJECT'"
    query += f" and attributes.start_time < {now_ms() - int(BEGIN_S * 1000)}"
    closed = []
    for run in list(matching(client, experiment_id, query)):
        tags = run.data.tags
        if tags.get("mlflow.project.entryPoint") in entry_points and not {PROCESS_TAG, KEY_TAG} & tags.keys():
            client.set_terminated(run.info.run_id, "FAILED")
            closed.append(run.info.run_id)
    return closed


def _entry_points(root: Path) -> Collection[str]:
    project = root / "MLproject"
    names = yaml.safe_load(project.read_text())["entry_points"].keys() if project.is_file() else set()
    return names - {"predict", "report", "simulate", "doctor", "sync"}  # which leave no tags at work


def process_tag() -> dict[str, str]:
    """Return the tag that lets a later start see whether this process still lives.

    It holds host, process id, start of the process, what makes ids comparable (this boot and this container;
    "-" where there is no /proc), and the time, UTC.
    """
    namespace = "-"
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    started = f"{psutil.Process().create_time():.2f}"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {PROCESS_TAG: " ".join([socket.gethostname(), str(os.getpid()), started, namespace, now])}


def claim(copy: Mirror, outbox: Outbox) -> None:
    """Mark a run RUNNING and as this process's, and close those that dead processes left behind."""
    assert outbox.run is not None, "open_run first"
    copy.client.update_run(copy.run_id, status="RUNNING")
    send_tags(copy.client, copy.run_id, {**outbox.run.all_tags, **process_tag()})
    try:
        for stale in close_stale_runs(copy.client, copy.experiment_id):
            logger.info("MLflow run %s was left behind by a dead process: marked KILLED", stale)
    except Exception as error:
        if is_outage(error):
            raise
        logger.warning("runs left behind could not be closed: %s", reason_of(error))


def close_stale_runs(client: "MlflowClient", experiment_id: str) -> list[str]:
    """Mark runs of this host KILLED whose process is gone, and return their ids.

    A process is known by its id and start time. Where ids cannot be compared (another container or boot
    under the same host name) a run counts as left behind once its heartbeat is ten minutes old.
    """
    query = f"attributes.status = 'RUNNING' and tags.{PROCESS_TAG} LIKE '{socket.gethostname()} %'"
    closed = []
    for run in list(matching(client, experiment_id, query)):
        # Asked again just before, since another process may have resumed it in the meantime.
        if _left_behind(run) and _left_behind(client.get_run(run.info.run_id)):
            client.set_terminated(run.info.run_id, "KILLED")
            closed.append(run.info.run_id)
    return closed


def _left_behind(run: "Run") -> bool:
    try:
        _, pid, started, namespace, heartbeat = run.data.tags[PROCESS_TAG].split(" ")
        age = datetime.now(UTC) - datetime.fromisoformat(heartbeat)
    except (KeyError, ValueError, TypeError):  # not written by us
        return False
    if run.info.status != "RUNNING":
        return False
    if namespace != process_tag()[PROCESS_TAG].split(" ")[3]:
        return age.total_seconds() > HEARTBEAT_LOST_S
    try:
        process = psutil.Process(int(pid))
        # The kernel's boot time, to which start times are relative, moves when the clock is set.
        same = abs(process.create_time() - float(started)) < 5.0
        return not same or process.status() == psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return False
    except (psutil.Error, ValueError):
        return True
