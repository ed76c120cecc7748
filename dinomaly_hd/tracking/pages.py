"""MLflow's pages: the addresses that answer a question at once, and text that its Markdown shows whole."""

import json
import urllib.parse
from collections.abc import Sequence

# A fresh browser would land on MLflow's GenAI pages.
TRAINING_PAGES = "workflowType=machine_learning"
TRAINING_RUNS = "tags.kind = 'train'"
BEST_FIRST = "metrics.`mean/auroc`"
NOTE_LENGTH = 7800


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
