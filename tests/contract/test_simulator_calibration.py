"""At 1000 images per split the simulated data have the real statistics (spec hdmap.md, section 2)."""

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from dinomaly_hd.data.simulator import SIZES, simulate_domain
from dinomaly_hd.evaluation import metrics
from dinomaly_hd.trivial import TRIVIAL, RowFilter

Maps = NDArray[np.float32]
Scores = NDArray[np.float64]
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
def simulated(domain: str, seed: int = 42) -> Simulated:
    parts = simulate_domain(domain, size=SIZES["full"], seed=seed)
    return Simulated(parts.train.maps_NRC, parts.good.maps_NRC, parts.fault.maps_NRC, parts.fault.masks_NRC)


# training mean and std, test good and fault mean: within 0.02. Then training minimum, largest test good and
# fault value: single pixels of the real data, so wider, and of one seed.
DOMAINS = {
    "A": ((0.248, 0.084, 0.217, 0.228), (0.047, 1.086, 1.268)),
    "B": ((0.253, 0.084, 0.223, 0.190), (0.037, 0.930, 0.945)),
    "C": ((0.246, 0.072, 0.228, 0.263), (0.074, 1.088, 2.939)),
    "D": ((0.218, 0.082, 0.197, 0.181), (0.032, 0.898, 1.482)),
}


@pytest.mark.parametrize("domain", DOMAINS)
def test_means_deviations_and_extremes_of_each_domain(domain: str) -> None:
    means, (minimum, largest_good, largest_fault) = DOMAINS[domain]
    for seed in SEEDS if domain == "C" else SEEDS[:2]:
        data = simulated(domain, seed)
        reached = (data.train.mean(), data.train.std(), data.good.mean(), data.fault.mean())
        assert reached == pytest.approx(means, abs=0.02), seed
    data = simulated(domain)
    assert data.train.min() == pytest.approx(minimum, abs=0.02)
    assert data.good.max() == pytest.approx(largest_good, abs=0.1)
    assert data.fault.max() == pytest.approx(largest_fault, abs=0.25)


def separation(good: Scores, fault: Scores) -> float:
    return metrics.auroc(np.concatenate((good, fault)), np.repeat([0, 1], [len(good), len(fault)]))


def auroc(data: Simulated, score: Score, condition: str) -> float:
    return separation(*(score(maps[SLICES[condition]]) for maps in (data.good, data.fault)))


# image mean, its std over images, image std, image maximum, its std over images: within 15 %
PER_CONDITION = {
    ("good", "cold"): (0.190, 0.015, 0.046, 0.487, 0.110),
    ("good", "warm"): (0.265, 0.017, 0.075, 0.748, 0.085),
    ("fault", "cold"): (0.216, 0.016, 0.057, 0.596, 0.118),
    ("fault", "warm"): (0.310, 0.020, 0.101, 1.911, 0.436),
}
ALONE = {
    "max": {"all": 0.73, "cold": 0.76, "warm": 1.00},
    "mean": {"all": 0.71, "cold": 0.87, "warm": 0.95},
    "std": {"all": 0.71, "cold": 0.82, "warm": 1.00},
    "contrast": {"all": 0.785},
}
"""AUROC on C of what an image's own numbers give."""
maximum, mean, standard_deviation = (TRIVIAL[name] for name in ("max", "mean", "std"))


@pytest.mark.parametrize("seed", SEEDS)
def test_domain_c_has_its_statistics_per_condition_and_its_trivial_scores(seed: int) -> None:
    data = simulated("C", seed)
    for (label, condition), expected in PER_CONDITION.items():
        maps = getattr(data, label)[SLICES[condition]]
        means, maxima = mean(maps), maximum(maps)
        reached = (means.mean(), means.std(), standard_deviation(maps).mean(), maxima.mean(), maxima.std())
        assert reached == pytest.approx(expected, rel=0.15), (label, condition)
    for name, targets in ALONE.items():
        found = {condition: auroc(data, TRIVIAL[name], condition) for condition in targets}
        assert found == pytest.approx(targets, abs=0.05), name
    # Cold faults are hard but not hopeless for a filter that knows their shape.
    assert 0.85 < auroc(data, RowFilter.fit(data.train).score, "cold") < 0.99


def test_faults_of_domain_c_are_rarely_high_and_its_cold_bands_faint_and_small() -> None:
    data = simulated("C")
    threshold = np.quantile(maximum(data.good), 0.99)
    assert (maximum(data.fault) > threshold).mean() == pytest.approx(0.50, abs=0.05)
    assert (maximum(data.fault[SLICES["warm"]]) > 1).sum() >= 499, "all but the rarest"
    contrasts, areas = [], []
    for map_RC, mask_RC in zip(data.fault[SLICES["cold"]], data.masks[SLICES["cold"]], strict=True):
        rows = np.flatnonzero(mask_RC.any(axis=1))
        around = sorted({(row + step) % 31 for row in rows for step in (-3, -2, 2, 3)} - set(rows))
        contrasts.append(map_RC[mask_RC > 0].mean() / map_RC[around].mean())
        areas.append(mask_RC.mean())
    assert np.mean(contrasts) == pytest.approx(1.3, abs=0.1)
    assert np.mean(areas) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("domain", DOMAINS)
def test_other_domains_faults_are_clear_and_normals_of_one_condition_alike(domain: str) -> None:
    data = simulated(domain)
    if domain != "C":
        known = RowFilter.fit(data.train)
        assert all(auroc(data, known.score, one) > 0.98 for one in ("cold", "warm"))
    parts = ((data.train[:200], data.good[:500]), (data.train[200:], data.good[500:]))
    for score, (train, good) in product((mean, standard_deviation, maximum), parts):
        assert separation(score(train), score(good)) == pytest.approx(0.5, abs=0.1)
