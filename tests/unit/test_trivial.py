"""Model-free scores: their definitions, and what the row filter finds and ignores."""

import numpy as np
import pytest
import torch

from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.errors import DataError
from dinomaly_hd.evaluation.metrics import auroc
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.models.weights import locate
from dinomaly_hd.trivial import TRIVIAL, RowFilter, Scan, trivial_scores


def normals(count: int, *, seed: int, level: float = 0.2) -> np.ndarray:
    """Noise on a fixed signature of the rows, as float32 like the files."""
    rows = 1 + 0.2 * np.sin(np.arange(31))[:, None]
    noise = np.random.default_rng(seed).normal(size=(count, 31, 95))
    return (level * rows * (1 + 0.2 * noise)).astype(np.float32)


def with_band(images: np.ndarray, *, gain: float, length: int = 40) -> np.ndarray:
    banded = images.copy()
    for number, image in enumerate(banded):
        columns = (np.arange(length) + 7 * number) % 95
        image[(3 * number) % 31, columns] *= gain
    return banded


EXPECTED = {
    "max": lambda image: image.max(),
    "mean": lambda image: image.mean(),
    "std": lambda image: image.std(),
    "contrast": lambda image: (image.max() - image.mean()) / image.std(),
}


@pytest.mark.parametrize("name", TRIVIAL)
def test_each_score_is_its_definition_in_float64(name):
    images = normals(5, seed=0)
    scores = trivial_scores(images)[f"trivial/{name}"]
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, [EXPECTED[name](image.astype(float)) for image in images], rtol=1e-6)
    flat = trivial_scores(np.full((2, 31, 95), 0.5, dtype=np.float32))
    assert flat["trivial/contrast"].tolist() == [0.0, 0.0], "a flat image has no contrast"


def test_row_filter_finds_a_faint_band_that_the_maximum_misses():
    good, fault = normals(60, seed=2), with_band(normals(60, seed=3), gain=1.2)
    label, images = np.repeat([0, 1], 60), np.concatenate([good, fault])
    row_filter = RowFilter.fit(normals(100, seed=1))
    assert row_filter.width == 23
    assert auroc(row_filter.score(images), label) > 0.97
    assert auroc(trivial_scores(images)["trivial/max"], label) < 0.8


def test_row_filter_knows_that_both_gears_turn_and_takes_no_brightness_for_a_fault():
    fitted = RowFilter.fit(normals(100, seed=1))
    dim, bright = (fitted.score(normals(100, seed=2, level=level)) for level in (0.2, 0.28))
    np.testing.assert_allclose(dim, bright, rtol=1e-4)
    row_filter = RowFilter(width=23, mean_H=np.zeros(31), std_H=np.ones(31))
    image = with_band(normals(1, seed=4), gain=1.5)
    turned = np.roll(image, (13, 50), axis=(1, 2))
    np.testing.assert_allclose(row_filter.score(image), row_filter.score(turned), rtol=1e-9)


def test_row_filter_survives_black_images_and_needs_two_normals():
    black = np.zeros((3, 31, 95), dtype=np.float32)
    assert RowFilter.fit(black).score(black).tolist() == [0.0, 0.0, 0.0]
    assert RowFilter.fit(black).score(black[:0]).shape == (0,)
    with pytest.raises(DataError, match="1 train normals, expected at least 2"):
        RowFilter.fit(black[:1])


def detector_of(name: str, *, map_size: str = "31x95") -> Detector:
    run = resolve_model("trivial", {"preset": "quick", "trivial_score": name, "map_size": map_size})
    return build_detector(run, weights=locate(run.encoder.encoder, run.encoder.encoder_weights))


def test_the_detector_without_a_model_gives_these_scores_whatever_the_batch_and_the_map_itself() -> None:
    maps = normals(5, seed=0)
    images = torch.from_numpy(maps)
    for name in TRIVIAL:
        detector = detector_of(name)
        found = detector.score(detector.encode(images)).score_B
        assert found.dtype == torch.float64
        np.testing.assert_array_equal(found.numpy(), trivial_scores(maps)[f"trivial/{name}"])
        for image, expected in zip(images, found, strict=True):
            assert detector.score(detector.encode(image[None])).score_B == expected
        assert detector.parameter_groups() == []
        assert detector.state_dict() == {}
    torch.testing.assert_close(detector_of("max").score(images).map_BHW, images)
    assert detector_of("max", map_size="8x16").score(images).map_BHW.shape == (5, 8, 16)


def test_a_scanned_signature_is_what_the_row_has_more_than_normals_at_its_own_place():
    scan = Scan.fit(normals(200, seed=1))
    images = with_band(normals(40, seed=3, level=0.5), gain=1.6, length=48)
    signatures = scan.signatures(images)
    rows = [np.flatnonzero(one.any(axis=1)).tolist() for one in signatures]
    assert rows == [[(3 * number) % 31] for number in range(40)]
    inside = [one[(3 * n) % 31, (np.arange(48) + 7 * n) % 95] for n, one in enumerate(signatures)]
    # A louder map (level .5 for .2) is no signature; its band's own share of the map's level is 1 % of it.
    assert np.median(inside) == pytest.approx(0.6, abs=0.05)
    assert (signatures != 0).sum() < 40 * 64
    assert not scan.signatures(images[:0]).size
