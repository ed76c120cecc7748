"""Aux: half of each batch gets a band, only the clean half is rebuilt, and the logit may enter the score."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dinomaly_hd.batch import Batch
from dinomaly_hd.config import with_values
from dinomaly_hd.config.presets import quick_dinomaly
from dinomaly_hd.config.variants import VARIANTS
from dinomaly_hd.models.auxiliary import BandClassifier
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.dinomaly.detector import Dinomaly, initialise
from dinomaly_hd.models.draem.faults import horizontal_bands
from dinomaly_hd.models.weights import Weights


def detector(variant: str = "aux", **values: Any) -> Dinomaly:
    sizes = {"image_size": "64", "decoder_depth": 2, "map_size": "32"}
    run = with_values(quick_dinomaly(VARIANTS[variant]()), {**sizes, **values})
    built = build_detector(run, weights=Weights("random", None, "random"))
    assert isinstance(built, Dinomaly)
    return built


def images(count: int) -> Tensor:
    return torch.rand(count, 31, 95, generator=torch.Generator().manual_seed(6)) + 0.5


def encoded(count: int) -> Tensor:
    return torch.randn(count, 2, 64, 192, generator=torch.Generator().manual_seed(5))


def batch_of(encoded_BSND: Tensor) -> Batch:
    count = len(encoded_BSND)
    return Batch(images(count), torch.zeros(count, dtype=torch.int64), encoded_BSND)


@pytest.mark.parametrize(("count", "clean"), [(1, 1), (2, 1), (5, 3), (8, 4)])
def test_the_second_half_of_a_batch_gets_the_bands_of_its_step(count: int, clean: int) -> None:
    part = BandClassifier(4, weight=0.1, score_weight=0.0, seed=9)
    given = images(count)
    altered = part.alter(given, step=7)
    assert part.clean(count) == clean
    assert torch.equal(altered[:clean], given[:clean])
    assert torch.equal(altered[clean:], horizontal_bands(given[clean:], seed=9, position=7).images_BHW)
    assert torch.equal(altered, part.alter(given, step=7))
    if count > clean:
        assert not torch.equal(altered, part.alter(given, step=8))
        other = BandClassifier(4, weight=0.1, score_weight=0.0, seed=10)
        assert not torch.equal(altered, other.alter(given, step=7))


def test_only_aux_alters_its_images() -> None:
    altering = {name for name in VARIANTS if detector(name).alters_images}
    assert altering == {"aux"}
    given = images(2)
    assert detector("baseline").alter(given, step=0) is given


def test_only_the_clean_half_is_rebuilt() -> None:
    features = encoded(6)
    other = torch.cat([features[:3], encoded(9)[6:]])
    # No dropout: with it, the numbers drawn for the clean half would depend on the batch's size.
    aux, plain = detector(bottleneck_dropout=0), detector("baseline", bottleneck_dropout=0)
    step = 400
    first, second = (aux.training_loss(batch_of(given), step=step) for given in (features, other))
    alone = plain.training_loss(batch_of(features[:3]), step=step).total
    rebuilt = [loss.total - 0.1 * loss.parts["aux_loss"] for loss in (first, second)]
    assert rebuilt[0].item() == pytest.approx(alone.item(), rel=1e-6)
    assert rebuilt[1].item() == pytest.approx(alone.item(), rel=1e-6)
    assert first.parts["aux_loss"] != second.parts["aux_loss"], "the classifier sees both halves"


def test_the_loss_is_the_weighted_cross_entropy_of_the_halves() -> None:
    part = BandClassifier(4, weight=0.3, score_weight=0.0, seed=9)
    tokens = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))
    total, parts = part.loss(tokens)
    logits = part.logit(tokens).tolist()
    labels = [0, 0, 0, 1, 1]
    terms = [
        math.log1p(math.exp(-logit if label else logit)) for logit, label in zip(logits, labels, strict=True)
    ]
    assert total.item() == pytest.approx(0.3 * sum(terms) / 5, rel=1e-5)
    assert float(parts["aux_loss"]) == pytest.approx(sum(terms) / 5, rel=1e-5)
    right = [(logit > 0) == bool(label) for logit, label in zip(logits, labels, strict=True)]
    assert float(parts["aux_accuracy"]) == pytest.approx(sum(right) / 5)


def test_a_batch_of_one_image_has_no_band_and_a_finite_loss() -> None:
    part = BandClassifier(4, weight=0.1, score_weight=0.0, seed=9)
    assert torch.equal(part.alter(images(1), step=0), images(1))
    assert torch.isfinite(part.loss(torch.zeros(1, 3, 4)).total)


def test_the_classifier_learns_an_easy_set() -> None:
    part = BandClassifier(16, weight=1.0, score_weight=0.0, seed=9)
    initialise(part, seed=3)
    optimizer = torch.optim.Adam(part.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    accuracy = []
    for _ in range(40):
        tokens = torch.randn(16, 10, 16, generator=generator)
        tokens[8:, :2] += 2.0  # a fifth of an altered image's tokens is moved
        loss = part.loss(tokens)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        accuracy.append(float(loss.parts["aux_accuracy"]))
    assert sum(accuracy[-5:]) / 5 > 0.95
    assert sum(accuracy[:3]) / 3 < 0.8


def test_its_gradient_reaches_the_bottleneck() -> None:
    model = detector()
    loss = model.training_loss(batch_of(encoded(4)), step=0)
    found = torch.autograd.grad(loss.total, list(model.auxiliary.parameters()))  # type: ignore[union-attr]
    assert all(torch.isfinite(slope).all() for slope in found)
    weight = model.bottleneck.fc2.weight  # type: ignore[attr-defined]
    with_task, without = (torch.autograd.grad(detector_loss(model, scale), weight)[0] for scale in (1.0, 0.0))
    assert not torch.equal(with_task, without)


def detector_loss(model: Dinomaly, weight: float) -> Tensor:
    assert model.auxiliary is not None
    model.auxiliary.weight = weight
    return model.training_loss(batch_of(encoded(4)), step=0).total


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_logit_enters_the_score_by_its_weight(weight: float) -> None:
    features = encoded(3)
    plain, mixed, without = (
        model.score(features)
        for model in (detector("baseline"), detector(aux_score_weight=weight), detector())
    )
    assert torch.equal(without.score_B, plain.score_B), "weight 0 leaves the score as it is"
    assert torch.equal(mixed.map_BHW, plain.map_BHW)
    model = detector()
    tokens = model.bottleneck(features.mean(dim=1), noise=None).tokens_BND
    assert model.auxiliary is not None
    logit_B = model.auxiliary.logit(tokens).detach()
    assert logit_B.abs().min() > 0
    torch.testing.assert_close(mixed.score_B, plain.score_B + weight * logit_B)
