"""Scale: group weights in loss and map alike, learned at their own rate or fixed."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from dinomaly_hd.batch import Batch
from dinomaly_hd.config import with_values
from dinomaly_hd.config.presets import quick_dinomaly
from dinomaly_hd.config.variants import VARIANTS
from dinomaly_hd.models.dinomaly import score as scoring
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.dinomaly.detector import Dinomaly
from dinomaly_hd.models.dinomaly.distance import MeanPooling, WeightedPooling
from dinomaly_hd.models.losses import HardMining
from dinomaly_hd.models.weights import Weights
from dinomaly_hd.training.task import DetectorTask

BATCH = Batch(torch.zeros(3, 3, 3), torch.zeros(3, dtype=torch.int64), None)


def learned(*theta: float) -> WeightedPooling:
    pooling = WeightedPooling(None).double()
    with torch.no_grad():
        pooling.theta.copy_(torch.tensor(theta, dtype=torch.float64))
    return pooling


def groups() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    encoder, decoder = (torch.randn(3, 2, 8, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    return encoder, decoder.requires_grad_()


def group_losses(encoder: Tensor, decoder: Tensor) -> list[Tensor]:
    losses = []
    for group in range(2):
        pairs = [(encoder[i, group].flatten(), decoder[i, group].flatten()) for i in range(3)]
        cosines = torch.stack([(a @ b) / (a.norm() * b.norm()) for a, b in pairs])
        losses.append(1 - cosines.mean())
    return losses


def test_learned_weights_start_equal_sum_to_one_and_keep_their_floor() -> None:
    like = torch.zeros((), dtype=torch.float64)
    assert WeightedPooling(None).weights(torch.zeros(())).tolist() == pytest.approx([0.5, 0.5])
    for theta in (0.0, 0.7, -3.0, 60.0):
        weight = learned(theta, 0.0).weights(like).tolist()
        share = 1 / (1 + math.exp(-theta))
        assert weight == pytest.approx([0.1 + 0.8 * share, 0.1 + 0.8 * (1 - share)])
        assert min(weight) >= 0.1 - 1e-12


@pytest.mark.parametrize("step", [0, 1000])
def test_the_loss_weighs_the_groups_and_theta_learns_from_it(step: int) -> None:
    encoder, decoder = groups()
    pooling = learned(0.4, -0.2)
    loss = HardMining(discard_final=0.9, discard_warmup=1000, discard_factor=0.1)
    total = loss(encoder, decoder, pooling=pooling, batch=BATCH, step=step).total
    early, late = group_losses(encoder, decoder)
    weight = pooling.weights(total)
    assert total.item() == pytest.approx((weight[0] * early + weight[1] * late).item(), abs=1e-12)
    share = 1 / (1 + math.exp(-0.6))
    slope = 0.8 * share * (1 - share) * (early - late).item()
    (found,) = torch.autograd.grad(total, pooling.theta)
    assert found.tolist() == pytest.approx([slope, -slope], abs=1e-12)


def test_the_entropy_term_pulls_the_weights_together() -> None:
    pooling = learned(2.0, 0.0)
    (penalty,) = pooling.penalty().values()
    weight = pooling.weights(penalty).tolist()
    assert penalty.item() == pytest.approx(0.01 * sum(w * math.log(w) for w in weight))
    (slope,) = torch.autograd.grad(penalty, pooling.theta)
    assert slope[0] > 0 > slope[1], "descent lowers the larger weight"
    assert learned(0.0, 0.0).penalty()["scale_entropy"] < penalty
    assert MeanPooling().penalty() == WeightedPooling([0.35, 0.65]).penalty() == {}


def test_fixed_weights_act_in_loss_and_map() -> None:
    encoder, decoder = groups()
    pooling = WeightedPooling([0.35, 0.65])
    assert not list(pooling.parameters())
    loss = HardMining(discard_final=0.9, discard_warmup=0, discard_factor=0.1)
    total = loss(encoder, decoder, pooling=pooling, batch=BATCH, step=0).total
    early, late = group_losses(encoder, decoder)
    assert total.item() == pytest.approx((0.35 * early + 0.65 * late).item(), abs=1e-7)
    distance_BShw = torch.rand(2, 2, 3, 4, generator=torch.Generator().manual_seed(1))
    map_Bhw = scoring.upsample(distance_BShw, pool=pooling, image_size=(3, 4), map_size=(3, 4))
    torch.testing.assert_close(map_Bhw, 0.35 * distance_BShw[:, 0] + 0.65 * distance_BShw[:, 1])


@cache
def detector(weights: str = "learned") -> Dinomaly:
    values = {"image_size": "64", "decoder_depth": 2, "map_size": "32", "scale_weights": weights}
    run = with_values(quick_dinomaly(VARIANTS["scale"]()), values)
    built = build_detector(run, weights=Weights("random", None, "random"))
    assert isinstance(built, Dinomaly)
    return built


class Record:
    """A reporter that keeps the last metrics."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def metrics(self, values: Any, *, step: int) -> None:
        del step
        self.last = dict(values)

    def sync(self) -> None: ...


def task(model: Dinomaly, record: Record) -> DetectorTask:
    made = DetectorTask(
        model,
        training=quick_dinomaly(VARIANTS["scale"]()).training,
        steps_per_epoch=1,
        reporter=record,
        name_files=str,
        position=50,
    )
    made.optimizers = lambda: made.optimizer  # type: ignore[method-assign]
    made.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
    return made


def test_theta_alone_has_ten_times_the_scheduled_rate() -> None:
    record, model = Record(), detector()
    made = task(model, record)
    encoded = torch.randn(2, 2, 64, 192, generator=torch.Generator().manual_seed(5))
    made.training_step(Batch(torch.rand(2, 31, 95), torch.zeros(2, dtype=torch.int64), encoded), 0)
    rate = made.learning_rate(50)
    rates = {
        id(parameter): group["lr"] for group in made.optimizer.param_groups for parameter in group["params"]
    }
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(rates) == len(trained)
    assert {name: rates[id(p)] / rate for name, p in trained.items()} == {
        name: 10.0 if name == "pooling.theta" else 1.0 for name in trained
    }
    weights = [record.last[f"train/scale_weight_{group}"] for group in range(2)]
    assert sum(weights) == pytest.approx(1)
    assert weights == pytest.approx([0.5, 0.5]), "what is logged is what the step used"
    assert model.pooling.weights(encoded).tolist() != [0.5, 0.5]  # theta has moved


def test_fixed_weights_are_not_trained_and_the_baseline_has_one_group() -> None:
    assert [group.rate_factor for group in detector("1,3").parameter_groups()] == [1.0]
    assert detector("1,3").pooling.weights(torch.zeros(())).tolist() == pytest.approx([0.25, 0.75])
    assert detector("1,3").pooling.state() == {}
