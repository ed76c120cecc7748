"""From a score table to the nested result, MLflow's names and the printed table."""

import re

import numpy as np
import pandas as pd
import pytest

from dinomaly_hd.errors import ConfigError, DataError, NonFiniteError
from dinomaly_hd.evaluation import metrics
from dinomaly_hd.evaluation.metrics import Threshold, normal_quantile
from dinomaly_hd.evaluation.report import (
    data_figures,
    detector_table,
    flat_metrics,
    results_markdown,
    summary_lines,
    trivial_table,
)
from dinomaly_hd.evaluation.results import RANKING, check_table, evaluate
from dinomaly_hd.files import publish_json
from dinomaly_hd.runs.folder import read_results
from tests.work import made_up_scores

DOMAINS = ("domain_D", "domain_A", "domain_C")  # not sorted: the order of appearance must survive
COUNT = 40


def score_table(*, conditions: bool = True, alike: bool = False) -> pd.DataFrame:
    """Return scores of domains that differ, or not, in their numbers; warm faults are easier to find."""
    parts = [
        made_up_scores([name], count=COUNT // 2, seed=0 if alike else i) for i, name in enumerate(DOMAINS)
    ]
    table = pd.concat(parts, ignore_index=True)
    generator = np.random.default_rng(3)
    table["score"] += 0.8 * table["label"] * (table["condition"] == "warm")
    table["trivial/max"] = table["score"] + generator.normal(size=len(table))
    table["trivial/row_filter"] = generator.normal(size=len(table)) + table["label"]
    return table if conditions else table.assign(condition="all")


def run(table: pd.DataFrame, *, domains: tuple[str, ...] = DOMAINS, **keywords) -> dict:
    normal = normal_quantile(np.random.default_rng(9).normal(size=100), held_out=True)
    return evaluate(table, normal_thresholds=dict.fromkeys(domains, normal), seed=42, draws=200, **keywords)


def select(table: pd.DataFrame, domain: str, condition: str) -> tuple[np.ndarray, np.ndarray]:
    rows = table[table["domain"] == domain]
    rows = rows if condition == "all" else rows[rows["condition"] == condition]
    return rows["score"].to_numpy(), rows["label"].to_numpy()


@pytest.mark.parametrize("condition", ["cold", "warm", "all"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_each_block_holds_the_metrics_of_its_own_images(domain, condition):
    table = score_table()
    block = run(table)["per_domain_metrics"][domain]["by_condition"][condition]
    score, label = select(table, domain, condition)
    assert [block[name] for name in RANKING] == [
        metrics.auroc(score, label),
        metrics.tpr_at_fpr(score, label, max_fpr=0.01),
        metrics.tpr_at_fpr(score, label, max_fpr=0.05),
        metrics.average_precision(score, label),
        metrics.f1_max(score, label)[0],
    ]
    assert block["counts"] == {"good": (label == 0).sum(), "fault": (label == 1).sum()}
    assert "auroc" not in block["reasons"]
    assert all(0 <= low <= high <= 1 for low, high in block["intervals"].values())
    low, high = block["intervals"]["auroc"]
    assert low < block["auroc"] < high


def test_calls_at_the_top_are_those_of_the_honest_threshold_which_conditions_share():
    table = score_table()
    block = run(table)["per_domain_metrics"]["domain_C"]
    confusion = metrics.confusion_at(*select(table, "domain_C", "all"), threshold=block["optimal_threshold"])
    rules, counts = block["thresholds"], ("tp", "fp", "tn", "fn")
    assert block["optimal_threshold"] == rules["normal_quantile"]["value"]
    assert block["confusion"] == rules["normal_quantile"]["confusion"]
    assert block["confusion"] == dict(zip(counts, confusion, strict=False))
    assert (block["precision"], block["f1_score"]) == (confusion.precision, confusion.f1_score)
    optimistic = {name: entry["optimistic"] for name, entry in rules.items()}
    assert optimistic == {"youden": True, "f1": True, "normal_quantile": False}
    assert rules["f1"]["f1_score"] == block["f1_max"]
    cold, warm = (block["by_condition"][name] for name in ("cold", "warm"))
    for rule in rules:
        assert cold["thresholds"][rule]["value"] == warm["thresholds"][rule]["value"]
    for count in counts:
        assert cold["confusion"][count] + warm["confusion"][count] == block["confusion"][count]


def test_mean_and_pooled():
    table = score_table()
    result = run(table)
    blocks = result["per_domain_metrics"].values()
    pooled = result["overall_pooled_metrics"]
    assert list(result["per_domain_metrics"]) == list(DOMAINS)
    assert result["mean_metrics"]["auroc"] == pytest.approx(np.mean([block["auroc"] for block in blocks]))
    assert result["mean_metrics"]["domains_used"]["auroc"] == 3
    assert result["mean_metrics"]["missing"] == {}
    assert result["overall_auroc"] == pooled["auroc"] == metrics.auroc(table["score"], table["label"])
    assert pooled["confusion"]["tp"] == sum(block["confusion"]["tp"] for block in blocks)
    same = run(score_table(alike=True))
    single = np.diff(same["per_domain_metrics"]["domain_C"]["intervals"]["auroc"])[0]
    narrower = np.diff(same["mean_metrics"]["intervals"]["auroc"])[0]  # domains are drawn independently
    assert narrower == pytest.approx(single / np.sqrt(3), rel=0.25)


def test_per_domain_evaluation_equals_whole_set_evaluation_in_any_order():
    table = score_table()
    whole = run(table)
    shuffled = pd.concat(
        [part.sample(frac=1, random_state=3) for _, part in table.groupby("domain", sort=False)]
    )
    assert run(shuffled)["per_domain_metrics"] == whole["per_domain_metrics"]
    assert run(table) == whole
    for domain in DOMAINS:
        alone = run(table[table["domain"] == domain], domains=(domain,))
        assert alone["per_domain_metrics"][domain] == whole["per_domain_metrics"][domain]
        assert alone["trivial"]["max"][domain] == whole["trivial"]["max"][domain]


def test_one_class_is_nan_with_a_reason_and_left_out_of_the_mean():
    table = score_table()
    table = table[(table["domain"] != "domain_A") | (table["label"] == 0)]
    result = run(table)
    block, mean = result["per_domain_metrics"]["domain_A"], result["mean_metrics"]
    for name in ("auroc", "tpr_at_fpr_1pct", "average_precision", "f1_max", "precision", "f1_score"):
        assert np.isnan(block[name]), name
        assert block["reasons"][name] == "needs both classes, has 40 good and 0 fault images"
        assert mean["domains_used"][name] == 2
        assert mean["missing"][name] == ["domain_A"]
    others = [result["per_domain_metrics"][domain]["auroc"] for domain in ("domain_D", "domain_C")]
    assert mean["auroc"] == pytest.approx(np.mean(others))
    low, high = mean["intervals"]["auroc"]
    assert low < mean["auroc"] < high
    assert "domain_A/auroc" not in flat_metrics(result)
    text = "\n".join(summary_lines(result))
    assert "mean: over 2 of 3 domains" in text
    assert "domain_A: needs both classes, has 40 good and 0 fault images" in text


def test_domain_without_a_threshold_says_so():
    result = run(score_table(), domains=("domain_C",))
    block, pooled = result["per_domain_metrics"]["domain_A"], result["overall_pooled_metrics"]
    assert np.isnan(block["precision"])
    assert "no scores of normal images" in block["reasons"]["precision"]
    assert pooled["reasons"]["precision"] == "no threshold for domain_D, domain_A"
    assert result["mean_metrics"]["domains_used"]["precision"] == 1


def test_nothing_called_a_fault_has_no_precision():
    never = Threshold("normal_quantile", 1e9, False, "held-out normals")
    result = evaluate(score_table(), normal_thresholds=dict.fromkeys(DOMAINS, never), seed=42, draws=10)
    block = result["per_domain_metrics"]["domain_C"]
    assert np.isnan(block["precision"])
    assert block["reasons"] == {"precision": "no image was called a fault at this threshold"}
    assert (block["recall"], block["f1_score"]) == (0.0, 0.0)


def test_pixel_metrics_enter_where_given():
    scores = {
        "domain_C": {"pixel_auroc": 0.9, "aupro": 0.8, "named_tooth": 0.5},
        "domain_A": {"pixel_auroc": 0.7, "aupro": float("nan")},
    }
    result = run(score_table(), pixel=scores)
    flat = flat_metrics(result)
    assert (result["mean_metrics"]["pixel_auroc"], result["mean_metrics"]["aupro"]) == (0.8, 0.8)
    assert result["mean_metrics"]["missing"]["aupro"] == ["domain_D", "domain_A"]
    assert "aupro" in result["per_domain_metrics"]["domain_A"]["reasons"]
    assert flat["domain_C/named_tooth"] == flat["mean/named_tooth"] == 0.5
    assert "domain_D/named_tooth" not in flat
    assert detector_table(result)["", "tooth right"].to_dict() == {
        **dict.fromkeys([*DOMAINS, "pooled"], "-"),
        **dict.fromkeys(["domain_C", "mean"], "50.00"),
    }
    assert any(line.startswith("Named tooth right (+- 1), %: domain_") for line in summary_lines(result))


def test_one_known_condition_gives_one_block():
    result = run(score_table(conditions=False))
    assert list(result["per_domain_metrics"]["domain_C"]["by_condition"]) == ["all"]
    assert not any("cold" in text for text in (*flat_metrics(result), *summary_lines(result)))
    assert summary_lines(result)[0].split()[:2] == ["good", "fault"]


def test_flat_names_are_mlflows():
    result = run(score_table())
    flat = flat_metrics(result)
    block = result["per_domain_metrics"]["domain_C"]
    expected = {
        "domain_C/auroc": block["auroc"],
        "domain_C/tpr_at_fpr_1": block["tpr_at_fpr_1pct"],
        "domain_C/cold/auroc": block["by_condition"]["cold"]["auroc"],
        "mean/auroc": result["mean_metrics"]["auroc"],
        "mean/warm/tpr_at_fpr_1": result["mean_metrics"]["by_condition"]["warm"]["tpr_at_fpr_1pct"],
        "mean/auroc_low": result["mean_metrics"]["intervals"]["auroc"][0],
    }
    assert {name: flat[name] for name in expected} == pytest.approx(expected, abs=5e-5)
    names, domains = list(flat), result["per_domain_metrics"]
    assert names[:2] == ["mean/auroc", "mean/tpr_at_fpr_1"]
    assert len(names) == 2 + 6 * (1 + len(domains)), "what says most stands first, the conditions last"
    assert names[-1].count("/") == 2
    assert all(re.fullmatch(r"[\w/.]+", name) and isinstance(value, float) for name, value in flat.items())
    assert all(f"{value:.4f}".rstrip("0") == f"{value:.9f}".rstrip("0") for value in flat.values())


def test_how_well_plain_scores_do_is_said_of_the_data():
    result = run(score_table())
    told = data_figures(result)
    assert told.keys() == {"AUROC of max, %", "AUROC of row_filter, %"}
    own = result["trivial"]["max"]["domain_C"]["auroc"]
    assert f"domain_C {100 * own:.2f}" in told["AUROC of max, %"]
    assert not any(name.startswith("trivial") for name in flat_metrics(result))


def test_figures_of_a_run_read_back_are_those_of_the_run(tmp_path):
    table = score_table()
    table = table[(table["domain"] != "domain_A") | (table["label"] == 0)]  # no AUROC there: NaN
    result = run(table)
    publish_json(tmp_path / "results.json", result)
    assert "null" in (tmp_path / "results.json").read_text()
    stored = read_results(tmp_path) or {}
    again = flat_metrics(stored)
    assert again == flat_metrics(result)
    assert detector_table(stored).equals(detector_table(result))
    assert trivial_table(stored).equals(trivial_table(result))
    assert "domain_A/auroc" not in again


def test_summary_shows_every_number_asked_for_within_110_columns():
    result = run(score_table())
    lines = summary_lines(result)
    assert max(map(len, lines)) <= 110
    row = next(line for line in lines if line.startswith("domain_C"))
    block = result["per_domain_metrics"]["domain_C"]
    low, high = block["intervals"]["auroc"]
    assert f"{100 * block['auroc']:.2f} [{100 * low:.2f}, {100 * high:.2f}]" in row
    assert f"{100 * block['by_condition']['cold']['auroc']:.2f}" in row
    trivial = [line for line in lines[lines.index("") :] if line.startswith("domain_C")]
    assert f"{100 * result['trivial']['max']['domain_C']['auroc']:.2f}" in trivial[0]


def test_one_domain_is_told_once():
    result = run(score_table().query("domain == 'domain_C'"), domains=("domain_C",))
    printed = summary_lines(result)
    assert not any(line.startswith(("---", "mean", "pooled")) or "pooled" in line for line in printed)
    assert sum(line.startswith("domain_C ") for line in printed) == 2


def test_few_normals_say_how_fine_an_fpr_they_show():
    table = score_table()
    four = table.groupby(["domain", "condition", "label"]).head(2)
    text = [*summary_lines(run(four)), *results_markdown(run(four)).splitlines()]
    said = "4 normals: the finest FPR is 25 % (domain_D, domain_A, domain_C)"
    assert said in text
    assert f"* {said}" in text
    assert (
        "2 normals: the finest FPR is 50 % (domain_D cold, domain_D warm, domain_A cold, domain_A warm"
        in "\n".join(text)
    )
    many = pd.concat([table.assign(path=table["path"] + str(i)) for i in range(5)], ignore_index=True)
    assert not any("finest FPR" in line for line in summary_lines(run(many)))


def test_long_names_and_perfect_scores_stay_aligned():
    table = score_table().replace({"domain": {"domain_C": "a_domain_with_a_very_long_name_indeed"}})
    table["score"] = table["label"].astype(float)
    lines = summary_lines(run(table, domains=("domain_A",)))
    assert max(map(len, lines)) <= 110
    body = lines[1 : lines.index("")]
    assert len({len(line) for line in body}) == 1


BROKEN = {
    "no column": (lambda table: table.drop(columns="label"), DataError, "no column label"),
    "no rows": (lambda table: table.iloc[:0], DataError, "no rows"),
    "label": (lambda table: table.replace({"label": {1: 2}}), DataError, "fault/cold0.tiff: label 2"),
    "twice": (lambda table: pd.concat([table, table.iloc[:1]]), DataError, "occurs more than once"),
    "reserved": (lambda table: table.replace({"domain": {"domain_A": "mean"}}), DataError, "'mean'"),
    "nan": (
        lambda table: table.assign(score=table["score"].where(table.index != 3)),
        NonFiniteError,
        "domain_D/test/good/cold3.tiff: score nan",
    ),
    "trivial": (
        lambda table: table.assign(**{"trivial/max": np.inf}),
        NonFiniteError,
        r"cold0.tiff \(trivial/max\): score inf",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_tables_are_refused_by_name(case):
    breaks, error, message = BROKEN[case]
    with pytest.raises(error, match=message):
        check_table(breaks(score_table()))
    with pytest.raises(ConfigError, match="Did you mean 'domain_C'"):
        run(score_table(), domains=("domian_C",))
