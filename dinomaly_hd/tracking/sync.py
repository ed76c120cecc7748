"""Completing in MLflow, after an outage or a kill, what a run folder holds."""

from pathlib import Path
from typing import NamedTuple

from dinomaly_hd.errors import TrackingError, reason_of
from dinomaly_hd.runs.journal import Journal
from dinomaly_hd.tracking.attach import attach
from dinomaly_hd.tracking.delivery import Delivery
from dinomaly_hd.tracking.outbox import OUTBOX_NAME, Outbox
from dinomaly_hd.runs.store import load_mlflow, now_ms


class SyncReport(NamedTuple):
    """What one `sync_run` sent: metric points, other operations, and what the store refused."""

    run_id: str
    points: int
    operations: int
    refused: int


def sync_run(journal: Journal, *, uri: str, root: Path, ended: str | None = None) -> SyncReport:
    """Send what MLflow lacks of a tracked run folder; called again, it sends nothing.

    The run is the one that the folder was tracked to, or a new one with the original start time. It gets the
    recorded status, else ``ended``; a new run of a folder without any was killed.

    Raises:
        TrackingError: The folder was never tracked, or the store does not answer or refuses.
    """
    outbox = Outbox(journal.path.parent / OUTBOX_NAME)
    if outbox.run is None:
        raise TrackingError(f"{journal.path.parent}: no {OUTBOX_NAME} in it, so no run that could be synced")
    load_mlflow(uri)
    try:
        at = attach(outbox, uri=uri, root=root, adopted=None, resumed=None, live=False)
        delivery = Delivery(at.client, at.run_id, journal=journal, outbox=outbox)
        if not at.made:
            delivery.load_known()
        delivery.send_metrics()
        delivery.send_operations()
        status, end_ms = outbox.ending or (ended or ("KILLED" if at.made else None), now_ms())
        if status is not None:
            at.client.set_terminated(at.run_id, status, end_time=end_ms)
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(
            f"MLflow at {uri}: {reason_of(error)}; nothing is lost, sync again later"
        ) from error
    finally:
        outbox.close()
    return SyncReport(at.run_id, delivery.points, delivery.operations, delivery.refused)
