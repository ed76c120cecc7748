"""Every loss equals a slow loop over tokens, in float64, values and gradients alike."""

import itertools
import math
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dinomaly_hd.batch import Batch
from dinomaly_hd.models.dinomaly.distance import GemPooling, MeanPooling, Pooling
from dinomaly_hd.models.losses import Focal, HardMining, PooledMining, ReconstructionLoss, TopK

IMAGES, ROWS, COLUMNS, WIDTH = 4, 3, 5, 4
TOKENS = ROWS * COLUMNS
ONE_TOKEN = 1.001 / (IMAGES * TOKENS)
DOMAINS = [2, 0, 2, 1]
BATCH = Batch(torch.zeros(IMAGES, 3, 3), torch.tensor(DOMAINS), None)
MEAN = MeanPooling()


class Pair(NamedTuple):
    encoder: Tensor
    decoder: Tensor


@cache
def pair() -> Pair:
    generator = torch.Generator().manual_seed(7)
    shape = (IMAGES, 2, TOKENS, WIDTH)
    encoder, decoder = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    return Pair(encoder, decoder.requires_grad_())


@cache
def distances(groups: Pair) -> list[list[list[Tensor]]]:
    """Return d[image][group][token], one cosine at a time."""

    def distance(image: int, group: int, token: int) -> Tensor:
        a, b = groups.encoder[image, group, token], groups.decoder[image, group, token]
        return 1 - (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())

    return [[[distance(i, s, n) for n in range(TOKENS)] for s in range(2)] for i in range(IMAGES)]


def means(groups: Pair) -> list[list[Tensor]]:
    """Return m[image][token], the mean over groups."""
    return [[(a + b) / 2 for a, b in zip(*image, strict=True)] for image in distances(groups)]


def gradient(loss: Tensor, groups: Pair) -> Tensor:
    (found,) = torch.autograd.grad(loss, groups.decoder, retain_graph=True)
    return found


def assert_equal(loss: ReconstructionLoss, expected: Tensor, *, groups: Pair, step: int = 0) -> None:
    total = loss(*groups, pooling=MEAN, batch=BATCH, step=step).total
    assert total.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(gradient(total, groups), gradient(expected, groups), atol=1e-12, rtol=0)


def largest(values: list[Tensor], k: int) -> list[Tensor]:
    return sorted(values, key=Tensor.item, reverse=True)[:k]


def average(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


# Hard mining


@pytest.mark.parametrize(("step", "p"), [(0, 0.0), (500, 0.45), (2000, 0.9)])
def test_hard_mining_equals_a_loop(step: int, p: float) -> None:
    groups = pair()
    found = distances(groups)
    value = torch.zeros((), dtype=torch.float64)
    factor = torch.ones(IMAGES, 2, TOKENS, dtype=torch.float64)
    for group in range(2):
        for image in range(IMAGES):
            a, b = groups.encoder[image, group].flatten(), groups.decoder[image, group].flatten()
            value = value + (1 - (a @ b) / (a.norm() * b.norm())) / (2 * IMAGES)
        own = [found[i][group][n] for i, n in itertools.product(range(IMAGES), range(TOKENS))]
        threshold = largest(own, max(1, int(len(own) * (1 - p))))[-1]
        for image, token in itertools.product(range(IMAGES), range(TOKENS)):
            factor[image, group, token] = 0.1 if found[image][group][token] < threshold else 1.0
    loss = HardMining(discard_final=0.9, discard_warmup=1000, discard_factor=0.1)
    total, parts = loss(*groups, pooling=MEAN, batch=BATCH, step=step)
    assert total.item() == pytest.approx(value.item(), abs=1e-12)
    expected = gradient(value, groups) * factor[..., None]
    torch.testing.assert_close(gradient(total, groups), expected, atol=1e-12, rtol=0)
    assert float(parts["discard_rate"]) == pytest.approx(float((factor < 1).float().mean()))
    assert float(parts["discard_rate"]) == pytest.approx(p, abs=ONE_TOKEN)
    assert float(parts["discard_target"]) == pytest.approx(p)


# TopK


@pytest.mark.parametrize(("step", "q"), [(0, 100.0), (100, 51.0), (200, 2.0), (500, 2.0)])
@pytest.mark.parametrize("scope", ["batch", "sample", "domain"])
def test_topk_equals_a_loop(scope: str, step: int, q: float) -> None:
    groups = pair()
    of_image = means(groups)
    members = {"batch": [[0, 1, 2, 3]], "sample": [[0], [1], [2], [3]], "domain": [[0, 2], [1], [3]]}[scope]
    tails, kept = [], 0
    for images in members:
        own = [value for image in images for value in of_image[image]]
        k = max(1, math.floor(q / 100 * len(own)))
        tails.append(average(largest(own, k)))
        kept += k
    loss = TopK(q_percent=2.0, q_warmup=200, scope=scope, tail_context=0, grid=(ROWS, COLUMNS))
    assert loss.q_at(step) == pytest.approx(q)
    assert_equal(loss, average(tails), groups=groups, step=step)
    total, parts = loss(*groups, pooling=MEAN, batch=BATCH, step=step)
    assert float(parts["discard_rate"]) == pytest.approx(1 - kept / (IMAGES * TOKENS))
    assert float(parts["discard_target"]) == pytest.approx(1 - q / 100)
    assert int((gradient(total, groups).abs().sum((1, 3)) > 0).sum()) == kept


def test_topk_of_everything_is_the_mean_distance() -> None:
    groups = pair()
    everything = [value for image in means(groups) for value in image]
    loss = TopK(q_percent=100.0, q_warmup=0, scope="batch", tail_context=0, grid=(ROWS, COLUMNS))
    assert_equal(loss, average(everything), groups=groups)


@pytest.mark.parametrize("context", [1, 2, COLUMNS])
def test_a_directional_tail_is_chosen_on_smoothed_rows_and_paid_in_plain_distances(context: int) -> None:
    groups = pair()
    ranked: list[tuple[float, Tensor]] = []
    for own, row, column in itertools.product(means(groups), range(ROWS), range(COLUMNS)):
        inside = range(max(0, column - context), min(COLUMNS, column + context + 1))
        smoothed = sum(own[row * COLUMNS + near].item() for near in inside) / len(inside)
        ranked.append((smoothed, own[row * COLUMNS + column]))
    ranked.sort(key=lambda item: item[0], reverse=True)
    k = math.floor(0.25 * len(ranked))
    assert k % COLUMNS == 0  # where the context is a whole row, the tail is whole rows
    loss = TopK(q_percent=25.0, q_warmup=0, scope="batch", tail_context=context, grid=(ROWS, COLUMNS))
    assert_equal(loss, average([value for _, value in ranked[:k]]), groups=groups)
    plain = TopK(q_percent=25.0, q_warmup=0, scope="batch", tail_context=0, grid=(ROWS, COLUMNS))
    both = [side(*groups, pooling=MEAN, batch=BATCH, step=0).total.item() for side in (loss, plain)]
    assert both[0] < both[1], "the smoothed map chose the same tail"


# GEM


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("p", [0.0, 0.5, 0.9])
def test_gem_equals_a_loop(power: float, p: float) -> None:
    groups = pair()
    pooled = [
        [
            ((a.clamp(min=1e-6) ** power + b.clamp(min=1e-6) ** power) / 2) ** (1 / power)
            for a, b in zip(*image, strict=True)
        ]
        for image in distances(groups)
    ]
    flat = [value for image in pooled for value in image]
    threshold = largest(flat, max(1, int(len(flat) * (1 - p))))[-1]
    easy = torch.tensor([[bool(value < threshold) for value in image] for image in pooled])
    factor = torch.ones_like(easy, dtype=torch.float64).masked_fill(easy, 0.3)
    loss = PooledMining(discard_final=p, discard_warmup=0, gem_factor=0.3)
    total, parts = loss(*groups, pooling=GemPooling(power), batch=BATCH, step=0)
    assert total.item() == pytest.approx(average(flat).item(), abs=1e-12)
    # A token's pooled distance reads that token only, so its factor scales the whole gradient of the token.
    expected = gradient(average(flat), groups) * factor[:, None, :, None]
    torch.testing.assert_close(gradient(total, groups), expected, atol=1e-12, rtol=0)
    assert float(parts["discard_rate"]) == pytest.approx(p, abs=ONE_TOKEN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [0.05, 3.0, 50.0, 1000.0])
def test_gem_stays_finite_where_powers_underflow(power: float, dtype: torch.dtype) -> None:
    values = [[0.0, 0.0], [1e-9, 1e-3], [1e-6, 1e-6], [1e-5, 2.0], [2.0, 2.0], [-1e-8, 0.3]]
    distance_BSN = torch.tensor(values, dtype=dtype).T[None].requires_grad_()
    pooled = GemPooling(power)(distance_BSN)
    (slope,) = torch.autograd.grad(pooled.sum(), distance_BSN)
    assert torch.isfinite(slope).all()
    assert not slope[0, :, 0].any(), "below 1e-6 there is no gradient"
    for value, found in zip(values, pooled.flatten().tolist(), strict=True):
        a, b = sorted(max(one, 1e-6) for one in value)
        # log((a^P + b^P) / 2) / P, with the larger power taken out
        logarithm = math.log(b) + math.log1p(math.expm1(power * math.log(a / b)) / 2) / power
        assert found == pytest.approx(math.exp(logarithm), rel=1e-4 if dtype == torch.float32 else 1e-9)
        assert a * (1 - 1e-5) <= found <= b * (1 + 1e-5)


def test_gem_in_the_map_is_gem_in_the_loss() -> None:
    distance_BShw = torch.rand(2, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = ((distance_BShw[:, 0] ** 3 + distance_BShw[:, 1] ** 3) / 2) ** (1 / 3)
    torch.testing.assert_close(GemPooling(3.0)(distance_BShw), expected)
    torch.testing.assert_close(GemPooling(3.0)(distance_BShw.flatten(2)), expected.flatten(1))


# Focal


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 6.0])
def test_focal_equals_a_loop_whose_weights_are_plain_numbers(gamma: float) -> None:
    groups = pair()
    found = distances(groups)
    total, largest_weight = torch.zeros((), dtype=torch.float64), 0.0
    for group in range(2):
        own = [value for image in found for value in image[group]]
        tau = sum(value.item() for value in own) / len(own)
        raw = [(value.item() / tau) ** gamma for value in own]
        weights = [weight * len(raw) / sum(raw) for weight in raw]
        assert sum(weights) / len(weights) == pytest.approx(1)
        largest_weight = max(largest_weight, *weights)
        terms = [weight * value for weight, value in zip(weights, own, strict=True)]
        total = total + average(terms) / 2
    assert_equal(Focal(gamma=gamma), total, groups=groups)
    parts = Focal(gamma=gamma)(*groups, pooling=MEAN, batch=BATCH, step=0).parts
    assert float(parts["focal_weight_max"]) == pytest.approx(largest_weight)


def test_focal_without_gamma_is_the_mean_distance() -> None:
    groups = pair()
    everything = [value for image in means(groups) for value in image]
    assert_equal(Focal(gamma=0.0), average(everything), groups=groups)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_of_a_perfect_copy_is_zero_and_finite(gamma: float) -> None:
    encoder = torch.randn(2, 2, 6, 4, generator=torch.Generator().manual_seed(2))
    groups = Pair(encoder, encoder.clone().requires_grad_())
    total = Focal(gamma=gamma)(*groups, pooling=MEAN, batch=BATCH, step=0).total
    assert total.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(gradient(total, groups)).all()


# All


POOLED: list[tuple[ReconstructionLoss, Pooling]] = [
    (HardMining(discard_final=0.9, discard_warmup=0, discard_factor=0.1), MEAN),
    (PooledMining(discard_final=0.9, discard_warmup=0, gem_factor=0.3), GemPooling(3.0)),
    (Focal(gamma=2.0), MEAN),
    (TopK(q_percent=10.0, q_warmup=0, scope="batch", tail_context=1, grid=(ROWS, COLUMNS)), MEAN),
]


@pytest.mark.parametrize(("loss", "pooling"), POOLED, ids=lambda part: type(part).__name__)
def test_no_gradient_reaches_the_encoder(loss: ReconstructionLoss, pooling: Pooling) -> None:
    encoder, decoder = (side.detach().clone().requires_grad_() for side in pair())
    total = loss(encoder, decoder, pooling=pooling, batch=BATCH, step=0).total
    found = torch.autograd.grad(total, (encoder, decoder), allow_unused=True)
    assert found[0] is None
    assert found[1].abs().sum() > 0
