"""Whose process works at a run in MLflow; runs that dead processes left behind are closed."""

import contextlib
import os
import socket
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from dinomaly_hd.runs.journal import KEY_TAG, now_ms
from dinomaly_hd.runs.store import matching

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

HEARTBEAT_LOST_S, BEGIN_S = 600.0, 3600.0
PROCESS_TAG = "mlflow.dinomaly_hd.process"


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


def close_stale_runs(client: "MlflowClient", experiment_id: str) -> list[str]:
    """Mark runs of this host KILLED whose process is gone, and return their ids.

    A process is known by its id and start time. Where ids cannot be compared (another container or boot
    under the same host name) a run counts as left behind once its heartbeat is ten minutes old.
    """
    query = f"attributes.status = 'RUNNING' and tags.`{PROCESS_TAG}` LIKE '{socket.gethostname()} %'"
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
