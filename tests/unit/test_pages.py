"""Addresses of MLflow's pages, and descriptions that MLflow does not cut in the middle."""

import json
from urllib.parse import parse_qs, unquote

import pytest

from dinomaly_hd.runs.pages import (
    MOST_LINKED,
    artifact_picture,
    charts_page,
    compare_page,
    members_line,
    these_runs,
)
from dinomaly_hd.runs.store import NOTE_LENGTH, shortened


def test_charts_list_runs_one_by_one_and_no_parents():
    page, _, query = charts_page("7").partition("?")
    asked = parse_qs(query)
    assert page == "#/experiments/7/runs"
    assert asked["searchFilter"] == ["tags.kind = 'train'"]
    assert asked["orderByKey"] == ["metrics.`mean/auroc`"], "by time, members are folded under their parents"
    assert asked["workflowType"] == ["machine_learning"]


def test_a_comparison_names_its_runs_before_anything_else():
    page, _, query = compare_page("7", ["a", "b"]).partition("?")
    assert page == "#/compare-runs"
    assert query.startswith("runs="), "MLflow finds them nowhere else"
    assert json.loads(parse_qs(query)["runs"][0]) == ["a", "b"]
    assert these_runs(["a", "b"]) == "attributes.run_id IN ('a', 'b')"


@pytest.mark.parametrize(("count", "named"), [(1, True), (MOST_LINKED, True), (MOST_LINKED + 1, False)])
def test_members_are_named_one_by_one_as_long_as_the_line_leaves_room_for_the_note(count: int, named: bool):
    runs = [f"{number:032x}" for number in range(count)]
    line = members_line("7", "own", runs, what="trials", sweep="s1", kind="trial", report="report.html")
    assert len(line) < 0.6 * NOTE_LENGTH
    assert line.endswith("\n\n")
    text = unquote(line)
    assert all((run in text) == named for run in runs)
    assert ("tags.sweep = 's1' and tags.kind = 'trial'" in text) != named
    assert "[Charts of its trials](#/experiments/7" in text
    assert "[Report](#/experiments/7/runs/own/artifacts/report.html?" in text


def test_a_comparison_without_runs_has_no_line():
    assert members_line("7", "own", [], what="runs", sweep="s", kind="train", report="report.html") == ""


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
