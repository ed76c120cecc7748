"""MLflow's pages: addresses that answer a question at once, text that they show whole, and reports."""

import json
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

from dinomaly_hd.runs import store
from dinomaly_hd.runs.journal import now_ms

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
    be other comparisons' runs. Too many to be named, they are those of its own with these tags. Where MLflow
    has no run, there is nothing to link to: "".
    """
    if experiment_id is None or run_id is None or not runs:
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


def add_report(
    run_id: str,
    folder: Path,
    files: Sequence[Path],
    *,
    uri: str,
    note: str,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    params: Mapping[str, str],
) -> None:
    """Add a report's files to a run, whose state stays as it is, and the figures that it has not yet."""
    with store.in_one_line(f"MLflow at {uri}"):
        client = store.client_of_existing(uri)
        from mlflow.entities import Metric

        data = client.get_run(run_id).data
        store.log_params(client, run_id, params, known=data.params)
        store.send_tags(client, run_id, {**tags, store.NOTE_TAG: store.shortened(note)})
        named = {store.entity_name(key): value for key, value in metrics.items()}
        differ = {name: value for name, value in named.items() if data.metrics.get(name) != value}
        new = [Metric(name, value, now_ms(), 0) for name, value in differ.items()]
        for start in range(0, len(new), store.METRICS_PER_CALL):
            client.log_batch(run_id, metrics=new[start : start + store.METRICS_PER_CALL])
        for path in files:
            client.log_artifact(run_id, str(path), artifact_folder(path, below=folder))


def artifact_folder(path: Path, *, below: Path) -> str | None:
    """Return where a file of a run folder goes among the run's artifacts, None for their top."""
    folder = path.parent.relative_to(below)
    return None if folder == Path() else folder.as_posix()
