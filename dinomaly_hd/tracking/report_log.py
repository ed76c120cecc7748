"""A report in MLflow: a run of its own, or files and means added to the run of the comparison it is about."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dinomaly_hd.errors import TrackingError, reason_of
from dinomaly_hd.runs.journal import Journal
from dinomaly_hd.tracking.attach import attach
from dinomaly_hd.tracking.delivery import Delivery
from dinomaly_hd.tracking.outbox import OUTBOX_NAME, Outbox
from dinomaly_hd.runs.pages import shortened
from dinomaly_hd.runs.search import ANSWER_S, client_of_existing
from dinomaly_hd.runs.store import load_mlflow, server_answers


class LoggedReport(NamedTuple):
    """What MLflow is to hold of a report: files below ``folder``, metrics, and the page's description."""

    folder: Path
    files: Sequence[Path]
    metrics: Mapping[str, float]
    note: str


class ReportRun(NamedTuple):
    """What tells a report's run from others."""

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]


def log_report(
    report: LoggedReport, run: ReportRun, *, experiment: str, uri: str, root: Path, adopted: str | None
) -> str:
    """Log a report as a new run, or as one that `mlflow run` made, and return its id.

    What is not delivered, a sync of the report's folder completes.

    Raises:
        TrackingError: The store does not answer or refuses.
    """
    outbox = Outbox(report.folder / OUTBOX_NAME)
    outbox.open_run(experiment=experiment, run_name=run.name, tags=run.tags, parent_run_id=None)
    outbox.add("params", {"params": dict(run.params)})
    journal = _fill(outbox, report, at=report.folder)
    outbox.end("FINISHED")

    def deliver() -> Delivery:
        at = attach(outbox, uri=uri, root=root, adopted=adopted, resumed=None, live=True)
        delivery = _send(Delivery(at.client, at.run_id, journal=journal, outbox=outbox))
        at.client.set_terminated(at.run_id, "FINISHED")
        return delivery

    return _delivered(deliver, uri=uri).run_id


def add_report(report: LoggedReport, run: ReportRun | None, *, run_id: str, uri: str) -> None:
    """Add a report, and what tells its run from others, to a run, whose state stays as it is.

    Raises:
        TrackingError: The store does not answer or refuses, or has no such run.
    """
    with tempfile.TemporaryDirectory() as temporary:
        outbox = Outbox(Path(temporary) / OUTBOX_NAME)
        if run is not None:
            outbox.add("tags", {"tags": dict(run.tags)})
            outbox.add("params", {"params": dict(run.params)})
        journal = _fill(outbox, report, at=Path(temporary))

        def deliver() -> Delivery:
            client = client_of_existing(uri)
            client.get_run(run_id)
            delivery = Delivery(client, run_id, journal=journal, outbox=outbox, folder=report.folder)
            return _send(delivery)

        _delivered(deliver, uri=uri)


def _fill(outbox: Outbox, report: LoggedReport, *, at: Path) -> Journal:
    """Note everything to send in the folder ``at``; the report's files by their path below the report."""
    base = report.folder.resolve()
    outbox.add("tags", {"tags": {"mlflow.note.content": shortened(report.note)}})
    for path in report.files:
        below = path.resolve().relative_to(base)
        outbox.add(
            "artifact",
            {"path": str(below), "folder": None if below.parent == Path() else below.parent.as_posix()},
        )
    journal = Journal(at / "journal.jsonl")
    journal.log(report.metrics, step=0)
    outbox.close()
    journal.close()
    return journal


def _send(delivery: Delivery) -> Delivery:
    delivery.send_metrics()
    delivery.send_operations()
    return delivery


def _delivered(deliver: Callable[[], Delivery], *, uri: str) -> Delivery:
    """Call ``deliver`` and turn what MLflow raises or refuses into one line."""
    if not server_answers(uri, timeout_s=ANSWER_S):
        raise TrackingError(f"MLflow at {uri} does not answer")
    try:
        load_mlflow(uri)
        delivery = deliver()
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(f"MLflow at {uri}: {reason_of(error)}") from error
    if delivery.refused:
        raise TrackingError(f"MLflow at {uri} refused {delivery.refused} parts of the report")
    return delivery
