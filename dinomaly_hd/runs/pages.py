"""MLflow's pages: the addresses that answer a question at once, and text that its Markdown shows whole."""

import json
import urllib.parse
from collections.abc import Sequence

# A fresh browser would land on MLflow's GenAI pages.
TRAINING_PAGES = "workflowType=machine_learning"
TRAINING_RUNS = "tags.kind = 'train'"
BEST_FIRST = "metrics.`mean/auroc`"
NOTE_LENGTH = 7800
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
    experiment_id: str,
    run_id: str,
    runs: Sequence[str],
    *,
    what: str,
    sweep: str,
    kind: str,
    report: str | None,
) -> str:
    """Return the first line of a comparison's description: links to what MLflow answers about its members.

    Args:
        experiment_id: Its experiment.
        run_id: The comparison's own run.
        runs: The members, which may be other comparisons' runs; no line where there are none.
        what: What the members are called.
        sweep: Tag of its own members, which stands for them where they are too many to be named.
        kind: Tag that tells members from runs below them.
        report: Artifact of the comparison's own run, if there is one.
    """
    if not runs:
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


def shortened(markdown: str, *, length: int = NOTE_LENGTH) -> str:
    """Cut a text at a blank line, since MLflow cuts a longer one anywhere, mostly in a table."""
    if len(markdown) <= length:
        return markdown
    rest = "\n\n*Cut here; the whole text is the artifact `report.html`.*\n"
    return markdown[: markdown.rfind("\n\n", 0, length - len(rest))] + rest


def _query(**values: str) -> str:
    return urllib.parse.urlencode(values, quote_via=urllib.parse.quote)
