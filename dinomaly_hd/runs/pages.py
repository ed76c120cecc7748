"""MLflow's pages: addresses that answer a question at once, text that they show whole, and reports."""

import json
import tempfile
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dinomaly_hd.errors import TrackingError
from dinomaly_hd.runs.journal import JOURNAL, Journal, Outbox
from dinomaly_hd.runs.mirror import Mirror, mirror
from dinomaly_hd.runs.store import ANSWER_S, client_of_existing, in_one_line, server_answers, shortened

# A fresh browser would land on MLflow's GenAI pages.
TRAINING_PAGES = "workflowType=machine_learning"
TRAINING_RUNS = "tags.kind = 'train'"
BEST_FIRST = "metrics.`mean/auroc`"
MOST_LINKED = 40
"""Runs named one by one in a link, which is part of a description's 8000 characters."""


def run_page(experiment_id: str, run_id: str) -> str:
    """Return a run's page, relative to the address of MLflow's pages as all of these."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{TRAINING_PAGES}"


def charts_page(experiment_id: str, *, which: str = TRAINING_RUNS) -> str:
    """Return the charts of the runs that match MLflow's filter string, highest mean AUROC first.

    Sorted by time, as MLflow does by itself, the page folds all members of a comparison under their parent
    and draws the ten newest parents; sorted by a metric it lists runs one by one.
    """
    asked = _query(compareRunsMode="CHART", searchFilter=which, orderByKey=BEST_FIRST, orderByAsc="false")
    return f"#/experiments/{experiment_id}/runs?{TRAINING_PAGES}&{asked}"


def compare_page(experiment_id: str, run_ids: Sequence[str]) -> str:
    """Return the comparison of these runs: parallel coordinates, parameters that differ, metrics."""
    asked = _query(runs=json.dumps(list(run_ids)), experiments=json.dumps([experiment_id]))
    return f"#/compare-runs?{asked}&{TRAINING_PAGES}"  # MLflow reads the runs only if they come first


def these_runs(run_ids: Sequence[str]) -> str:
    """Return the filter string of these runs."""
    return f"attributes.run_id IN ({', '.join(repr(run_id) for run_id in run_ids)})"


def artifact_page(experiment_id: str, run_id: str, path: str) -> str:
    """Return an artifact as MLflow shows it."""
    return f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/{path}?{TRAINING_PAGES}"


def members_line(
    experiment_id: str | None,
    run_id: str | None,
    runs: Sequence[str],
    *,
    what: str,
    sweep: str,
    kind: str,
    report: str | None,
) -> str:
    """Return the first line of a comparison's description: links to what MLflow answers about its members.

    ``run_id`` is its own run with the artifact ``report``; ``runs`` are its members, called ``what``, and may
    be other comparisons' runs. Too many to be named, they are those of its own with these tags.
    """
    if not runs or experiment_id is None or run_id is None:  # MLflow did not answer
        return ""
    pages = {}
    if len(runs) <= MOST_LINKED:
        pages[f"Charts of its {what}"] = charts_page(experiment_id, which=these_runs(runs))
        pages["Parameters side by side"] = compare_page(experiment_id, runs)
    else:
        members = f"tags.sweep = '{sweep}' and tags.kind = '{kind}'"
        pages[f"Charts of its {what}"] = charts_page(experiment_id, which=members)
    if report is not None:
        pages["Report"] = artifact_page(experiment_id, run_id, report)
    return " · ".join(f"[{name}]({page})" for name, page in pages.items()) + "\n\n"


def artifact_picture(run_id: str, path: str, *, text: str) -> str:
    """Return the Markdown of a picture among a run's artifacts."""
    return f"![{text}](get-artifact?{_query(path=path, run_uuid=run_id)})"


def _query(**values: str) -> str:
    return urllib.parse.urlencode(values, quote_via=urllib.parse.quote)


class LoggedReport(NamedTuple):
    """What MLflow is to hold of a report."""

    folder: Path
    files: Sequence[Path]  # below the folder
    metrics: Mapping[str, float]
    note: str  # the page's description


class ReportRun(NamedTuple):
    """What tells a report's run from others."""

    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]


def log_report(
    report: LoggedReport, run: ReportRun, *, experiment: str, uri: str, root: Path, adopted: str | None
) -> str:
    """Log a report as a new run, or as one that `mlflow run` made, and return its id.

    Where the store does not answer or refuses (TrackingError), `mirror` of the report's folder completes it.
    """
    outbox = Outbox(report.folder)
    outbox.open_run(experiment=experiment, run_name=run.name, tags=dict(run.tags), parent_run_id=None)
    outbox.add("params", params=dict(run.params))
    _note(outbox, report).close()
    outbox.end("FINISHED")
    outbox.close()
    if not server_answers(uri, timeout_s=ANSWER_S):
        raise TrackingError(f"MLflow at {uri} does not answer")
    sent = mirror(report.folder, uri=uri, root=root, adopted=adopted)
    _check(sent.refused, uri)
    return sent.run_id


def add_report(report: LoggedReport, run: ReportRun | None, *, run_id: str, uri: str) -> None:
    """Add a report, and what tells its run from others, to a run, whose state stays as it is."""
    with tempfile.TemporaryDirectory() as temporary:  # the run folder's own notes stay as they are
        outbox = Outbox(Path(temporary))
        if run is not None:
            outbox.add("tags", tags=dict(run.tags))
            outbox.add("params", params=dict(run.params))
        journal = _note(outbox, report)
        with in_one_line(f"MLflow at {uri}"):
            client = client_of_existing(uri)
            copy = Mirror(client, client.get_run(run_id), outbox, journal, folder=report.folder)
            copy.send()
        outbox.close()
        journal.close()
    _check(copy.refused, uri)


def _note(outbox: Outbox, report: LoggedReport) -> Journal:
    """Note everything to send; the report's files by their path below the report."""
    outbox.add("tags", tags={"mlflow.note.content": shortened(report.note)})
    for path in report.files:
        below = path.resolve().relative_to(report.folder.resolve())
        folder = None if below.parent == Path() else below.parent.as_posix()
        outbox.add("artifact", path=str(below), folder=folder)
    journal = Journal(outbox.path.with_name(JOURNAL))
    journal.log(report.metrics, step=0)
    return journal


def _check(refused: int, uri: str) -> None:
    if refused:
        raise TrackingError(f"MLflow at {uri} refused {refused} parts of the report")
