"""At 1000 images per split the simulated data have the real statistics (spec hdmap.md, section 2)."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from sklearn.metrics import roc_auc_score

from dinomaly_hd.data.simulator import SIZES, simulate_domain

Maps = NDArray[np.float32]
Scores = NDArray[np.float32]
Score = Callable[[Maps], Scores]
SLICES = {"all": slice(None), "cold": slice(0, 500), "warm": slice(500, None)}
SEEDS = (42, 0, 1, 2)
pytestmark = pytest.mark.slow


class Simulated(NamedTuple):
    train: Maps
    good: Maps
    fault: Maps
    masks: NDArray[np.uint8]


@cache
def simulated(domain: str, seed: int) -> Simulated:
    parts = simulate_domain(domain, size=SIZES["full"], seed=seed)
    return Simulated(parts.train.maps_NRC, parts.good.maps_NRC, parts.fault.maps_NRC, parts.fault.masks_NRC)


# training mean, training std, test good mean, test fault mean: within 0.02
MEANS = {
    "A": (0.248, 0.084, 0.217, 0.228),
    "B": (0.253, 0.084, 0.223, 0.190),
    "C": (0.246, 0.072, 0.228, 0.263),
    "D": (0.218, 0.082, 0.197, 0.181),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("domain", MEANS)
def test_means_and_deviations_of_each_domain(domain: str, seed: int) -> None:
    data = simulated(domain, seed)
    reached = (data.train.mean(), data.train.std(), data.good.mean(), data.fault.mean())
    assert reached == pytest.approx(MEANS[domain], abs=0.02)


# training minimum, largest test good and test fault value: single pixels of the real data, so wider
EXTREMES = {
    "A": (0.047, 1.086, 1.268),
    "B": (0.037, 0.930, 0.945),
    "C": (0.074, 1.088, 2.939),
    "D": (0.032, 0.898, 1.482),
}


@pytest.mark.parametrize("domain", EXTREMES)
def test_extremes_of_each_domain(domain: str) -> None:
    data = simulated(domain, 42)
    minimum, largest_good, largest_fault = EXTREMES[domain]
    assert data.train.min() == pytest.approx(minimum, abs=0.02)
    assert data.good.max() == pytest.approx(largest_good, abs=0.1)
    assert data.fault.max() == pytest.approx(largest_fault, abs=0.25)


# image mean, its std over images, image std, image maximum, its std over images: within 15 %
PER_CONDITION = {
    ("good", "cold"): (0.190, 0.015, 0.046, 0.487, 0.110),
    ("good", "warm"): (0.265, 0.017, 0.075, 0.748, 0.085),
    ("fault", "cold"): (0.216, 0.016, 0.057, 0.596, 0.118),
    ("fault", "warm"): (0.310, 0.020, 0.101, 1.911, 0.436),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("label", "condition"), PER_CONDITION)
def test_domain_c_per_condition(label: str, condition: str, seed: int) -> None:
    maps = getattr(simulated("C", seed), label)[SLICES[condition]]
    means, maxima = mean(maps), maximum(maps)
    reached = (means.mean(), means.std(), deviation(maps).mean(), maxima.mean(), maxima.std())
    assert reached == pytest.approx(PER_CONDITION[label, condition], rel=0.15)


def maximum(maps: Maps) -> Scores:
    return np.asarray(maps.max(axis=(1, 2)))


def mean(maps: Maps) -> Scores:
    return np.asarray(maps.mean(axis=(1, 2)))


def deviation(maps: Maps) -> Scores:
    return np.asarray(maps.std(axis=(1, 2)))


def peak(maps: Maps) -> Scores:
    return (maximum(maps) - mean(maps)) / deviation(maps)


def auroc(data: Simulated, score: Score, condition: str) -> float:
    good, fault = (score(maps[SLICES[condition]]) for maps in (data.good, data.fault))
    labels = np.repeat([0, 1], [len(good), len(fault)])
    return float(roc_auc_score(labels, np.concatenate((good, fault))))


TRIVIAL: dict[Score, dict[str, float]] = {
    maximum: {"all": 0.73, "cold": 0.76, "warm": 1.00},
    mean: {"all": 0.71, "cold": 0.87, "warm": 0.95},
    deviation: {"all": 0.71, "cold": 0.82, "warm": 1.00},
    peak: {"all": 0.785},
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("score", "condition", "target"),
    [
        pytest.param(score, condition, target, id=f"{score.__name__}-{condition}")
        for score, row in TRIVIAL.items()
        for condition, target in row.items()
    ],
)
def test_trivial_scores_of_domain_c(score: Score, condition: str, target: float, seed: int) -> None:
    assert auroc(simulated("C", seed), score, condition) == pytest.approx(target, abs=0.05)


def test_the_maximum_finds_half_the_faults_of_domain_c_at_one_percent_false_alarms() -> None:
    data = simulated("C", 42)
    threshold = np.quantile(maximum(data.good), 0.99)
    assert (maximum(data.fault) > threshold).mean() == pytest.approx(0.50, abs=0.05)


def test_every_warm_fault_of_domain_c_but_the_rarest_holds_a_value_above_one() -> None:
    warm = maximum(simulated("C", 42).fault[SLICES["warm"]])
    assert (warm > 1).sum() >= 499


def row_filter(train: Maps) -> Score:
    """The matched filter: row contrast of a 1 x 15 mean, standardised per row on the training normals."""

    def contrast(maps: Maps) -> Maps:
        smooth = uniform_filter1d(maps, 15, axis=2, mode="wrap")
        around = np.mean([np.roll(smooth, step, axis=1) for step in (-4, -3, -2, 2, 3, 4)], axis=0)
        return np.asarray(smooth - around)

    known = contrast(train)
    centre, spread = known.mean(axis=(0, 2)), known.std(axis=(0, 2))
    return lambda maps: np.asarray(((contrast(maps) - centre[:, None]) / spread[:, None]).max(axis=(1, 2)))


@pytest.mark.parametrize("seed", SEEDS)
def test_cold_faults_of_domain_c_are_hard_but_not_hopeless_for_a_filter_that_knows_their_shape(
    seed: int,
) -> None:
    data = simulated("C", seed)
    assert 0.85 < auroc(data, row_filter(data.train), "cold") < 0.99


@pytest.mark.parametrize("domain", "ABD")
@pytest.mark.parametrize("condition", ["cold", "warm"])
def test_faults_of_the_other_domains_are_clear(domain: str, condition: str) -> None:
    data = simulated(domain, 42)
    assert auroc(data, row_filter(data.train), condition) > 0.98


def test_cold_bands_of_domain_c_are_faint_and_small() -> None:
    data = simulated("C", 42)
    contrasts, areas = [], []
    for map_RC, mask_RC in zip(data.fault[SLICES["cold"]], data.masks[SLICES["cold"]], strict=True):
        rows = np.flatnonzero(mask_RC.any(axis=1))
        around = sorted({(row + step) % 31 for row in rows for step in (-3, -2, 2, 3)} - set(rows))
        contrasts.append(map_RC[mask_RC > 0].mean() / map_RC[around].mean())
        areas.append(mask_RC.mean())
    assert np.mean(contrasts) == pytest.approx(1.3, abs=0.1)
    assert np.mean(areas) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("domain", "ABCD")
@pytest.mark.parametrize("score", [mean, deviation, maximum], ids=["mean", "deviation", "maximum"])
def test_training_and_test_normals_of_one_condition_are_alike(domain: str, score: Score) -> None:
    data = simulated(domain, 42)
    for train, good in ((data.train[:200], data.good[:500]), (data.train[200:], data.good[500:])):
        labels = np.repeat([0, 1], [len(train), len(good)])
        scores = np.concatenate((score(train), score(good)))
        assert roc_auc_score(labels, scores) == pytest.approx(0.5, abs=0.1)
