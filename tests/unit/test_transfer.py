"""Transfer figures against numbers worked out by hand; what has no figure is named, never 0."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dinomaly_hd.evaluation.comparison_plots import pairs_picture
from dinomaly_hd.evaluation.metrics import Threshold
from dinomaly_hd.evaluation.report import Picture
from dinomaly_hd.evaluation.results import evaluate
from dinomaly_hd.evaluation.transfer import flat_transfer, transfer_lines, transfer_of

AT_3 = Threshold("normal_quantile", 3.0, False, "held-out normals")
# Of 2 good and 2 fault images: all 4 pairs in order, 3 of 4, 1 of 4.
DOMAINS = {
    "domain_A": ([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1]),
    "domain_B": ([1.0, 3.0, 2.0, 4.0], [0, 0, 1, 1]),
    "domain_C": ([2.0, 4.0, 3.0, 1.0], [0, 0, 1, 1]),
}


def table_of(domains: dict[str, tuple[list[float], list[int]]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"path": f"{domain}/{i}", "domain": domain, "label": label, "condition": "all", "score": score}
            for domain, (scores, labels) in domains.items()
            for i, (score, label) in enumerate(zip(scores, labels, strict=True))
        ]
    )


def measured(
    domains: dict[str, tuple[list[float], list[int]]],
    *,
    sources: tuple[str, ...] = ("domain_A",),
    **failed: str,
) -> dict[str, Any]:
    table = table_of(domains)
    per_domain = evaluate(table, normal_thresholds={}, seed=0, draws=2)["per_domain_metrics"]
    return transfer_of(per_domain, table, sources=sources, threshold=AT_3, failed=failed)


def test_figures_are_those_worked_out_by_hand() -> None:
    found = measured(DOMAINS)
    assert list(found["source_results"]) == ["domain_A"]
    assert list(found["target_results"]) == ["domain_B", "domain_C"]
    transfer = found["transfer"]
    assert transfer["source_auroc"] == 1.0
    assert transfer["average_target_auroc"] == (0.75 + 0.25) / 2
    assert transfer["transfer_ratio"] == 0.5
    assert transfer["domain_gap"] == 0.5
    assert transfer["chance_corrected_ratio"] == 0.0, "as good as chance"
    assert transfer["missing_targets"] == {}


def test_the_chance_corrected_ratio_counts_from_one_half() -> None:
    transfer = measured({name: DOMAINS[name] for name in ("domain_A", "domain_B")})["transfer"]
    assert transfer["transfer_ratio"] == 0.75
    assert transfer["chance_corrected_ratio"] == (0.75 - 0.5) / (1.0 - 0.5)


def test_several_sources_are_averaged() -> None:
    transfer = measured(DOMAINS, sources=("domain_A", "domain_B"))["transfer"]
    assert transfer["source_auroc"] == (1 + 0.75) / 2
    assert transfer["average_target_auroc"] == 0.25
    assert transfer["source_domains"] == ["domain_A", "domain_B"]


def test_the_sources_threshold_is_used_on_each_target() -> None:
    """At 3, of B one fault of two and one good image of two; of C the same; a score of 3 is a fault."""
    transfer = measured(DOMAINS)["transfer"]
    assert transfer["source_threshold"] == 3.0
    assert transfer["at_source_threshold"] == {
        "domain_B": {"tpr": 0.5, "fpr": 0.5},
        "domain_C": {"tpr": 0.5, "fpr": 0.5},
    }
    high = measured({**DOMAINS, "domain_C": ([1.0, 2.0, 2.9, 5.0, 7.0], [0, 0, 1, 1, 1])})["transfer"]
    assert high["at_source_threshold"]["domain_C"] == {"tpr": 2 / 3, "fpr": 0.0}


def test_a_target_of_one_class_is_named_and_left_out() -> None:
    domains = {**DOMAINS, "domain_C": ([1.0, 2.0, 5.0], [0, 0, 0])}
    transfer = measured(domains)["transfer"]
    assert transfer["average_target_auroc"] == 0.75, "B alone, not the mean with 0"
    (named,) = transfer["missing_targets"].items()
    assert named[0] == "domain_C"
    assert named[1], "the reason is said"
    calls = transfer["at_source_threshold"]["domain_C"]
    assert math.isnan(calls["tpr"])
    assert calls["fpr"] == 1 / 3
    assert any("domain_C: left out" in line for line in transfer_lines(transfer))


def test_a_failed_target_is_named_and_left_out() -> None:
    domains = {name: DOMAINS[name] for name in ("domain_A", "domain_B")}
    transfer = measured(domains, domain_C="scores are NaN")["transfer"]
    assert transfer["missing_targets"] == {"domain_C": "scores are NaN"}
    assert transfer["target_domains"] == ["domain_B", "domain_C"]
    assert transfer["average_target_auroc"] == 0.75
    assert "  domain_C: left out: scores are NaN" in transfer_lines(transfer)


def test_without_any_target_there_is_no_figure() -> None:
    transfer = measured({"domain_A": DOMAINS["domain_A"]}, domain_B="scores are NaN")["transfer"]
    for name in ("average_target_auroc", "transfer_ratio", "domain_gap", "chance_corrected_ratio"):
        assert math.isnan(transfer[name])
    assert transfer["source_auroc"] == 1.0


def test_a_source_at_chance_has_no_chance_corrected_ratio() -> None:
    domains = {**DOMAINS, "domain_A": ([1.0, 4.0, 2.0, 3.0], [0, 0, 1, 1])}
    transfer = measured(domains)["transfer"]
    assert transfer["source_auroc"] == 0.5
    assert transfer["transfer_ratio"] == 1.0
    assert math.isnan(transfer["chance_corrected_ratio"])


def test_a_source_that_is_always_wrong_has_no_ratio() -> None:
    domains = {**DOMAINS, "domain_A": ([3.0, 4.0, 1.0, 2.0], [0, 0, 1, 1])}
    transfer = measured(domains)["transfer"]
    assert transfer["source_auroc"] == 0.0
    assert math.isnan(transfer["transfer_ratio"])
    assert transfer["domain_gap"] == -0.5


def test_metrics_for_mlflow_leave_out_what_has_no_number() -> None:
    domains = {**DOMAINS, "domain_C": ([1.0, 2.0, 5.0], [0, 0, 0])}
    flat = flat_transfer(measured(domains)["transfer"])
    assert not any(np.isnan(value) for value in flat.values())
    assert flat["transfer/transfer_ratio"] == 0.75
    assert flat["transfer/domain_B/tpr_at_source_threshold"] == 0.5
    assert "transfer/domain_C/fpr_at_source_threshold" in flat
    assert "transfer/domain_C/tpr_at_source_threshold" not in flat


def test_lines_are_in_per_cent() -> None:
    first, *others = transfer_lines(measured(DOMAINS)["transfer"])
    assert "from domain_A: source AUROC 100.00, targets 50.00, ratio 50.0 %, gap 50.00" in first
    assert others[0] == "  domain_B: with the source's threshold TPR 50.0 %, FPR 50.0 %"


def test_all_pairs_are_drawn_and_untested_ones_stay_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    texts: list[str] = []
    draw = Axes.text
    monkeypatch.setattr(
        Axes, "text", lambda self, x, y, s, **named: (texts.append(s), draw(self, x, y, s, **named))[1]
    )
    auroc = {("A", "A"): 1.0, ("A", "B"): 0.504, ("$B", "$B"): 0.3}
    picture = pairs_picture(auroc, title="draem:width=.1 $x")
    assert isinstance(picture, Picture)
    assert picture.png.startswith(b"\x89PNG")
    assert picture.caption.startswith("draem:width=.1 $x")
    assert sorted(texts) == ["100.0", "30.0", "50.4"]
