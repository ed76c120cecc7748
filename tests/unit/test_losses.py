"""Every loss equals its formula in float64, values and gradients alike; hard mining: golden vectors."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dinomaly_hd.batch import Batch
from dinomaly_hd.config.dinomaly import (
    AdaptiveLoss,
    FocalLoss,
    GemDistance,
    HardMiningLoss,
    PooledMiningLoss,
    TopKLoss,
    WeightedDistance,
)
from dinomaly_hd.config.presets import preset_run
from dinomaly_hd.config.variants import VARIANTS
from dinomaly_hd.models.build import LOSSES
from dinomaly_hd.models.dinomaly import losses, score
from dinomaly_hd.models.dinomaly.losses import AdaptiveMining, ReconstructionLoss, angular_power_entropy
from dinomaly_hd.models.dinomaly.score import GemPooling, MeanPooling, WeightedPooling
from tests.golden.test_variant_losses import task_of
from tests.unit.test_dinomaly import detector as small

# B images, S groups, N tokens, D width
IMAGES, ROWS, COLUMNS, WIDTH = 4, 3, 5, 4
TOKENS = ROWS * COLUMNS
BATCH = Batch(torch.zeros(IMAGES, 3, 3), torch.tensor([2, 0, 2, 1]), None)
MEAN = MeanPooling()


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ENCODER, DECODER = (
    torch.randn(IMAGES, 2, TOKENS, WIDTH, dtype=torch.float64, generator=generator(seed)).requires_grad_()
    for seed in (7, 8)
)
DISTANCE_BSN = 1 - F.cosine_similarity(ENCODER, DECODER, dim=-1)
MEAN_BN = DISTANCE_BSN.mean(1)
OF_IMAGES_S = (1 - F.cosine_similarity(ENCODER.flatten(2), DECODER.flatten(2), dim=-1)).mean(0)


def made(config: Any) -> ReconstructionLoss:
    return LOSSES[config.loss](config, (ROWS, COLUMNS))


def assert_equal(
    loss: ReconstructionLoss,
    expected: Tensor,
    *,
    step: int = 0,
    factor: Tensor | float = 1.0,
    pooling: MeanPooling = MEAN,
    batch: Batch = BATCH,
) -> tuple[dict[str, float], Tensor]:
    """Compare value and gradient, the plain one times ``factor``; return the parts and the gradient."""
    total, parts = loss(ENCODER, DECODER, pooling=pooling, batch=batch, step=step)
    found, none = torch.autograd.grad(total, (DECODER, ENCODER), retain_graph=True, allow_unused=True)
    (plain,) = torch.autograd.grad(expected, DECODER, retain_graph=True)
    assert total.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(found, plain * factor, atol=1e-12, rtol=0)
    assert none is None, "the encoder is the target"
    return {name: float(part) for name, part in parts.items()}, found


def largest(values: Tensor, k: int) -> Tensor:
    return values.flatten().sort(descending=True).values[:k]


def is_easy(values: Tensor, p: float) -> Tensor:
    return values < largest(values, max(1, int(values.numel() * (1 - p))))[-1]


# TopK


@pytest.mark.parametrize(("step", "q"), [(0, 100.0), (100, 51.0), (200, 2.0), (500, 2.0)])
@pytest.mark.parametrize("scope", ["batch", "sample", "domain"])
def test_topk_is_the_mean_of_each_scopes_largest_distances(scope: str, step: int, q: float) -> None:
    members = {"batch": [[0, 1, 2, 3]], "sample": [[0], [1], [2], [3]], "domain": [[0, 2], [1], [3]]}[scope]
    counts = [max(1, math.floor(q / 100 * len(images) * TOKENS)) for images in members]
    tails = [largest(MEAN_BN[images], k).mean() for images, k in zip(members, counts, strict=True)]
    loss = made(TopKLoss(topk_scope=scope))
    parts, gradient = assert_equal(loss, torch.stack(tails).mean(), step=step)
    assert parts["discard_rate"] == pytest.approx(1 - sum(counts) / (IMAGES * TOKENS))
    assert parts["discard_target"] == pytest.approx(1 - q / 100)
    assert int((gradient.abs().sum((1, 3)) > 0).sum()) == sum(counts)


@pytest.mark.parametrize("context", [1, 2, COLUMNS])
def test_a_directional_tail_is_chosen_on_smoothed_rows_and_paid_in_plain_distances(context: int) -> None:
    rows = MEAN_BN.view(IMAGES, ROWS, COLUMNS)
    near = (torch.arange(COLUMNS)[:, None] - torch.arange(COLUMNS)).abs() <= context
    smoothed = (rows @ near.double() / near.sum(0)).flatten()
    k = math.floor(0.25 * IMAGES * TOKENS)
    assert k % COLUMNS == 0  # where the context is a whole row, the tail is whole rows
    tail = MEAN_BN.flatten()[smoothed.argsort(descending=True, stable=True)[:k]].mean()
    plain = largest(MEAN_BN, k).mean()
    assert tail < plain, "the smoothed map chose the same tail"
    assert_equal(made(TopKLoss(q_percent=25, q_warmup=0, tail_context=context)), tail)
    assert_equal(made(TopKLoss(q_percent=25, q_warmup=0)), plain)


# GEM


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("p", [0.0, 0.5, 0.9])
def test_gem_is_the_power_mean_mined_by_token(power: float, p: float) -> None:
    pooled_BN = (DISTANCE_BSN.clamp(min=1e-6) ** power).mean(1) ** (1 / power)
    # A token's pooled distance reads that token only, so its factor scales the whole gradient of the token.
    factor = 1 - 0.7 * is_easy(pooled_BN, p).view(IMAGES, 1, TOKENS, 1).double()
    config = PooledMiningLoss(discard_final=p, discard_warmup=0)
    pooling = GemPooling(GemDistance(gem_p=power))
    parts, _ = assert_equal(made(config), pooled_BN.mean(), factor=factor, pooling=pooling)
    assert parts["discard_rate"] == pytest.approx(p, abs=1.001 / (IMAGES * TOKENS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [0.05, 3.0, 50.0, 1000.0])
def test_gem_stays_finite_where_powers_underflow(power: float, dtype: torch.dtype) -> None:
    values = [[0.0, 0.0], [1e-9, 1e-3], [1e-6, 1e-6], [1e-5, 2.0], [2.0, 2.0], [-1e-8, 0.3]]
    distance_BSN = torch.tensor(values, dtype=dtype).T[None].requires_grad_()
    pooled = GemPooling(GemDistance(gem_p=power))(distance_BSN)
    (slope,) = torch.autograd.grad(pooled.sum(), distance_BSN)
    assert torch.isfinite(slope).all()
    assert not slope[0, :, 0].any(), "below 1e-6 there is no gradient"
    for value, found in zip(values, pooled.flatten().tolist(), strict=True):
        a, b = sorted(max(one, 1e-6) for one in value)
        # log((a^P + b^P) / 2) / P, with the larger power taken out
        logarithm = math.log(b) + math.log1p(math.expm1(power * math.log(a / b)) / 2) / power
        assert found == pytest.approx(math.exp(logarithm), rel=1e-4 if dtype == torch.float32 else 1e-9)
        assert a * (1 - 1e-5) <= found <= b * (1 + 1e-5)


# Focal


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 6.0])
def test_focal_weights_are_plain_numbers_and_a_perfect_copy_is_zero(gamma: float) -> None:
    raw_BSN = (DISTANCE_BSN / DISTANCE_BSN.mean((0, 2), keepdim=True)).detach() ** gamma
    weight_BSN = raw_BSN / raw_BSN.mean((0, 2), keepdim=True)
    parts, _ = assert_equal(made(FocalLoss(focal_gamma=gamma)), (weight_BSN * DISTANCE_BSN).mean())
    assert parts["focal_weight_max"] == pytest.approx(float(weight_BSN.max()))
    encoder = torch.randn(2, 2, 6, 4, generator=generator(2))
    decoder = encoder.clone().requires_grad_()
    total = made(FocalLoss(focal_gamma=gamma))(encoder, decoder, pooling=MEAN, batch=BATCH, step=0).total
    assert total.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(torch.autograd.grad(total, decoder)[0]).all()


# Adaptive


def noise_maps(count: int, *, shape: tuple[int, int] = (31, 95), seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=generator(seed))


def plain_entropy(image: Tensor) -> float:
    power = np.abs(np.fft.fft2(image.double().numpy())) ** 2
    vertical, horizontal = np.meshgrid(*(np.fft.fftfreq(side) for side in image.shape), indexing="ij")
    power[0, 0] = 0
    angle = np.arctan2(vertical, horizontal) % math.pi  # a direction and its opposite are one
    sector = np.minimum((angle * losses.SECTORS / math.pi).astype(int), losses.SECTORS - 1)
    share = np.bincount(sector.ravel(), weights=power.ravel(), minlength=losses.SECTORS)
    share = share[share > 0] / share.sum()
    return float(-(share * np.log(share)).sum() / math.log(losses.SECTORS))


def test_the_entropy_of_directions_is_zero_for_one_and_one_for_none() -> None:
    for shape in ((31, 95), (12, 8), (7, 30), (16, 16)):
        images_BHW = noise_maps(2, shape=shape).cumsum(dim=2)
        found = angular_power_entropy(images_BHW)
        assert found.dtype == torch.float64
        assert found.tolist() == pytest.approx([plain_entropy(image) for image in images_BHW], abs=1e-9)
        mirrored = 1e3 * images_BHW[1:].double().flip(1, 2) - 40  # alone, and of another scale and offset
        torch.testing.assert_close(angular_power_entropy(mirrored), found[1:], atol=1e-9, rtol=0)
    bands = torch.full((2, 31, 95), 0.2)
    bands[0, 10:12] += 0.7
    bands[1, 10:12, 20:60] += 0.7
    whole, part = angular_power_entropy(bands).tolist()
    assert [whole, angular_power_entropy(bands[:1].mT).item()] == pytest.approx([0, 0], abs=1e-6)
    assert 0.1 < part < 0.7, "a band of half the width lies between"
    assert angular_power_entropy(noise_maps(20)).min() > 0.97
    flat_maps = torch.tensor([0.0, 0.1, 1.0, 7.7]).view(4, 1, 1).expand(4, 31, 95)
    assert angular_power_entropy(flat_maps).tolist() == [1.0] * 4, "no variation"


def mixed_maps(count: int) -> Tensor:
    """Maps from nearly one direction to nearly none."""
    share_B11 = torch.linspace(0.5, 1.0, count).view(-1, 1, 1)
    smooth_BHW = noise_maps(count, seed=1).cumsum(dim=2) / 5
    return share_B11 * noise_maps(count) + (1 - share_B11) * smooth_BHW


def adaptive(scale: float, images_BHW: Tensor) -> AdaptiveMining:
    loss = AdaptiveMining(AdaptiveLoss(ape_scale=scale), (5, 10))
    loss.fit(images_BHW.split(7))
    return loss


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5])
def test_the_mean_rate_of_the_training_images_is_p_also_after_loading(p: float) -> None:
    images_BHW = mixed_maps(40)
    loss, loaded = adaptive(4.0, images_BHW), AdaptiveMining(AdaptiveLoss(), (5, 10))
    loaded.load_state_dict(loss.state_dict())
    rate_B = loss.rates(images_BHW, p=p)
    assert torch.equal(rate_B, loaded.rates(images_BHW, p=p))
    assert rate_B.mean().item() == pytest.approx(p, abs=1e-12)
    entropy_B = angular_power_entropy(images_BHW)
    raw_B = torch.sigmoid(4.0 * (entropy_B.mean() - entropy_B))
    torch.testing.assert_close(rate_B, p * raw_B / raw_B.mean(), atol=1e-12, rtol=0)
    assert adaptive(50.0, images_BHW).rates(images_BHW, p=0.9).max() == 1, "never above"


@pytest.mark.parametrize(("scale", "spread"), [(0.0, 0.0), (4.0, 0.1)])
def test_each_image_is_mined_at_its_own_rate_within_itself(scale: float, spread: float) -> None:
    images_BHW = mixed_maps(IMAGES)
    loss = adaptive(scale, images_BHW)
    rates = loss.rates(images_BHW, p=0.54).tolist()
    assert max(rates) - min(rates) >= spread
    assert spread or rates == pytest.approx([0.54] * IMAGES, abs=1e-12), "all alike without a scale"
    easy = [
        torch.stack([is_easy(group, rate) for group in image])
        for image, rate in zip(DISTANCE_BSN, rates, strict=True)
    ]
    factor = 1 - 0.9 * torch.stack(easy).double()[..., None]
    batch = BATCH._replace(images_BHW=images_BHW)
    parts, _ = assert_equal(loss, OF_IMAGES_S.mean(), step=600, factor=factor, batch=batch)
    assert parts["discard_rate"] == pytest.approx(float((factor < 1).double().mean()))
    assert parts["discard_target"] == pytest.approx(0.54)


# Scale


def learned(*theta: float) -> WeightedPooling:
    pooling = WeightedPooling(WeightedDistance()).double()
    with torch.no_grad():
        pooling.theta.copy_(torch.tensor(theta, dtype=torch.float64))
    return pooling


FIXED = WeightedPooling(WeightedDistance(scale_weights="35,65"))


def test_learned_weights_start_equal_keep_their_floor_and_learn_from_the_loss() -> None:
    assert not WeightedPooling(WeightedDistance()).theta.any(), "they start equal"
    for theta in (0.0, 0.7, -3.0, 60.0):
        share = 1 / (1 + math.exp(-theta))
        weight = learned(theta, 0.0).weights(torch.zeros((), dtype=torch.float64)).tolist()
        assert weight == pytest.approx([0.1 + 0.8 * share, 0.1 + 0.8 * (1 - share)])
    pooling, (early, late) = learned(0.4, -0.2), OF_IMAGES_S
    share = 1 / (1 + math.exp(-0.6))
    slope = 0.8 * share * (1 - share) * (early - late).item()
    for step in (0, 1000):
        total = made(HardMiningLoss())(ENCODER, DECODER, pooling=pooling, batch=BATCH, step=step).total
        weight_S = pooling.weights(total)
        expected = weight_S[0] * early + weight_S[1] * late
        assert total.item() == pytest.approx(expected.item(), abs=1e-12)
        (found,) = torch.autograd.grad(total, pooling.theta)
        assert found.tolist() == pytest.approx([slope, -slope], abs=1e-12)


def test_the_entropy_term_pulls_the_weights_together() -> None:
    pooling = learned(2.0, 0.0)
    penalty: Any = pooling.penalty()
    weight = pooling.weights(penalty).tolist()
    assert penalty.item() == pytest.approx(0.01 * sum(w * math.log(w) for w in weight))
    (slope,) = torch.autograd.grad(penalty, pooling.theta)
    assert slope[0] > 0 > slope[1], "descent lowers the larger weight"
    assert learned(0.0, 0.0).penalty() < penalty
    assert MEAN.penalty() == FIXED.penalty() == 0


def test_poolings_act_in_loss_and_map_alike() -> None:
    distance_BShw = torch.rand(2, 2, 3, 4, generator=generator(1))
    a, b = distance_BShw.unbind(1)
    gem = GemPooling(GemDistance(gem_p=3))
    for pooling, expected in ((FIXED, 0.35 * a + 0.65 * b), (gem, ((a**3 + b**3) / 2) ** (1 / 3))):
        map_Bhw = score.upsample(distance_BShw, pool=pooling, image_size=(3, 4), map_size=(3, 4))
        torch.testing.assert_close(map_Bhw, expected)
        torch.testing.assert_close(pooling(distance_BShw.flatten(2)), expected.flatten(1))


def test_theta_alone_has_ten_times_the_scheduled_rate_and_fixed_weights_are_not_trained() -> None:
    run, logged = preset_run("quick", VARIANTS["scale"]()), {}
    model: Any = small("scale")
    task = task_of(model, run, log=lambda values, _: logged.update(values), position=50)
    encoded = torch.randn(2, 2, 64, 192, generator=generator(5))
    task.training_step(Batch(torch.rand(2, 31, 95), torch.zeros(2, dtype=torch.int64), encoded), 0)
    groups = task.optimizer.param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(rates) == len(trained)
    assert {name: rates[id(p)] / task.learning_rate(50) for name, p in trained.items()} == {
        name: 10.0 if name == "pooling.theta" else 1.0 for name in trained
    }
    weights = [logged[f"train/scale_weight_{group}"] for group in range(2)]
    assert weights == pytest.approx([0.5, 0.5]), "what is logged is what the step used"
    assert model.pooling.weights(encoded).tolist() != [0.5, 0.5]  # theta has moved

    fixed: Any = small("scale", scale_weights="1,3")
    assert [group.rate_factor for group in fixed.parameter_groups()] == [1.0]
    assert not list(fixed.pooling.parameters())
    assert fixed.pooling.weights(torch.zeros(())).tolist() == pytest.approx([0.25, 0.75])
    assert fixed.pooling.state() == {}


def test_a_scaled_gradient_keeps_its_type() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(3, dtype=dtype, requires_grad=True)
        losses.scale_gradient(x, torch.tensor([0.0, 0.5, 1.0])).sum().backward()
        assert x.grad is not None
        assert x.grad.dtype == dtype
        assert x.grad.tolist() == [0.0, 0.5, 1.0]
