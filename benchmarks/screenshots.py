"""The pictures of docs/mlflow.md, taken anew from a comparison of real runs.

    make ui                                                     # in another terminal
    python -m benchmarks.screenshots http://127.0.0.1:5000      # --parent RUN_ID takes another comparison

Needs Chromium and chromedriver on the PATH; shows the newest finished ablation whose members differ in row_p,
and the newest finished study.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image

from benchmarks.common import ROOT, given
from dinomaly_hd.runs.pages import artifact_page, charts_page, compare_page, run_page, these_runs
from dinomaly_hd.runs.store import client_for
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


def newest(client: Any, name: str, *, kind: str, by: str, parent: str = "") -> Iterator[Shown]:
    """Yield finished parents of a kind, the newest first, or the one asked for; members by a metric."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        sys.exit(f"MLflow has no experiment {name!r}")
    find = partial(client.search_runs, [experiment.experiment_id])
    wanted = f"tags.kind = '{kind}' and attributes.status = 'FINISHED'"
    for run in [client.get_run(parent)] if parent else find(wanted):
        below = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
        if kind == "study":  # trials of all who worked at it
            below = f"tags.kind = 'trial' and tags.sweep = '{run.data.tags['sweep']}'"
        members = list(find(below, order_by=[f"metrics.`{by}` DESC"]))
        yield Shown(experiment.experiment_id, run.info.run_id, members)


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


def _compares(shown: Shown) -> bool:
    return len({run.data.params.get(COMPARED[0]) for run in shown.members}) > 2


def main() -> None:
    # experiment: MLflow's; parent: run of the comparison; only: comparison or study
    asked = given(__doc__, first="url", experiment="dinomaly-hd", parent="", only="")
    if (lacking := missing()) is not None:
        sys.exit(lacking)
    find = partial(newest, client_for(asked.url), asked.experiment)
    looks: list[Callable[[Pages], Iterator[str]]] = []
    if asked.only != "study":
        ablations = find(kind="ablation", by="mean/auroc", parent=asked.parent)
        shown = next((one for one in ablations if asked.parent or _compares(one)), None)
        if shown is None:
            sys.exit(f"no finished ablation whose members differ in {COMPARED[0]}; name one by --parent")
        looks.append(partial(look, shown=shown))
    if asked.only != "comparison":
        looks += [partial(look_at_study, shown=one) for one in islice(find(kind="study", by=OBJECTIVE), 1)]
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, browsing(asked.url, output=Path(temporary)) as pages:
        for name in chain.from_iterable(one(pages) for one in looks):
            target = IMAGES / f"{name}.png"
            with PIL.Image.open(pages.save(name)) as picture:
                picture.convert("RGB").quantize(COLOURS).save(target, optimize=True)
            print(f"{target} {target.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
