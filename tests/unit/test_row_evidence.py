"""Row evidence against a slow reading of spec/row_evidence.md in loops, and what it must not depend on."""

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from dinomaly_hd.config.families import RowEvidenceConfig
from dinomaly_hd.data.features import ImageStore, image_batches
from dinomaly_hd.errors import DataError
from dinomaly_hd.models.row_evidence import Evidence, RowEvidence, factor_bands, fit

ROWS, COLUMNS = 9, 49
CONFIG = RowEvidenceConfig(evidence_copies=2)


def maps(count: int, *, seed: int = 0) -> np.ndarray:
    """Positive maps with a signature, whose rows are alike but for a shift: texture that runs across them."""
    draw = np.random.default_rng(seed)
    along = draw.normal(size=(count, COLUMNS))
    texture = np.stack([np.roll(along, row, axis=1) for row in range(ROWS)], axis=1)
    signature = np.random.default_rng(99).normal(0, 0.1, (ROWS, COLUMNS))
    return np.exp(-1.4 + signature + 0.2 * texture + draw.normal(0, 0.2, (count, ROWS, COLUMNS)))


def fitted(images: np.ndarray, *, seed: int = 0) -> Evidence:
    return fit(images, CONFIG, seed=seed, tick=lambda: None)


def detector(images: np.ndarray, *, threads: int = 1, workers: int = 0) -> RowEvidence:
    """Return a detector fitted, by so many threads, on what a run's loader gives with so many processes."""
    made, store = RowEvidence(CONFIG, map_size=(ROWS, COLUMNS), seed=0), images.astype(np.float32)
    rest: Any = {"batch_size": 5, "num_workers": workers, "tick": lambda: None}
    with threadpool_limits(threads):
        made.fit_bank(image_batches(cast(ImageStore, store), np.arange(len(store)), **rest))
    return made


# ---- the plain reference: one number at a time ----


def median(values: list[float]) -> float:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def quantile(values: list[float], share: float) -> float:
    ordered, place = sorted(values), share * (len(values) - 1)
    low = math.floor(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(values) - 1)] - ordered[low])


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def window(row: list[float], width: int) -> list[float]:
    half = width // 2
    return [mean([row[(c + d) % len(row)] for d in range(-half, half + 1)]) for c in range(len(row))]


def levels_of(image: np.ndarray) -> list[list[float]]:
    logs = [[math.log(max(value, 1e-3)) for value in row] for row in image.tolist()]
    middle = median([value for row in logs for value in row])
    return [[value - middle for value in row] for row in logs]


def residual_of(level: list[list[float]], normal: list[list[float]]) -> list[list[float]]:
    left = [
        [a - b for a, b in zip(one, other, strict=True)] for one, other in zip(level, normal, strict=True)
    ]
    spread = 1.4826 * median([abs(value) for row in left for value in row])
    return [[min(4.0, max(-4.0, value / spread)) for value in row] for row in left]


SHIFTS = [(r, c) for r in (-3, -2, -1, 1, 2, 3) for c in (-3, -2, -1, 0, 1, 2, 3)]


def around(image: list[list[float]], r: int, c: int) -> list[float]:
    return [image[(r - dr) % ROWS][(c - dc) % COLUMNS] for dr, dc in SHIFTS]


def features_of(image: list[list[float]]) -> list[list[float]]:
    first = [[mean(row), median(row), mean([math.tanh(value) for value in row])] for row in image]
    found = []
    for r, row in enumerate(image):
        means = {width: window(row, width) for width in (5, 9, 17, 31, 47)}
        seven, own = window(row, 7), first[r][0]
        found.append(
            [
                *first[r],
                *(math.sqrt(width) * max(means[width]) for width in means),
                *(math.sqrt(width) * min(means[width]) for width in (9, 17)),
                mean([float(value > 1) for value in row]),
                *(mean([first[(r + d) % ROWS][k] for d in (-3, -2, 2, 3)]) for k in range(3)),
                *(first[(r + d) % ROWS][k] for d in (-1, 1) for k in range(3)),
                *(
                    mean([(row[c] - own) * (row[(c + lag) % COLUMNS] - own) for c in range(COLUMNS)])
                    for lag in (1, 2, 4)
                ),
                math.sqrt(mean([(value - mean(seven)) ** 2 for value in seven])),
                *(quantile(seven, share) for share in (0.1, 0.25, 0.75, 0.9)),
            ]
        )
    return found


def all_features(image: list[list[float]], weights: list[float], spread: float) -> list[list[float]]:
    left = [
        [
            min(4.0, max(-4.0, (image[r][c] - math.fsum(np.multiply(weights, around(image, r, c)))) / spread))
            for c in range(COLUMNS)
        ]
        for r in range(ROWS)
    ]
    return [one + other for one, other in zip(features_of(image), features_of(left), strict=True)]


def newton(rows: np.ndarray, label: np.ndarray, penalty: float) -> np.ndarray:
    """Logistic regression, both classes weighing the same: the minimum of mean loss + penalty/2 |w|^2."""
    share = np.where(label, 0.5 / label.sum(), 0.5 / (~label).sum())
    padded = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    ridge = np.append(np.full(rows.shape[1], penalty), 0.0)
    weights = np.zeros(padded.shape[1])
    for _ in range(60):
        chance = 1 / (1 + np.exp(-padded @ weights))
        slope = padded.T @ (share * (chance - label)) + ridge * weights
        curve = (padded * (share * chance * (1 - chance))[:, None]).T @ padded + np.diag(ridge)
        weights -= np.linalg.solve(curve, slope)
    return weights


def test_a_slow_plain_reference_agrees() -> None:
    images = maps(12)
    levels = [levels_of(image) for image in images]
    normal = [[mean([one[r][c] for one in levels]) for c in range(COLUMNS)] for r in range(ROWS)]
    residuals = [residual_of(level, normal) for level in levels]
    pixels = [(image, r, c) for image in residuals for r in range(ROWS) for c in range(COLUMNS)]
    beside = np.array([around(*place) for place in pixels])
    value = np.array([image[r][c] for image, r, c in pixels])
    gram = beside.T @ beside
    weights = np.linalg.solve(gram + 1e-3 * np.trace(gram) / 42 * np.eye(42), beside.T @ value)
    spread = float(np.std(value - beside @ weights))
    normals = np.array([all_features(image, weights.tolist(), spread) for image in residuals])
    usual = normals.mean(axis=0)
    scale = (normals - usual).std(axis=(0, 1))
    banded = []
    for copy in range(CONFIG.evidence_copies):
        bands = factor_bands(images, seed=0, copy=copy, positive=True)
        for n, row in bands.place_P2:
            image = residual_of(levels_of(bands.maps_NRC[n]), normal)
            banded.append(np.array(all_features(image, weights.tolist(), spread))[row] - usual[row])
    rows = np.concatenate([(normals - usual).reshape(-1, len(scale)), banded])
    label = np.arange(len(rows)) >= len(images) * ROWS
    learned = newton(np.clip(rows / scale, -6, 8), label, 1e-3)

    found = fitted(images)
    np.testing.assert_allclose(found.normal_RC, normal, atol=1e-12)
    np.testing.assert_allclose(found.neighbour_K, weights, atol=1e-10)
    np.testing.assert_allclose(found.remainder, spread, rtol=1e-10)
    np.testing.assert_allclose(found.usual_RF, usual, atol=1e-9)
    np.testing.assert_allclose([*found.weight_F, found.bias], learned, atol=1e-9)
    for image in maps(3, seed=1):
        features = all_features(residual_of(levels_of(image), normal), weights.tolist(), spread)
        standard = np.clip((np.array(features) - usual) / scale, -6, 8)
        evidence = standard @ learned[:-1] + learned[-1]
        np.testing.assert_allclose(found.of(image[None])[0][0], evidence, atol=1e-9, rtol=1e-9)


def test_bits_do_not_depend_on_threads_workers_or_company() -> None:
    images, others = maps(20), torch.from_numpy(maps(7, seed=3).astype(np.float32))
    alone, together = detector(images), detector(images, threads=2, workers=2)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, together.state_dict()[name]), name
    with threadpool_limits(2):
        whole = together.score(others)
    for n, one in enumerate(others):
        single = alone.score(one[None])
        assert torch.equal(single.score_B[0], whole.score_B[n])
        assert torch.equal(single.map_BHW[0], whole.map_BHW[n])
    other = RowEvidence(CONFIG, map_size=(ROWS, COLUMNS), seed=0)
    other.load_state_dict(alone.state_dict())
    assert torch.equal(other.score(others).score_B, whole.score_B)


def test_a_band_is_found_in_its_row() -> None:
    learned, good = detector(maps(40)), maps(10, seed=5)
    bad = good.copy()
    bad[:, 4, 10:40] *= 1.8
    scored = learned.score(torch.from_numpy(bad.astype(np.float32)))
    usual = learned.score(torch.from_numpy(good.astype(np.float32))).score_B
    assert scored.score_B.min() > usual.max()
    assert (scored.map_BHW.mean(dim=2).argmax(dim=1) == 4).all()
    assert (scored.map_BHW[:, 4, 12:38].mean(dim=1) > 2 * scored.map_BHW[:, 4, 45:].mean(dim=1)).all()


def test_bands_are_functions_of_seed_copy_and_place() -> None:
    images = maps(6)
    whole = factor_bands(images, seed=1, copy=2, positive=True)
    part = factor_bands(images[:2], seed=1, copy=2, positive=True)
    assert np.array_equal(whole.maps_NRC[:2], part.maps_NRC)
    assert not np.array_equal(whole.place_P2, factor_bands(images, seed=1, copy=3, positive=True).place_P2)
    for n, row in whole.place_P2:
        factor = whole.maps_NRC[n] / images[n]
        raised = {int(r) for r in np.flatnonzero((factor > 1).any(axis=1))}
        assert row in raised
        assert raised <= {row, (row - 1) % ROWS, (row + 1) % ROWS}
        assert (factor >= 1).all()


def test_maps_with_values_below_zero_take_no_logarithm() -> None:
    images = maps(20) - 0.4
    assert not fitted(images).logarithm
    assert fitted(images + 0.4).logarithm
    good = torch.from_numpy(images[:5].astype(np.float32))
    bad = good.clone()
    bad[:, 3] += 0.3
    learned = detector(images)
    assert learned.score(bad).score_B.min() > learned.score(good).score_B.max()


@pytest.mark.parametrize(
    "changed", [{"evidence_bands": "both"}, {"evidence_copies": 3}, {"evidence_penalty": 0.1}]
)
def test_every_value_changes_what_is_learned(changed: dict[str, object]) -> None:
    images = maps(12)
    other = fit(images, CONFIG.model_copy(update=changed), seed=0, tick=lambda: None)
    assert not np.array_equal(other.weight_F, fitted(images).weight_F)
    assert not np.array_equal(fitted(images, seed=1).weight_F, fitted(images).weight_F)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (maps(9), "9 training maps; it needs at least 10"),
        (np.concatenate([maps(10), np.ones((2, ROWS, COLUMNS))]), "2 of 12 training maps are constant"),
        (maps(10)[:, :5], "maps of 5x49; it needs at least 7x47"),
        (
            np.where(np.arange(COLUMNS) < 30, 0.1, maps(10)),
            "alike but for a factor, or in most of their pixels",
        ),
        (maps(1) * np.linspace(1, 2, 12)[:, None, None], "training maps are alike but for a factor"),
    ],
)
def test_what_nothing_can_be_learned_from_is_refused(images: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        fitted(images)
