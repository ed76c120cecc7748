"""Dinomaly's promises: one start for all variants, noise by step, exact scores; and its second task."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from dinomaly_hd.batch import Batch
from dinomaly_hd.config.base import with_values
from dinomaly_hd.config.dinomaly import BandClassifier
from dinomaly_hd.config.presets import preset_run
from dinomaly_hd.config.variants import VARIANTS
from dinomaly_hd.models import fast as pieces
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.dinomaly import decoder as auxiliary
from dinomaly_hd.models.dinomaly.detector import Dinomaly
from dinomaly_hd.models.draem.faults import horizontal_bands
from dinomaly_hd.models.weights import Weights

UNLIKE = ("baseline", "gem", "aux", "horizontal_topk", "row_mask")
"""Variants that differ in all that makes a score."""


@cache
def detector(variant: str, **values: Any) -> Dinomaly:
    sizes = {"image_size": "64", "decoder_depth": 2, "map_size": "32"}
    run = with_values(preset_run("quick", VARIANTS[variant]()), {**sizes, **values})
    built = build_detector(run, weights=Weights("random", None, "random"))
    assert isinstance(built, Dinomaly)
    return built


def encoded(batch: int = 2) -> Tensor:
    return torch.randn(batch, 2, 64, 192, generator=torch.Generator().manual_seed(5))


def images(count: int) -> Tensor:
    return torch.rand(count, 31, 95, generator=torch.Generator().manual_seed(6)) + 0.5


def batch_of(encoded_BSND: Tensor) -> Batch:
    count = len(encoded_BSND)
    return Batch(images(count), torch.zeros(count, dtype=torch.int64), encoded_BSND)


def test_the_start_is_a_function_of_the_seed() -> None:
    parts: list[Any] = [detector("baseline", seed=seed).bottleneck for seed in (42, 43)]
    first, other = (part.fc1.weight.detach() for part in parts)
    assert not torch.equal(first, other)
    assert float(first.abs().max()) <= 0.03
    assert float(first.std()) == pytest.approx(0.0099, abs=2e-4)


def test_scores_of_pieces_are_those_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    features = encoded(5)
    whole = {variant: detector(variant).score(features) for variant in UNLIKE}
    monkeypatch.setattr(pieces, "CACHED_BYTES", 2 * 4 * 64 * 4 * 192)
    for variant, expected in whole.items():
        for found, other in zip(detector(variant).score(features), expected, strict=True):
            torch.testing.assert_close(found, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", UNLIKE)
def test_half_the_bits_of_an_encoder_move_losses_and_scores_little(variant: str) -> None:
    losses, scores = [], []
    for precision, dtype in (("32", torch.float32), ("bf16", torch.float16)):
        model = detector(variant, precision=precision)
        features = model.encode(images(2))
        assert features.dtype == dtype
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model.encode(images(2)), features)
        losses.append(float(model.training_loss(batch_of(features), step=0).total.detach()))
        scores.append(model.score(features).score_B)
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-2, atol=0)
    assert not torch.equal(scores[1], scores[0])


# Aux: half of each batch gets a band, only the clean half is rebuilt, and the logit may enter the score


def classifier(width: int = 4, *, seed: int = 9, **values: float) -> auxiliary.BandClassifier:
    return auxiliary.BandClassifier(BandClassifier(**values), width, seed)


@pytest.mark.parametrize(("count", "clean"), [(1, 1), (2, 1), (5, 3), (8, 4)])
def test_the_second_half_of_a_batch_gets_the_bands_of_its_step(count: int, clean: int) -> None:
    part = classifier()
    given = images(count)
    altered = part.alter(given, step=7)
    assert part.clean(count) == clean
    assert torch.equal(altered[:clean], given[:clean])
    assert torch.equal(altered[clean:], horizontal_bands(given[clean:], seed=9, position=7).images_BHW)
    assert torch.equal(altered, part.alter(given, step=7))
    others = part.alter(given, step=8), classifier(seed=10).alter(given, step=7)
    assert all(torch.equal(altered, other) == (count == clean) for other in others)
    assert torch.isfinite(part.loss(torch.zeros(count, 3, 4)).total)
    assert {name for name in VARIANTS if detector(name).alters_images} == {"aux"}
    assert detector("baseline").alter(given, step=0) is given


def test_only_the_clean_half_is_rebuilt() -> None:
    features = encoded(6)
    other = torch.cat([features[:3], encoded(9)[6:]])
    # No dropout: with it, the numbers drawn for the clean half would depend on the batch's size.
    aux, plain = detector("aux", bottleneck_dropout=0), detector("baseline", bottleneck_dropout=0)
    alone = plain.training_loss(batch_of(features[:3]), step=400).total
    losses = [aux.training_loss(batch_of(given), step=400) for given in (features, other)]
    for loss in losses:
        assert (loss.total - 0.1 * loss.parts["aux_loss"]).item() == pytest.approx(alone.item(), rel=1e-6)
    assert losses[0].parts["aux_loss"] != losses[1].parts["aux_loss"], "the classifier sees both halves"


def test_the_loss_is_the_weighted_cross_entropy_of_the_halves() -> None:
    part = classifier(aux_weight=0.3)
    tokens = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))
    total, parts = part.loss(tokens)
    signed = (part.logit(tokens) * torch.tensor([-1, -1, -1, 1, 1])).tolist()
    loss = sum(math.log1p(math.exp(-logit)) for logit in signed) / 5
    assert total.item() == pytest.approx(0.3 * loss, rel=1e-5)
    assert float(parts["aux_loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(parts["aux_accuracy"]) == pytest.approx(sum(logit > 0 for logit in signed) / 5)
    # Its gradient reaches the bottleneck.
    slopes = []
    for weight in (0.1, 0.0):
        model: Any = detector("aux", aux_weight=weight)
        total = model.training_loss(batch_of(encoded(4)), step=0).total
        trained = [*model.auxiliary.parameters(), model.bottleneck.fc2.weight]
        *found, slope = torch.autograd.grad(total, trained)
        assert all(torch.isfinite(one).all() for one in found)
        slopes.append(slope)
    assert not torch.equal(*slopes)


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_the_logit_enters_the_score_by_its_weight(weight: float) -> None:
    features, model = encoded(3), detector("aux", aux_score_weight=weight)
    plain, mixed = detector("baseline").score(features), model.score(features)
    tokens = model.bottleneck(features.mean(dim=1), noise=None).tokens_BND
    logit_B = model.auxiliary.logit(tokens).detach()
    assert logit_B.abs().min() > 0
    assert torch.equal(mixed.map_BHW, plain.map_BHW)
    torch.testing.assert_close(mixed.score_B, plain.score_B + weight * logit_B)
