"""Transfer in a report: figures by label, and every pair of source and target."""

import math

import pandas as pd
from dinomaly_hd.evaluation.comparison_transfer import pairs_pictures, transfer_table

from dinomaly_hd.evaluation.comparison_members import MemberRun


def run(label: str, seed: int, source: str, **changed: float | None) -> MemberRun:
    """A run that was trained on ``source`` and tested on A and B."""
    auroc = {"A": 0.9, "B": 0.7, **changed}
    target = next(name for name in auroc if name != source)
    values = {name: math.nan if value is None else value for name, value in auroc.items()}
    transfer = {
        "source_domains": [source],
        "missing_targets": {target: "one class only"} if auroc[target] is None else {},
        "source_auroc": values[source],
        "average_target_auroc": values[target],
        "transfer_ratio": values[target] / values[source],
        "domain_gap": values[source] - values[target],
        "chance_corrected_ratio": (values[target] - 0.5) / (values[source] - 0.5),
    }
    blocks = {name: {"auroc": value} for name, value in auroc.items()}
    result = {"transfer": transfer, "per_domain_metrics": blocks, "domains": ["A", "B"]}
    return MemberRun(label, seed, f"{label}-{seed}", result, pd.DataFrame())


def test_figures_are_means_over_seeds_and_missing_targets_are_named() -> None:
    table = transfer_table([run("m", 1, "A"), run("m", 2, "A", B=0.8), run("n", 1, "A", B=None)])
    assert table is not None
    assert table.head[:4] == ["label", "source", "source AUROC", "mean target AUROC"]
    m, n = table.body
    assert m[:5] == ["m", "A", "90.00 ± 0.00", "75.00 ± 7.07", "83.33 ± 7.86"]
    assert m[-1] == "-"
    assert n == ["n", "A", "90.00", "-", "-", "-", "-", "B"]


def test_no_table_where_a_run_knows_no_transfer() -> None:
    other = run("m", 1, "A")
    assert transfer_table([run("m", 2, "A"), other._replace(result={"per_domain_metrics": {}})]) is None


def test_pairs_are_drawn_for_models_with_several_sources() -> None:
    pictures = pairs_pictures([run("m from A", 1, "A"), run("m from B", 1, "B"), run("n from A", 1, "A")])
    assert list(pictures) == ["transfer_1"]
    assert pictures["transfer_1"].caption.startswith("m: ")
    assert pictures["transfer_1"].png.startswith(b"\x89PNG")
