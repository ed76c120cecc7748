"""MLflow's pages: addresses that answer a question at once, text that they show whole, and reports.

`python -m dinomaly_hd.runs.pages` prints those of a store's experiments.
"""

import contextlib
import json
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinomaly_hd.errors import TrackingError
from dinomaly_hd.runs import store
from dinomaly_hd.runs.journal import now_ms

# A fresh browser would land on MLflow's GenAI pages.
TRAINING_PAGES = "workflowType=machine_learning"
LOCAL_UI = "http://127.0.0.1:5000"
VIEWS = "mlflow.sharedViewState."
"""Begins the name of an experiment's tag that holds what "Save view" of the run table would write."""
TABLE, CHARTS = "TABLE", "CHART"
HARD_DOMAIN = "domain_C"
MOST_DOMAINS = 12  # in a view: MLflow refuses a tag of more than 20,000 characters
LONGEST_KEY = 200
MOST_LINKED = 40
"""Runs named one by one in a link, which is part of a description's 8000 characters."""


def run_page(experiment_id: str, run_id: str) -> str:
    """Return a run's page, relative to the address of MLflow's pages as all of these."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{TRAINING_PAGES}"


def view_page(experiment_id: str, key: str, *, mode: str = TABLE) -> str:
    """Return the runs of a view, as a table or as charts; MLflow obeys a view if nothing else is asked."""
    asked = _query(compareRunsMode=mode, viewStateShareKey=key)
    return f"#/experiments/{experiment_id}/runs?{TRAINING_PAGES}&{asked}"


def shown_of_detectors(domains: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of `view` for training runs: what says most comes first."""
    hard = HARD_DOMAIN if HARD_DOMAIN in domains else "mean"
    charts = list(dict.fromkeys(["mean/auroc", f"{hard}/auroc", f"{hard}/cold/auroc"]))
    domains = domains[:MOST_DOMAINS]
    each = [f"{domain}/{figure}" for domain in domains for figure in ("auroc", "tpr_at_fpr_1")]
    columns = {"tags": ["config"], "params": ["seed"], "metrics": [*dict.fromkeys([*charts, *each])]}
    return {"columns": columns, "charts": charts, "images": [f"maps/{domain}" for domain in domains]}


def view(
    which: str,
    *,
    columns: Mapping[str, Sequence[str]],
    charts: Sequence[str],
    images: Sequence[str],
    group_by: str | None,
) -> dict[str, Any]:
    """Return what MLflow's table and charts show of the runs that match its filter string, best first.

    ``columns`` are names by "tags", "params" and "metrics", the first metric that which is sorted by;
    ``charts`` are metrics, one bar a run or a group with the same tag ``group_by``; ``images`` are left out
    where runs are grouped.
    """
    charts = [*map(store.entity_name, charts)]
    images = [] if group_by else [*map(store.image_name, images)]  # MLflow would say that it found none
    keys = {f"{kind}.`{store.entity_name(name)}`": name for kind, names in columns.items() for name in names}
    cards: list[dict[str, Any]] = [{"type": "BAR", "metricKey": name} for name in charts]
    cards += [{"type": "IMAGE", "imageKeys": [name], "step": 0, "showRunParams": False} for name in images]
    grouped = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": group_by}]}
    return {
        "searchFilter": which,
        "orderByKey": next(key for key in keys if key.startswith("metrics.")),
        "orderByAsc": False,
        "selectedColumns": list(keys),
        "columnOrder": list(keys),
        "columnWidths": {key: 40 + 7 * len(name) for key, name in keys.items()},
        "runsHiddenMode": "FIRST_20_RUNS",
        "groupBy": grouped if group_by else None,
        "compareRunCharts": [
            {"uuid": name, "displayName": name, "metricSectionId": "first", "runsCountToCompare": 20} | card
            for name, card in zip([*charts, *images], cards, strict=True)
        ],
        "compareRunSections": [{"uuid": "first", "name": "At a glance", "display": True}],
        # MLflow adds a chart for every other metric, by the alphabet.
        "chartsSearchFilter": f"^({'|'.join(map(re.escape, charts))}|maps/.*)$",
    }


def view_tag(content: Mapping[str, Any], *, name: str | None, run_id: str) -> tuple[str, str]:
    """Return the experiment's tag that holds a view: of its name, in MLflow's list of them, or of a run."""
    text = json.dumps(content)
    if name is None:
        return f"{VIEWS}{run_id}", text
    saved = {"name": name, "createdAt": now_ms(), "updatedAt": now_ms(), "state": text}
    return f"{VIEWS}{view_key(name)}", json.dumps(saved)


def view_key(name: str) -> str:
    return store.entity_name(name)[:LONGEST_KEY]


def compare_page(experiment_id: str, run_ids: Sequence[str]) -> str:
    """Return the comparison of these runs: parallel coordinates, parameters that differ, metrics."""
    asked = _query(runs=json.dumps(list(run_ids)), experiments=json.dumps([experiment_id]))
    return f"#/compare-runs?{asked}&{TRAINING_PAGES}"  # MLflow reads the runs only if they come first


def these_runs(run_ids: Sequence[str], *, sweep: str, kind: str) -> str:
    """Return the filter string of a comparison's runs, which may be others'; too many are its own only."""
    if len(run_ids) > MOST_LINKED:
        return f"tags.sweep = '{sweep}' and tags.kind = '{kind}'"
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
    report: str | None,
) -> str:
    """Return the first line of a comparison's description: links to what MLflow answers about its members.

    ``run_id`` is its own run with the artifact ``report``, and the key of its view; ``runs`` are its members,
    called ``what``. Where MLflow has no run, there is nothing to link to: "".
    """
    if experiment_id is None or run_id is None or not runs:
        return ""
    pages = {
        f"Table of its {what}": view_page(experiment_id, run_id),
        f"Charts of its {what}": view_page(experiment_id, run_id, mode=CHARTS),
    }
    if len(runs) <= MOST_LINKED:
        pages["Parameters side by side"] = compare_page(experiment_id, runs)
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


def main() -> None:
    """Print where to begin: the named views of every experiment, for `make ui`."""
    found = [f"#/experiments?{TRAINING_PAGES}"]
    with contextlib.suppress(TrackingError):  # no run yet
        client = store.client_of_existing(store.default_uri(Path.cwd()))
        tags = [(one.experiment_id, *tag) for one in client.search_experiments() for tag in one.tags.items()]
        named = [(own, key) for own, key, text in tags if key.startswith(VIEWS) and '"name"' in text[:9]]
        found += [view_page(own, key.removeprefix(VIEWS)) for own, key in named]
    print("open", *(f"{LOCAL_UI}/{page}" for page in found), sep="\n  ")


if __name__ == "__main__":
    main()
