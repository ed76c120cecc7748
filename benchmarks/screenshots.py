"""The pictures of docs/mlflow.md: an ablation and a study, run here, and MLflow's pages of them.

    python -m benchmarks.screenshots      # minutes; again, it only takes the pictures

Needs Chromium and chromedriver on the PATH; runs and their store lie in build/screenshots.
"""

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image

from benchmarks.common import ROOT, given, run
from dinomaly_hd.runs.pages import CHARTS, artifact_page, compare_page, run_page, view_key, view_page
from dinomaly_hd.runs.store import client_for
from tests.browser.chromium import Pages, browsing, missing, served

IMAGES, EXPERIMENT = ROOT / "docs" / "images", "dinomaly-hd"
LEARNED = {"preset": "quick", "max_steps": 60}
ABLATION = {"configs": "A0,D,E,F,G", "seeds": "42,43", **LEARNED}
COMPARED = ("row_p", "seg_len", "seg_drop_p")
STUDY = {"study": "tail", "trials": 8, "space": "elem_p,q_percent,row_context", **LEARNED, "max_steps": 20}
OBJECTIVE = "synthetic/domain_C/tpr_at_fpr_1"
OF_STUDY_RUNS = {"elem_p", "q_percent", "row_context"}
ALL_RUNS = view_key("Runs on ABCD")
COLOURS = 256


class Shown(NamedTuple):
    """What to look at: MLflow's experiment, a parent, and the runs below it, the best first."""

    experiment: str
    parent: str
    members: list[Any]


def newest(client: Any, *, kind: str, by: str) -> Shown | None:
    """Return the newest finished parent of a kind and its runs by a metric."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    places = [experiment.experiment_id] if experiment else []
    wanted = f"tags.kind = '{kind}' and attributes.status = 'FINISHED'"
    for parent in client.search_runs(places, wanted, max_results=1) if places else []:
        below = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and metrics.`{by}` >= 0"
        members = client.search_runs(places, below, order_by=[f"metrics.`{by}` DESC"])
        return Shown(places[0], parent.info.run_id, list(members))
    return None


def made(folder: Path, client: Any, entry_point: str, values: dict[str, Any], *, by: str) -> Shown:
    """Return what an entry point left in MLflow; it is run where it has left nothing."""
    kind = "study" if entry_point == "tune" else entry_point
    shown = newest(client, kind=kind, by=by)
    if shown is None:
        run(entry_point, {**values, "result_dir": folder / "results"}, folder=folder)
        shown = newest(client, kind=kind, by=by)
    assert shown is not None, f"{entry_point} left no finished run"
    return shown


def look(pages: Pages, shown: Shown) -> Iterator[str]:
    """Open one page after another and yield the name of its picture."""
    best = shown.members[0].info.run_id
    pages.open(view_page(shown.experiment, ALL_RUNS))
    pages.reads(*(run.info.run_name[:12] for run in shown.members[:3]), "matching runs")
    yield "runs"
    pages.open(view_page(shown.experiment, shown.parent, mode=CHARTS))
    pages.bars(3 * len({run.data.tags["config"] for run in shown.members}))
    yield "charts"
    comparable = [run.info.run_id for run in shown.members if set(COMPARED) <= run.data.params.keys()]
    pages.open(compare_page(shown.experiment, comparable))
    pages.compare_parameters(COMPARED, metric="mean/auroc")
    yield "compare"
    pages.open(run_page(shown.experiment, best))
    pages.press("button", "Show more")
    pages.pictures("anomaly_maps")
    yield "run"
    pages.open(view_page(shown.experiment, ALL_RUNS, mode=CHARTS))
    pages.pictures("images%2Fmaps~")
    pages.into_sight("img[src*='images%2Fmaps~']")
    yield "maps"
    pages.open(run_page(shown.experiment, shown.parent))
    pages.press("button", "Show more")
    pages.reads("Reading")
    yield "comparison"
    pages.open(artifact_page(shown.experiment, shown.parent, "report.html"))
    pages.hide("Path: file:")  # of the machine that takes the picture
    pages.driver.switch_to.frame(pages.first("iframe"))
    pages.pictures("data:image/png")
    yield "report"
    pages.driver.switch_to.default_content()


def look_at_study(pages: Pages, shown: Shown) -> Iterator[str]:
    pages.open(run_page(shown.experiment, shown.parent))
    pages.press("button", "Show more")
    pages.reads("Found and known settings")
    yield "study"
    ids = [run.info.run_id for run in shown.members if run.data.params.keys() >= OF_STUDY_RUNS]
    pages.open(compare_page(shown.experiment, ids))
    pages.compare_parameters(sorted(OF_STUDY_RUNS), metric=OBJECTIVE)
    yield "trials"


def main() -> None:
    folder = given(__doc__, folder=ROOT / "build" / "screenshots").folder
    if (lacking := missing()) is not None:
        sys.exit(lacking)
    for part in (folder, IMAGES):
        part.mkdir(parents=True, exist_ok=True)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = client_for(uri)
    ablation = made(folder, client, "ablation", ABLATION, by="mean/auroc")
    study = made(folder, client, "tune", STUDY, by=OBJECTIVE)
    with served(uri, log=folder / "server.log") as base, browsing(base, output=folder) as pages:
        for name in chain(look(pages, ablation), look_at_study(pages, study)):
            target = IMAGES / f"{name}.png"
            with PIL.Image.open(pages.save(name)) as picture:
                picture.convert("RGB").quantize(COLOURS).save(target, optimize=True)
            print(f"{target} {target.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
