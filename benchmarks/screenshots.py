"""The pictures of docs/mlflow.md, taken anew from a comparison of real runs.

    make ui                                                     # in another terminal
    python -m benchmarks.screenshots http://127.0.0.1:5000      # --parent RUN_ID takes another comparison

Needs Chromium and chromedriver on the PATH; shows the newest finished ablation whose members differ in row_p,
and the newest finished study.
"""

import sys
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image

from benchmarks.common import ROOT, given
from dinomaly_hd.runs.pages import artifact_page, charts_page, compare_page, run_page, these_runs
from tests.browser.chromium import Pages, browsing, missing

IMAGES = ROOT / "docs" / "images"
COMPARED = ("row_p", "seg_len", "seg_drop_p")
OF_STUDIES, OBJECTIVE = ("elem_p", "q_percent", "row_context"), "synthetic/domain_C/tpr_at_fpr_1"
COLOURS = 256


class Shown(NamedTuple):
    """What to look at: MLflow's experiment, a parent, and its members, the best first."""

    experiment: str
    parent: str
    members: list[Any]


def study(url: str, *, experiment: str) -> Shown | None:
    """Return the newest finished study with its trials, None where there is none."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=url)
    found = client.get_experiment_by_name(experiment)
    wanted = "tags.kind = 'study' and attributes.status = 'FINISHED'"
    parents = [] if found is None else client.search_runs([found.experiment_id], wanted, max_results=1)
    if found is None or not parents:
        return None
    below = f"tags.kind = 'trial' and tags.sweep = '{parents[0].data.tags['sweep']}'"
    order = [f"metrics.`{OBJECTIVE}` DESC"]
    trials = client.search_runs([found.experiment_id], below, order_by=order)
    return Shown(found.experiment_id, parents[0].info.run_id, list(trials))


def comparison(url: str, *, experiment: str, parent: str | None) -> Shown:
    """Return the comparison asked for, or the newest ablation whose members differ in row_p."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=url)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        sys.exit(f"{url} has no experiment {experiment!r}")
    newest = "tags.kind = 'ablation' and attributes.status = 'FINISHED'"
    parents = (
        [parent] if parent else [run.info.run_id for run in client.search_runs([found.experiment_id], newest)]
    )
    for run_id in parents:
        below = f"tags.`mlflow.parentRunId` = '{run_id}'"
        members = client.search_runs([found.experiment_id], below, order_by=["metrics.`mean/auroc` DESC"])
        if parent or len({run.data.params.get(COMPARED[0]) for run in members}) > 2:
            return Shown(found.experiment_id, run_id, list(members))
    sys.exit(f"{url} has no finished ablation whose members differ in {COMPARED[0]}; name one by --parent")


def look(pages: Pages, shown: Shown) -> Iterator[str]:
    """Open one page after another and yield the name of its picture."""
    ids = [run.info.run_id for run in shown.members]
    best = ids[0]
    charts = charts_page(shown.experiment, which=these_runs(ids))
    pages.open(charts.replace("compareRunsMode=CHART", "compareRunsMode=TABLE"))
    pages.reads(*(run.info.run_name[:12] for run in shown.members[:3]), "matching runs")
    yield "runs"
    pages.open(charts)
    pages.group_by("config")
    pages.only_charts("^(domain_C|mean)/(auroc|tpr_at_fpr_1)$")
    pages.bars(2 * len(ids))
    yield "charts"
    comparable = [run.info.run_id for run in shown.members if set(COMPARED) <= run.data.params.keys()]
    pages.open(compare_page(shown.experiment, comparable))
    pages.compare_parameters(COMPARED, metric="mean/auroc")
    yield "compare"
    pages.open(run_page(shown.experiment, best))
    pages.press("button", "Show more")
    pages.pictures("anomaly_maps")
    yield "run"
    pages.open(run_page(shown.experiment, best).replace("?", "/model-metrics?"))
    pages.only_charts("^maps/")
    pages.pictures("images%2Fmaps~")
    pages.all("[data-component-id=fullscreen_button_chartcard]")[-1].click()
    pages.until(lambda: pages.all("[role=dialog] img"), what="picture in full screen")
    pages.driver.execute_script("document.querySelector('[role=dialog] img').scrollIntoView({block: 'end'})")
    yield "maps"
    pages.open(run_page(shown.experiment, shown.parent))
    pages.press("button", "Show more")
    pages.reads("Reading")
    yield "comparison"
    pages.open(artifact_page(shown.experiment, shown.parent, "report.html"))
    pages.driver.switch_to.frame(pages.first("iframe"))
    pages.pictures("data:image/png")
    pages.driver.execute_script("document.images[0].scrollIntoView({block: 'center'})")
    pages.driver.switch_to.default_content()
    yield "report"


def look_at_study(pages: Pages, shown: Shown) -> Iterator[str]:
    pages.open(run_page(shown.experiment, shown.parent))
    pages.press("button", "Show more")
    pages.reads("Found and known settings")
    yield "study"
    finished = [run for run in shown.members if OBJECTIVE in run.data.metrics]
    ids = [run.info.run_id for run in finished if set(OF_STUDIES) <= run.data.params.keys()]
    pages.open(compare_page(shown.experiment, ids))
    pages.compare_parameters(OF_STUDIES, metric=OBJECTIVE)
    yield "trials"


def main() -> None:
    # experiment: MLflow's; parent: run of the comparison; only: comparison or study
    asked = given(__doc__, first="url", experiment="dinomaly-hd", parent="", only="")
    if (lacking := missing()) is not None:
        sys.exit(lacking)
    searched = study(asked.url, experiment=asked.experiment)
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, browsing(asked.url, output=Path(temporary)) as pages:
        looks = []
        if asked.only != "study":
            shown = comparison(asked.url, experiment=asked.experiment, parent=asked.parent)
            looks.append(look(pages, shown))
        if asked.only != "comparison" and searched is not None:
            looks.append(look_at_study(pages, searched))
        for name in chain.from_iterable(looks):
            target = IMAGES / f"{name}.png"
            with PIL.Image.open(pages.save(name)) as picture:
                picture.convert("RGB").quantize(COLOURS).save(target, optimize=True)
            print(f"{target} {target.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
