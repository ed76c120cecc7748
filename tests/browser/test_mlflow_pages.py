"""MLflow's pages as people see them: our runs in a real `mlflow ui`, looked at with a headless browser.

Every test leaves a screenshot in tests/browser/output/.
"""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from dinomaly_hd.runs.pages import artifact_page, compare_page, run_page, view_page
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
RUNS, HARDEST = "Runs on AC", "domain_C/cold/auroc"
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


def test_the_run_table_opens_with_the_right_columns_the_best_run_first_and_a_map_one_click_away(
    pages: "Pages", recorded: Recorded
) -> None:
    pages.open(view_page(recorded.experiment, RUNS))
    pages.reads(*recorded.members.values(), "3 matching runs")
    columns = ["config", "seed", "mean/auroc", "domain_C/auroc", HARDEST]
    assert pages.columns()[:7] == ["Run Name", "Created", *columns]
    shown = pages.cells("metrics.`mean/auroc`")
    assert len(shown) == len(CONFIGS)
    assert shown == sorted(shown, key=float, reverse=True)
    assert all(len(text) <= len("0.1234") for text in shown)
    pages.press("label:has(input[value=CHART])", "")
    pages.reads("maps/domain_A", "maps/domain_C")
    assert pages.pictures("images%2Fmaps~domain_")
    assert not {"seg_len", "encoder_weights"} & set(pages.words()), "no wall of parameters above it"


def test_a_comparison_s_page_begins_with_its_answer_and_leads_to_charts(
    pages: "Pages", recorded: Recorded
) -> None:
    pages.open(run_page(recorded.experiment, recorded.parent))
    pages.reads("Nothing can be concluded: fewer than 3 seeds")
    pages.press("button", "Show more")
    pages.press("a", "Charts of its runs")
    with pages.in_new_tab():
        pages.bars(3 * len(CONFIGS))
        pages.reads("Group by: config", "Group: ", "mean/auroc", "3 matching runs")
        assert "train" not in pages.words(), "no wall of charts"
        pages.save("answer_of_a_comparison")


def test_configs_stand_above_their_seeds_in_the_table_of_a_comparison(
    pages: "Pages", recorded: Recorded
) -> None:
    pages.open(view_page(recorded.experiment, recorded.parent))
    pages.reads(*(f"Group: cfg-{config}" for config in CONFIGS), *recorded.members.values())


def test_pages_of_runs_are_not_walls_and_do_not_overflow(pages: "Pages", recorded: Recorded) -> None:
    for run_id in (recorded.member, recorded.parent):
        pages.open(run_page(recorded.experiment, run_id))
        pages.press("button", "Show more")
        pages.reads("Metrics (", "Parameters (", "Tags")
        counts = dict(re.findall(r"(Metrics|Parameters) \((\d+)\)", " ".join(pages.words())))
        assert int(counts["Metrics"]) <= 60
        assert int(counts["Parameters"]) <= 70
        for part in ("[data-testid=note-view-outer-container] *", "[data-testid^=key-value]"):
            assert pages.right_edge(part) <= pages.width


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
    pages.reads("Table of its runs", "Charts of its runs", "Parameters side by side")
    assert len(pages.all("table")) >= note.count("|---|") > 1
