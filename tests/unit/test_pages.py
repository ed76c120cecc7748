"""Addresses of MLflow's pages, and descriptions that MLflow does not cut in the middle."""

import json
import re
from urllib.parse import parse_qs, unquote

import pytest

from dinomaly_hd.runs.pages import (
    MOST_LINKED,
    artifact_picture,
    compare_page,
    members_line,
    shown_of_detectors,
    these_runs,
    view,
    view_key,
    view_page,
    view_tag,
)
from dinomaly_hd.runs.store import NOTE_LENGTH, shortened


def test_a_view_shows_what_says_most_first_and_draws_no_other_charts():
    shown = shown_of_detectors(["domain_B", "domain_C"])
    content, grouped = (view("tags.kind = 'train'", group_by=by, **shown) for by in (None, "config"))
    figures = ["mean/auroc", "domain_C/auroc", "domain_C/cold/auroc", "domain_B/auroc"]
    columns = ["tags.`config`", "params.`seed`", *(f"metrics.`{name}`" for name in figures)]
    assert content["selectedColumns"][: len(columns)] == columns == content["columnOrder"][: len(columns)]
    assert len(set(content["selectedColumns"])) == 8, "two figures of each domain, and none twice"
    assert (content["orderByKey"], content["orderByAsc"]) == ("metrics.`mean/auroc`", False)
    cards = content["compareRunCharts"]
    assert [card["metricKey"] for card in cards if card["type"] == "BAR"] == figures[:3]
    assert [card["imageKeys"] for card in cards if card["type"] == "IMAGE"] == [
        ["maps/domain_B"],
        ["maps/domain_C"],
    ]
    assert not any(card.get("showRunParams") for card in cards)
    assert grouped["compareRunCharts"] == cards[:3], "groups have no pictures"
    assert grouped["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "config"}]
    drawn = re.compile(content["chartsSearchFilter"])
    assert all(drawn.search(name) for name in (*figures[:3], "maps/domain_B"))
    assert not any(drawn.search(name) for name in ("domain_B/auroc", "train/loss", "mean/auroc_low"))
    assert shown_of_detectors(["wheel"])["charts"] == ["mean/auroc", "mean/cold/auroc"]
    many = shown_of_detectors([f"{number:0100d}" for number in range(90)])
    text = json.dumps(view("x", group_by=None, **many))
    assert len(view_tag({"state": text}, name="all", run_id="")[1]) < 20_000, "what MLflow takes of a tag"


def test_a_view_has_the_key_that_its_link_asks_for_and_nothing_else_is_asked():
    long = "Runs on " + "+".join(f"wheel {number}'" for number in range(60))
    for name, key in (("Runs on ABCD", "Runs on ABCD"), (None, "r1"), (long, view_key(long))):
        tag, text = view_tag({"searchFilter": "x"}, name=name, run_id="r1")
        page, _, query = view_page("7", key).partition("?")
        assert page == "#/experiments/7/runs"
        asked = parse_qs(query)
        assert asked.keys() == {"workflowType", "compareRunsMode", "viewStateShareKey"}
        assert tag == "mlflow.sharedViewState." + asked["viewStateShareKey"][0]
        assert len(tag) <= 250
        assert (json.loads(text).get("name"), "state" in json.loads(text)) == (name, name is not None)


def test_a_comparison_names_its_runs_before_anything_else():
    page, _, query = compare_page("7", ["a", "b"]).partition("?")
    assert page == "#/compare-runs"
    assert query.startswith("runs="), "MLflow finds them nowhere else"
    assert json.loads(parse_qs(query)["runs"][0]) == ["a", "b"]


@pytest.mark.parametrize(("count", "named"), [(1, True), (MOST_LINKED, True), (MOST_LINKED + 1, False)])
def test_members_are_named_one_by_one_as_long_as_the_line_leaves_room_for_the_note(count: int, named: bool):
    runs = [f"{number:032x}" for number in range(count)]
    line = members_line("7", "own", runs, what="trials", report="report.html")
    assert len(line) < 0.6 * NOTE_LENGTH
    assert line.endswith("\n\n")
    text, which = unquote(line), these_runs(runs, sweep="s1", kind="trial")
    assert all((run in text) == named == (run in which) for run in runs)
    assert (which == "tags.sweep = 's1' and tags.kind = 'trial'") != named
    assert "[Charts of its trials](#/experiments/7" in text
    assert "[Report](#/experiments/7/runs/own/artifacts/report.html?" in text


def test_a_comparison_without_runs_has_no_line():
    assert members_line("7", "own", [], what="runs", report="report.html") == ""


def test_a_picture_is_addressed_relative_to_the_page():
    picture = artifact_picture("r1", "anomaly_maps/domain_C/x y.png", text="C")
    assert picture.startswith("![C](get-artifact?")
    assert " " not in picture
    assert unquote(picture).endswith("path=anomaly_maps/domain_C/x y.png&run_uuid=r1)")


def test_a_long_description_ends_between_two_blocks_and_says_where_the_rest_is():
    block = "| a | b |\n|---|---|\n| 1 | 2 |"
    assert shortened(block) == block
    text = "\n\n".join([block] * 1000)
    cut = shortened(text)
    assert NOTE_LENGTH - 200 < len(cut) <= NOTE_LENGTH
    assert cut.count(block) == cut.count("|---|---|")
    assert cut.endswith("`report.html`.*\n")
    assert shortened("It:\n\n    python -m x\n") == "It:\n\n`python -m x`\n"
    assert shortened("| cfg-F:gem_p=2 | 10:30 |\n|---|---:|") == "| cfg-F:<br>gem_p=2 | 10:30 |\n|---|---:|"
    assert shortened(f"`{'a' * 64} {'b' * 70}`") == f"`{'a' * 64} {'b' * 64}`<br>`{'b' * 6}`"
