"""A run's page says first, in words, what its figures say, and shows the maps that tell most."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinomaly_hd.evaluation.metrics import Threshold
from dinomaly_hd.evaluation.plots import encode_png
from dinomaly_hd.evaluation.report import summary_lines
from dinomaly_hd.evaluation.results import evaluate
from dinomaly_hd.evaluation.run_page import run_page, verdict
from dinomaly_hd.files import publish
from tests.work import made_up_scores

DOMAINS = ("domain_A", "domain_B", "domain_C", "domain_D")
EFFECTS = {"domain_A": 9.0, "domain_B": 0.5, "domain_C": -1.0, "domain_D": 0.0}


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """A is perfect, B in part, C chance (its cold maps alone are worse), D has no faults."""
    table = made_up_scores(DOMAINS, count=30)
    table = table[(table["domain"] != "domain_D") | (table["label"] == 0)].reset_index(drop=True)
    table["score"] += table["label"] * table["domain"].map(EFFECTS)
    table["trivial/max"] = table["label"] * (table["domain"] == "domain_C").astype(float)
    table["trivial/scan"] = table["label"].astype(float)
    thresholds = {name: Threshold("normal_quantile", 2.0, optimistic=False, source="") for name in DOMAINS}
    return evaluate(table, normal_thresholds=thresholds, seed=0, draws=200)


def test_the_verdict_says_where_faults_are_found_what_is_better_and_how_many_alarms_there_are(
    result: dict[str, Any],
):
    text = verdict(result)
    a, b, c = (
        f"domain_{n} ({100 * result['per_domain_metrics'][f'domain_{n}']['auroc']:.1f} %)" for n in "ABC"
    )
    assert text.startswith(f"Faults are found on {a}; found in part on {b}; not shown to be found on {c}; ")
    cold = result["per_domain_metrics"]["domain_C"]["by_condition"]["cold"]
    assert (
        f"Cold maps of domain_C by themselves: not shown to be found (AUROC {100 * cold['auroc']:.1f} %"
        in text
    )
    assert "Simple scores with a higher AUROC: max on domain_C; scan on domain_B, domain_C." in text
    calls = result["overall_pooled_metrics"]["confusion"]
    alarms = f"{calls['fp']} of 240 healthy maps raise a false alarm, and {calls['tp']} of 180 faults are"
    assert text.endswith(f"At the thresholds {alarms} called so.")
    assert f"At the thresholds {alarms} called so" in summary_lines(result)
    none = verdict({**result, "trivial": {"max": {name: {"auroc": 0.0} for name in DOMAINS}}})
    assert "Simple scores with a higher AUROC: none on any domain." in none


def test_the_page_has_its_verdict_then_contents_then_maps_of_the_hardest_domain_first(
    result: dict[str, Any], tmp_path: Path
):
    pixels = encode_png(np.zeros((4, 4, 3), np.uint8))
    for domain in DOMAINS[:3]:
        for name in (
            "fault_highest_01_x",
            "fault_highest_02_y",
            "fault_lowest_09_z",
            "good_highest_01_x",
            "fault_first_01_q",
        ):
            publish(tmp_path / "maps" / domain / f"{name}.png", lambda stream: stream.write(pixels))
    maps = {name: tmp_path / "maps" / name for name in DOMAINS}
    page = run_page(result, title="<run>", facts={"command": "x"}, plots=tmp_path / "none", maps=maps)
    assert "<h1>&lt;run&gt;</h1>" in page
    assert page.index(verdict(result)) < page.index('class="contents"') < page.index("<h2>")
    titles = re.findall(r"<h2><input .*?>(.*?)</h2>", page)
    assert titles == ["Maps", "Results", "Without a network", "Curves", "Settings"]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert [caption.partition(":")[0] for caption in captions] == [
        n for n in ("domain_C", "domain_B", "domain_A") for _ in range(3)
    ]
    assert captions[1] == "domain_C: the fault with the lowest score"
