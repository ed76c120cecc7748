"""Statistics between methods: equal to scipy, scikit-learn and a slow reference; NaN where they fail."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from dinomaly_hd.errors import NonFiniteError
from dinomaly_hd.evaluation.statistics import (
    bootstrap,
    delong,
    holm,
    mean_difference_interval,
    paired_test,
)

LABEL = np.repeat([0, 1], [40, 30])


def two_runs(seed: int = 0, *, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    shared = generator.normal(size=LABEL.size) + LABEL
    first, second = (shared + generator.normal(size=LABEL.size) for _ in range(2))
    return (np.round(first), np.round(second)) if ties else (first, second)


def auroc_draws(scores, *, label=LABEL, generator: np.random.Generator | None = None) -> np.ndarray:
    generator = generator or np.random.default_rng(0)
    return bootstrap(scores, label=label, max_fprs=(), generator=generator)[..., 0]


def slow_delong(first: np.ndarray, second: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """AUROC difference and its variance by the definition: the full covariance of two double loops."""
    parts = []
    for score in (first, second):
        fault, good = score[label == 1], score[label == 0]
        wins = [[1.0 if f > g else 0.5 if f == g else 0.0 for g in good] for f in fault]
        parts.append((np.mean(wins, axis=1), np.mean(wins, axis=0), float(np.mean(wins))))
    covariance = sum(np.cov(parts[0][k], parts[1][k], ddof=1) / parts[0][k].size for k in (0, 1))
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    return parts[1][2] - parts[0][2], float(variance)


@pytest.mark.parametrize("count", [3, 5, 12, 20])
def test_paired_test_equals_scipy(count: int):
    first, second = np.random.default_rng(count).uniform(size=(2, count))
    tested = paired_test(first, second)
    expected = stats.ttest_rel(second, first)
    interval = expected.confidence_interval(0.95)
    assert tested.t_p == pytest.approx(expected.pvalue, rel=1e-12)
    assert (tested.seeds_low, tested.seeds_high) == pytest.approx((interval.low, interval.high), rel=1e-10)
    assert tested.wilcoxon_p == pytest.approx(stats.wilcoxon(second, first).pvalue, rel=1e-12)
    assert tested.mean_difference == pytest.approx(float(np.mean(second - first)))
    effect = float(np.mean(second - first) / np.std(second - first, ddof=1))
    assert tested.effect_size == pytest.approx(effect)
    assert (tested.seeds, tested.reason) == (count, "")


def test_wilcoxon_with_ties_and_zeros_counts_all_signs():
    difference = np.array([0.0, 0.1, 0.1, -0.1, 0.3, 0.2])
    exact = stats.wilcoxon(difference, method=stats.PermutationMethod(n_resamples=10_000))
    assert paired_test(np.zeros(6), difference).wilcoxon_p == pytest.approx(float(exact.pvalue), rel=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "mean", "reason"),
    [
        ([], [], math.nan, "no pairs"),
        ([0.5], [0.7], 0.2, "needs at least two pairs, has 1"),
        ([0.5, 0.6], [0.5, 0.6], 0.0, "all differences are zero"),
        ([0.63, 0.53, 0.1], [0.64, 0.54, 0.11], 0.01, "all differences are equal, so they have no spread"),
        ([0.5, math.nan], [0.5, 0.6], math.nan, "a value is missing (NaN)"),
    ],
)
def test_what_a_paired_test_cannot_say_is_nan_with_a_reason(first, second, mean, reason):
    tested = paired_test(first, second)
    assert tested.mean_difference == pytest.approx(mean, nan_ok=True)
    assert np.isnan([tested.t_p, tested.seeds_low, tested.seeds_high, tested.effect_size]).all()
    assert tested.reason == reason


def test_holm_equals_its_definition_and_does_not_count_nan():
    assert list(holm([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert list(holm([0.01, math.nan, 0.04])) == pytest.approx([0.02, math.nan, 0.04], nan_ok=True)
    assert list(holm([0.9, 0.8])) == [1.0, 1.0]
    assert list(holm([])) == []


@pytest.mark.parametrize("ties", [False, True])
def test_delong_equals_the_double_loop(ties: bool):
    for seed in range(5):
        first, second = two_runs(seed, ties=ties)
        tested = delong(first, second, label=LABEL)
        difference, variance = slow_delong(first, second, LABEL)
        assert tested.difference == pytest.approx(difference, abs=1e-12)
        assert tested.standard_error == pytest.approx(math.sqrt(variance), abs=1e-12)
        assert tested.p == pytest.approx(2 * stats.norm.sf(abs(difference) / math.sqrt(variance)), abs=1e-12)
        assert tested.high - tested.low == pytest.approx(2 * stats.norm.ppf(0.975) * math.sqrt(variance))
        assert tested.auroc_reference == pytest.approx(roc_auc_score(LABEL, first), abs=1e-12)
        assert tested.auroc == pytest.approx(roc_auc_score(LABEL, second), abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "label", "reason"),
    [
        ([1.0, 2.0], [1.0, 3.0], [0, 0], "needs both classes, has 2 good and 0 fault images"),
        ([1.0, 2.0], [2.0, 1.0], [0, 1], "needs two images of each class, has 1 good and 1 fault images"),
        ([1, 2, 3, 4], [1, 2, 3, 9], [0, 0, 1, 1], "the difference is the same for every image"),
        ([1, 2, 3, 4], [3, 4, 1, 2], [0, 0, 1, 1], "the difference is the same for every image"),
    ],
)
def test_what_delong_cannot_say_is_nan_with_a_reason(first, second, label, reason):
    tested = delong(first, second, label=label)
    assert np.isnan([tested.p, tested.standard_error, tested.low, tested.high]).all()
    assert tested.reason.startswith(reason)


def test_a_nan_score_is_an_error():
    with pytest.raises(NonFiniteError):
        delong([1.0, math.nan], [1.0, 2.0], label=[0, 1])
    with pytest.raises(NonFiniteError):
        auroc_draws([[1.0, math.inf]], label=[0, 1])


def test_bootstrap_interval_agrees_with_delong():
    first, second = two_runs(3)
    drawn = auroc_draws([first, second])
    *interval, reason = mean_difference_interval(drawn[:1], drawn[1:])
    tested = delong(first, second, label=LABEL)
    assert interval == pytest.approx((tested.low, tested.high), abs=0.02)
    assert reason == ""
    assert (auroc_draws([first, second]) == drawn).all()


def test_pairing_and_seed_means_narrow_the_interval():
    generator = np.random.default_rng(0)
    shared = 2 * generator.normal(size=LABEL.size) + LABEL
    drawn = auroc_draws(shared + 0.3 * generator.normal(size=(6, LABEL.size)), generator=generator)

    def width(first: np.ndarray, second: np.ndarray) -> float:
        low, high, _ = mean_difference_interval(first, second)
        return high - low

    paired = width(drawn[:1], drawn[1:2])
    assert paired < 0.6 * width(drawn[:1], generator.permuted(drawn[1:2], axis=1))
    assert width(drawn[:3], drawn[3:]) < paired


def test_an_interval_without_spread_or_class_is_nan_with_a_reason():
    first, _ = two_runs()
    same, one_class = auroc_draws([first, first]), auroc_draws([first], label=0 * LABEL)
    assert np.isnan(one_class).all()
    for one, other, reason in (
        (same[:1], same[1:], "the difference is the same in every draw of images"),
        (one_class, same[:1], "needs both classes"),
        (same[:0], same[:0], "no pairs"),
    ):
        *ends, said = mean_difference_interval(one, other)
        assert np.isnan(ends).all()
        assert said == reason
