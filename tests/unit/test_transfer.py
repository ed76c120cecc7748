"""Transfer figures against numbers worked out by hand; what has no figure is named, never 0."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.evaluation.metrics import Threshold
from dinomaly_hd.evaluation.report import flat_metrics, render
from dinomaly_hd.evaluation.results import evaluate
from dinomaly_hd.evaluation.transfer import pairs_picture, pairs_pictures, transfer_of, transfer_table

AT_3 = Threshold("normal_quantile", 3.0, False, "held-out normals")
LABEL = [0, 0, 1, 1]
ONE_CLASS = ([1.0, 2.0, 5.0], [0, 0, 0])
# Of 2 good and 2 fault images: all 4 pairs in order, 3 of 4, 1 of 4.
A, B, C = ([1.0, 2.0, 3.0, 4.0], LABEL), ([1.0, 3.0, 2.0, 4.0], LABEL), ([2.0, 4.0, 3.0, 1.0], LABEL)
Scores = tuple[list[float], list[int]]


def measured(
    *, sources: tuple[str, ...] = ("A",), failed: dict[str, str] | None = None, **domains: Scores
) -> Any:
    rows = [
        {"path": f"{domain}/{i}", "domain": domain, "label": label, "condition": "all", "score": score}
        for domain, (scores, labels) in domains.items()
        for i, (score, label) in enumerate(zip(scores, labels, strict=True))
    ]
    table = pd.DataFrame(rows)
    found = evaluate(table, normal_thresholds={}, seed=0, draws=2)
    per_domain = found["per_domain_metrics"]
    return found | transfer_of(per_domain, table, sources=sources, threshold=AT_3, failed=failed or {})


NONE = dict.fromkeys(
    ("average_target_auroc", "transfer_ratio", "domain_gap", "chance_corrected_ratio"), math.nan
)
AT_CHANCE, WRONG = ([1.0, 4.0, 2.0, 3.0], LABEL), ([3.0, 4.0, 1.0, 2.0], LABEL)
FIGURES: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "two targets": (
        {"A": A, "B": B, "C": C},
        {"source_auroc": 1.0, "average_target_auroc": 0.5, "transfer_ratio": 0.5, "domain_gap": 0.5}
        | {"chance_corrected_ratio": 0.0},  # as good as chance
    ),
    "from one half": ({"A": A, "B": B}, {"transfer_ratio": 0.75, "chance_corrected_ratio": 0.25 / 0.5}),
    "two sources": (
        {"A": A, "B": B, "C": C, "sources": ("A", "B")},
        {"source_auroc": (1 + 0.75) / 2, "average_target_auroc": 0.25},
    ),
    "a target of one class": ({"A": A, "B": B, "C": ONE_CLASS}, {"average_target_auroc": 0.75}),
    "a failed target": ({"A": A, "B": B, "failed": {"C": "NaN"}}, {"average_target_auroc": 0.75}),
    "no target": ({"A": A, "failed": {"B": "NaN"}}, {"source_auroc": 1.0, **NONE}),
    "a source at chance": (
        {"A": AT_CHANCE, "B": B, "C": C},
        {"source_auroc": 0.5, "transfer_ratio": 1.0, "chance_corrected_ratio": math.nan},
    ),
    "a source that is always wrong": (
        {"A": WRONG, "B": B, "C": C},
        {"source_auroc": 0.0, "transfer_ratio": math.nan, "domain_gap": -0.5},
    ),
}


@pytest.mark.parametrize("case", FIGURES)
def test_figures_are_those_worked_out_by_hand(case: str) -> None:
    given, expected = FIGURES[case]
    found = measured(**given)["transfer"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=0, nan_ok=True)


def test_domains_are_parted_and_the_sources_threshold_is_used_on_each_target() -> None:
    """At 3, of B one fault of two and one good image of two; of C the same; a score of 3 is a fault."""
    found = measured(A=A, B=B, C=C)
    assert list(found["source_results"]) == found["transfer"]["source_domains"] == ["A"]
    assert list(found["target_results"]) == ["B", "C"]
    transfer = found["transfer"]
    assert (transfer["missing_targets"], transfer["source_threshold"]) == ({}, 3.0)
    assert transfer["at_source_threshold"] == {name: {"tpr": 0.5, "fpr": 0.5} for name in "BC"}
    high = measured(A=A, C=([1.0, 2.0, 2.9, 5.0, 7.0], [0, 0, 1, 1, 1]))["transfer"]
    assert high["at_source_threshold"]["C"] == {"tpr": 2 / 3, "fpr": 0.0}
    first, *others = render("transfer.txt", result=found).splitlines()
    assert "from A: source AUROC 100.00, targets 50.00, ratio 50.0 %, gap 50.00" in first
    assert others[0] == "  B: with the source's threshold TPR 50.0 %, FPR 50.0 %"


def test_what_has_no_figure_is_named_and_left_out_of_mlflow() -> None:
    found = measured(A=A, B=B, C=ONE_CLASS, failed={"D": "scores are NaN"})
    transfer = found["transfer"]
    assert transfer["missing_targets"]["D"] == "scores are NaN"
    assert transfer["missing_targets"]["C"].startswith("needs both classes")
    assert transfer["target_domains"] == ["B", "C", "D"]
    assert transfer["at_source_threshold"]["C"] == pytest.approx({"tpr": math.nan, "fpr": 1 / 3}, nan_ok=True)
    assert "  D: left out: scores are NaN" in render("transfer.txt", result=found).splitlines()
    flat = flat_metrics(found)
    assert not any(np.isnan(value) for value in flat.values())
    assert flat["transfer/transfer_ratio"] == 0.75
    assert flat["transfer/B/tpr_at_source_threshold"] == 0.5
    assert "transfer/C/fpr_at_source_threshold" in flat
    assert "transfer/C/tpr_at_source_threshold" not in flat


# ---- in a report ----


def run(label: str, seed: int, source: str, **changed: float) -> MemberRun:
    """A run that was trained on ``source`` and tested on A and B."""
    auroc = {"A": 0.9, "B": 0.7, **changed}
    target = next(name for name in auroc if name != source)
    transfer = {
        "source_domains": [source],
        "missing_targets": {target: "one class only"} if math.isnan(auroc[target]) else {},
        "source_auroc": auroc[source],
        "average_target_auroc": auroc[target],
        "transfer_ratio": auroc[target] / auroc[source],
        "domain_gap": auroc[source] - auroc[target],
        "chance_corrected_ratio": (auroc[target] - 0.5) / (auroc[source] - 0.5),
    }
    blocks = {name: {"auroc": value} for name, value in auroc.items()}
    result = {"transfer": transfer, "per_domain_metrics": blocks, "domains": ["A", "B"]}
    return MemberRun(label, seed, f"{label}-{seed}", result, pd.DataFrame())


def test_figures_are_means_over_seeds_and_missing_targets_are_named() -> None:
    members = [run("m", 1, "A"), run("m", 2, "A", B=0.8), run("n", 1, "A", B=math.nan)]
    (table,) = transfer_table(members)
    assert list(table.frame)[:4] == ["label", "source", "source AUROC", "mean target AUROC"]
    m, n = table.frame.to_numpy().tolist()
    assert m[:5] == ["m", "A", "90.00 ± 0.00", "75.00 ± 7.07", "83.33 ± 7.86"]
    assert m[-1] == "-"
    assert n == ["n", "A", "90.00", "-", "-", "-", "-", "B"]
    assert transfer_table([*members, members[0]._replace(result={"per_domain_metrics": {}})]) == []


def test_pairs_are_drawn_for_models_with_several_sources_and_untested_ones_stay_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from matplotlib.axes import Axes

    pictures = pairs_pictures([run("m from A", 1, "A"), run("m from B", 1, "B"), run("n from A", 1, "A")])
    assert list(pictures) == ["transfer_1"]
    assert pictures["transfer_1"].caption.startswith("m: ")
    texts: list[str] = []
    draw = Axes.text
    monkeypatch.setattr(
        Axes, "text", lambda self, x, y, s, **named: (texts.append(s), draw(self, x, y, s, **named))[1]
    )
    auroc = pd.DataFrame({"A": [1.0, math.nan], "B": [0.504, math.nan], "$B": [math.nan, 0.3]}, ["A", "$B"])
    picture = pairs_picture(auroc, title="draem:width=.1 $x")
    assert picture.png.startswith(b"\x89PNG")
    assert picture.caption.startswith("draem:width=.1 $x")
    assert sorted(texts) == ["100.0", "30.0", "50.4"]
