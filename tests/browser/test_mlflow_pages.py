"""MLflow's pages as people see them: our runs in a real `mlflow ui`, looked at with a headless browser.

Every test leaves a screenshot in tests/browser/output/.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from dinomaly_hd.runs.pages import artifact_page, charts_page, compare_page, run_page
from dinomaly_hd.runs.store import client_for

from ..contract.conftest import SETTINGS, project
from ..contract.light_runs import runs_in, without_pictures

if TYPE_CHECKING:
    from .chromium import Pages

try:
    from .chromium import browsing, missing, served

    LACKING = missing()
except ImportError as error:
    LACKING = str(error)

pytestmark = [pytest.mark.browser, pytest.mark.skipif(LACKING is not None, reason=str(LACKING))]

OUTPUT = Path(__file__).parent / "output"
CONFIGS = (
    "F:row_p=0.1:seg_len=1:q_percent=1",
    "F:row_p=0.2:seg_len=2:q_percent=2",
    "F:row_p=0.3:seg_len=3:q_percent=5",
)
COMPARED = ("row_p", "seg_len", "q_percent")
SMALL = {**SETTINGS, "image_size": "32", "domains": "A,C"}


class Recorded(NamedTuple):
    """A finished comparison in a store of its own, by MLflow's ids; ``members`` are names by run."""

    uri: str
    experiment: str
    parent: str
    members: dict[str, str]

    @property
    def member(self) -> str:
        return next(iter(self.members))


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Recorded:
    """Compare three tiny runs of two steps, each with other values of the parameters compared."""
    from dinomaly_hd.config.resolve import resolve_config
    from dinomaly_hd.experiments.protocols import run_ablation

    root = tmp_path_factory.mktemp("pages")
    with project(root, empty_store) as context, pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)  # of figures: maps are drawn
        run_ablation(
            CONFIGS,
            (42,),
            context,
            build=lambda config, _: resolve_config(config, SMALL),
        )
        (parent,), runs = runs_in(context, "ablation"), runs_in(context, "train")
    members = {run.info.run_id: run.info.run_name for run in runs}
    assert len(members) == len(CONFIGS)
    uri = f"sqlite:///{root / 'mlflow.db'}"
    return Recorded(uri, parent.info.experiment_id, parent.info.run_id, members)


@pytest.fixture(scope="session")
def browser(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Pages]":
    """Serve the store and open a browser on it."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with served(recorded.uri, log=log) as base, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ResourceWarning, module="selenium")
        with browsing(base, output=OUTPUT) as pages:
            yield pages


@pytest.fixture
def pages(browser: "Pages", request: pytest.FixtureRequest) -> "Iterator[Pages]":
    """Leave a screenshot of how the test ends, and say where it is: pytest shows that when the test fails."""
    yield browser
    print(f"screenshot: {browser.save(request.node.name.removeprefix('test_'))}")


def test_the_run_table_lists_the_runs_by_label(pages: "Pages", recorded: Recorded) -> None:
    charts = charts_page(recorded.experiment)
    pages.open(charts.replace("compareRunsMode=CHART", "compareRunsMode=TABLE"))
    pages.reads(*recorded.members.values(), "3 matching runs")


def test_bars_stand_for_configs_and_none_for_the_parent(pages: "Pages", recorded: Recorded) -> None:
    pages.open(charts_page(recorded.experiment))
    pages.group_by("config")
    pages.only_charts("^domain_C/auroc$")
    pages.bars(len(CONFIGS))
    pages.reads("domain_C/auroc", "3 matching runs")


def test_parameters_are_compared_on_parallel_coordinates(pages: "Pages", recorded: Recorded) -> None:
    pages.open(compare_page(recorded.experiment, list(recorded.members)))
    assert pages.compare_parameters(COMPARED, metric="domain_C/auroc") == [*COMPARED, "domain_C/auroc"]


def test_an_anomaly_map_is_seen_on_the_page_of_its_run(pages: "Pages", recorded: Recorded) -> None:
    pages.open(run_page(recorded.experiment, recorded.member))
    pages.press("button", "Show more")
    (picture,) = pages.pictures("anomaly_maps")
    assert picture["width"] > 300
    cells = [row.text for row in pages.all("table td")]
    assert "domain_C" in cells, "the table of results is Markdown that MLflow understands"


def test_the_image_grid_shows_the_maps_of_each_domain(pages: "Pages", recorded: Recorded) -> None:
    pages.open(run_page(recorded.experiment, recorded.member).replace("?", "/model-metrics?"))
    pages.only_charts("^maps/")  # which lets pictures through, whatever it is
    pages.reads("maps/domain_A", "maps/domain_C")
    assert pages.pictures("images%2Fmaps~domain_")


def test_the_report_of_a_comparison_opens_among_its_artifacts(pages: "Pages", recorded: Recorded) -> None:
    pages.open(artifact_page(recorded.experiment, recorded.parent, "report.html"))
    pages.driver.switch_to.frame(pages.first("iframe"))
    try:
        pages.reads("Ablation of 3 configs", "Reading", "Pictures")
        assert all(picture["width"] > 300 for picture in pages.pictures("data:image/png"))
        pages.press("label", "Pictures")  # its contents, in a frame where no link works
        pages.until(lambda: pages.driver.execute_script("return scrollY > 300"), what="way to the pictures")
    finally:
        pages.driver.switch_to.default_content()


def test_all_tables_of_a_comparison_are_tables_in_its_description(pages: "Pages", recorded: Recorded) -> None:
    note = client_for(recorded.uri).get_run(recorded.parent).data.tags["mlflow.note.content"]
    pages.open(run_page(recorded.experiment, recorded.parent))
    pages.press("button", "Show more")
    pages.reads("Charts of its runs", "Parameters side by side")
    assert len(pages.all("table")) >= note.count("|---|") > 1
