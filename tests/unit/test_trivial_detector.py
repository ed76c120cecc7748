"""The detector without a model: its scores are the trivial scores, its map is the input."""

import numpy as np
import torch

from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.models.weights import locate
from dinomaly_hd.trivial import PREFIX, TRIVIAL, trivial_scores

IMAGES = np.random.default_rng(0).gamma(2.0, size=(5, 31, 95)).astype(np.float32)


def detector_of(name: str, *, map_size: str = "31x95") -> Detector:
    run = resolve_model("trivial", {"preset": "quick", "trivial_score": name, "map_size": map_size})
    return build_detector(run, weights=locate(run.encoder.encoder, run.encoder.encoder_weights))


def test_its_scores_are_the_tables_to_the_last_bit_whatever_the_batch_and_its_map_is_the_input() -> None:
    images = torch.from_numpy(IMAGES)
    for name in TRIVIAL:
        detector = detector_of(name)
        found = detector.score(detector.encode(images)).score_B
        assert found.dtype == torch.float64
        np.testing.assert_array_equal(found.numpy(), trivial_scores(IMAGES)[PREFIX + name])
        for image, expected in zip(images, found, strict=True):
            assert detector.score(detector.encode(image[None])).score_B == expected
        assert detector.parameter_groups() == []
        assert detector.state_dict() == {}
    torch.testing.assert_close(detector_of("max").score(images).map_BHW, images)
    assert detector_of("max", map_size="8x16").score(images).map_BHW.shape == (5, 8, 16)
