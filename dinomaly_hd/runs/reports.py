"""A report in MLflow: a run of its own, or files and means added to the run of the comparison it is about."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dinomaly_hd.errors import TrackingError, reason_of
from dinomaly_hd.runs.attach import Attachment, attach
from dinomaly_hd.runs.journal import JOURNAL, Journal
from dinomaly_hd.runs.mirror import Mirror
from dinomaly_hd.runs.outbox import Outbox
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

    What is not delivered, `runs.mirror` of the report's folder completes.

    Raises:
        TrackingError: The store does not answer or refuses.
    """
    outbox = Outbox(report.folder)
    outbox.open_run(experiment=experiment, run_name=run.name, tags=dict(run.tags), parent_run_id=None)
    outbox.add("params", params=dict(run.params))
    journal = _noted(outbox, report, at=report.folder)
    outbox.end("FINISHED")
    with _asking(uri):
        at = attach(outbox, uri=uri, root=root, adopted=adopted, resumed=None, live=True)
        copy = Mirror(at, folder=report.folder, journal=journal, outbox=outbox)
        copy.send()
        at.client.set_terminated(at.run_id, "FINISHED")
    _check(copy, uri)
    return at.run_id


def add_report(report: LoggedReport, run: ReportRun | None, *, run_id: str, uri: str) -> None:
    """Add a report, and what tells its run from others, to a run, whose state stays as it is.

    Raises:
        TrackingError: The store does not answer or refuses, or has no such run.
    """
    with tempfile.TemporaryDirectory() as temporary:  # the run folder's own notes stay as they are
        outbox = Outbox(Path(temporary))
        if run is not None:
            outbox.add("tags", tags=dict(run.tags))
            outbox.add("params", params=dict(run.params))
        journal = _noted(outbox, report, at=Path(temporary))
        with _asking(uri):
            client = client_of_existing(uri)
            info = client.get_run(run_id).info
            at = Attachment(client, run_id, info.experiment_id, made=False)
            copy = Mirror(at, folder=report.folder, journal=journal, outbox=outbox)
            copy.send()
        _check(copy, uri)


def _noted(outbox: Outbox, report: LoggedReport, *, at: Path) -> Journal:
    """Note everything to send in the folder ``at``; the report's files by their path below the report."""
    outbox.add("tags", tags={"mlflow.note.content": shortened(report.note)})
    for path in report.files:
        below = path.resolve().relative_to(report.folder.resolve())
        folder = None if below.parent == Path() else below.parent.as_posix()
        outbox.add("artifact", path=str(below), folder=folder)
    journal = Journal(at / JOURNAL)
    journal.log(report.metrics, step=0)
    outbox.close()
    journal.close()
    return journal


@contextmanager
def _asking(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into one line."""
    if not server_answers(uri, timeout_s=ANSWER_S):
        raise TrackingError(f"MLflow at {uri} does not answer")
    try:
        load_mlflow(uri)
        yield
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(f"MLflow at {uri}: {reason_of(error)}") from error


def _check(copy: Mirror, uri: str) -> None:
    if copy.refused:
        raise TrackingError(f"MLflow at {uri} refused {copy.refused} parts of the report")
