"""DRAEM-SevNet: heads, severity losses and score combinations, each equal to its formula."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dinomaly_hd.batch import Batch
from dinomaly_hd.models.draem import Draem
from dinomaly_hd.models.draem_networks import activation_channels
from dinomaly_hd.models.draem.faults import Faulty
from dinomaly_hd.models.noise import Noise
from dinomaly_hd.models.preprocessing import Preprocessing
from dinomaly_hd.models.sevnet import (
    MAXIMUM,
    SIMPLE_AVERAGE,
    Combination,
    GlobalPooling,
    HeadMode,
    Pooling,
    SeverityHead,
    SeverityLoss,
    SeverityLossType,
    SevNet,
    SpatialPooling,
    WeightedAverage,
)

WIDTH = 1 / 16
SIZE = (33, 40)
MODES: tuple[HeadMode, ...] = ("single_scale", "multi_scale")
LOSSES: tuple[SeverityLossType, ...] = ("mse", "smooth_l1")
POOLINGS: dict[str, Callable[[Sequence[int]], Pooling]] = {
    "gap": GlobalPooling,
    "spatial_aware": partial(SpatialPooling, size=4, attention=True),
}
COMBINATIONS: dict[str, tuple[Combination, Callable[[float, float], float]]] = {
    "simple_average": (SIMPLE_AVERAGE, lambda m, s: (m + s) / 2),
    "weighted_average": (WeightedAverage(0.2), lambda m, s: 0.8 * m + 0.2 * s),
    "maximum": (MAXIMUM, max),
}


class Squares(NamedTuple):
    """Brightens a square of every image but the first, by a severity up to ``severity_max``."""

    severity_max: float

    def __call__(self, images_BHW: Tensor, *, generator: Generator) -> Faulty:
        severity_B = self.severity_max * torch.rand(len(images_BHW), generator=generator)
        severity_B[0] = 0
        mask_BHW = torch.zeros(images_BHW.shape, dtype=torch.bool)
        mask_BHW[1:, 4:16, 8:20] = True
        return Faulty(images_BHW + severity_B.view(-1, 1, 1) * mask_BHW, mask_BHW, severity_B)


def head(mode: HeadMode = "single_scale", pooling: str = "gap", **changes: Any) -> SeverityHead:
    values: dict[str, Any] = {"hidden": 8, "dropout": 0.1, **changes}
    width = values.pop("width", WIDTH)
    return SeverityHead(activation_channels(width), mode=mode, pooling=POOLINGS[pooling], **values)


def sevnet(size: tuple[int, int] = SIZE, **changes: Any) -> SevNet:
    severity_loss = changes.setdefault(
        "severity_loss", SeverityLoss(kind="mse", weight=0.5, severity_max=1.0)
    )
    values: dict[str, Any] = {
        **common(size, severity_max=severity_loss.severity_max),
        "head": changes.pop("head", None) or head(),
        "combination": SIMPLE_AVERAGE,
    }
    return settling(SevNet(**{**values, **changes}))


def settling(model: SevNet) -> SevNet:
    """Let batch norm take over the last batch's statistics: few steps end in no running mean."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    return model


def common(size: tuple[int, int], *, severity_max: float) -> dict[str, Any]:
    return {
        "preprocessing": Preprocessing(size, None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        "faults": Squares(severity_max),
        "width": WIDTH,
        "map_size": (20, 30),
        "seed": 7,
    }


def encoded(count: int = 4, size: tuple[int, int] = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return F.interpolate(torch.rand(count, 1, 5, 5, generator=generator), size=size, mode="bilinear")


def batch_of(given: Tensor) -> Batch:
    return Batch(given.squeeze(1), torch.zeros(len(given), dtype=torch.int64), given)


def settled(model: SevNet) -> SevNet:
    """Let batch norm see a batch: before, the networks say the same of every image."""
    model.training_loss(batch_of(encoded()), step=0)
    return model


# The head


@pytest.mark.parametrize(
    ("mode", "pooling", "count"),
    [
        ("single_scale", "gap", 65_793),
        ("multi_scale", "gap", 246_017),
        ("single_scale", "spatial_aware", 213_378),
        ("multi_scale", "spatial_aware", 881_542),
    ],
)
def test_parameter_counts_of_the_four_heads_at_full_width(mode: HeadMode, pooling: str, count: int) -> None:
    with torch.device("meta"):
        found = head(mode, pooling, width=1.0, hidden=128)
    assert sum(parameter.numel() for parameter in found.parameters()) == count
    assert count < 28_374_146 / 10


@pytest.mark.parametrize(("mode", "pooling"), list(product(MODES, POOLINGS)))
def test_head_reads_its_scales_and_no_others(mode: HeadMode, pooling: str) -> None:
    part = head(mode, pooling)
    activations = [torch.rand(2, count, 5, 6).requires_grad_() for count in activation_channels(WIDTH)]
    part(activations, noise=None).sum().backward()
    own = [x.grad is not None and bool(x.grad.any()) for x in activations]
    assert own == ([False, *[True] * 5] if mode == "multi_scale" else [*[False] * 5, True])


def test_gap_head_equals_its_formula() -> None:
    part = head("multi_scale", "gap")
    activations = [torch.rand(2, count, 3, 5) for count in activation_channels(WIDTH)]
    pooled = torch.cat([x.mean(dim=(2, 3)) for x in activations[1:]], dim=1)
    hidden = (pooled @ part.fc1.weight.T + part.fc1.bias).clamp(min=0)
    expected = torch.sigmoid(hidden @ part.fc2.weight.T + part.fc2.bias)[:, 0]
    assert torch.allclose(part(activations, noise=None), expected, atol=1e-6)


@pytest.mark.parametrize("attention", [True, False])
def test_spatial_pooling_keeps_where_things_are(attention: bool) -> None:
    part = SpatialPooling([4], size=4, attention=attention).eval()
    assert part.features == 32 * 16
    x = torch.zeros(1, 4, 16, 16)
    empty = part([x]).view(32, 4, 4)
    x[:, :, 9:11, 13:15] = 1
    changed = (part([x]).view(32, 4, 4) != empty).any(dim=0)
    assert changed.nonzero().tolist() == [[2, 3]]
    assert len(list(part.attention.parameters())) == 2 * attention


def test_dropout_is_a_function_of_seed_and_step() -> None:
    part = head(hidden=64, dropout=0.5)
    activations = [torch.rand(2, count, 3, 5) for count in activation_channels(WIDTH)]

    def said(seed: int, step: int) -> Tensor:
        torch.manual_seed(seed + step)
        return part(activations, noise=Noise(seed, step=step, device=torch.device("cpu")))

    assert torch.equal(said(7, 0), said(7, 0))
    assert not torch.equal(said(7, 0), said(7, 1))
    assert not torch.equal(said(7, 0), said(8, 0))
    inference = part(activations, noise=None)
    many = torch.stack([said(7, step) for step in range(400)]).mean(dim=0)
    assert torch.allclose(many, inference, atol=0.02)


# The loss


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("severity_max", [0.8, 1.0, 2.0])
def test_label_and_head_share_one_scale(kind: SeverityLossType, severity_max: float) -> None:
    loss = SeverityLoss(kind=kind, weight=0.5, severity_max=severity_max)
    model = sevnet(severity_loss=loss).eval()
    severities: list[Tensor] = []

    class Knowing(nn.Module):
        def forward(self, activations: Sequence[Tensor], *, noise: Noise | None) -> Tensor:
            del activations, noise
            return severities[-1] / severity_max

    def faults(images_BHW: Tensor, *, generator: Generator) -> Faulty:
        faulty = Squares(severity_max)(images_BHW, generator=generator)
        severities.append(faulty.severity_B)
        return faulty

    model.head, model.faults = Knowing(), faults  # type: ignore[assignment]
    parts = model.training_loss(batch_of(encoded()), step=0).parts
    assert severities[-1].max() > 0.3 * severity_max
    assert parts["severity_loss"] == 0
    assert parts["severity_mae"] == 0


def test_severity_losses_equal_plain_references() -> None:
    said, label = torch.tensor([0.1, 0.9, 0.5]), torch.tensor([0.0, 0.2, 0.5])
    squares = [0.01, 0.49, 0.0]
    mse, smooth = (SeverityLoss(kind=kind, weight=9.0, severity_max=1.0) for kind in LOSSES)
    assert mse(said, label).tolist() == pytest.approx(squares)
    assert smooth(said, label).tolist() == pytest.approx([square / 2 for square in squares])


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.2])
def test_loss_is_draems_and_the_weighted_severity_loss(weight: float) -> None:
    loss = SeverityLoss(kind="smooth_l1", weight=weight, severity_max=0.8)
    model = sevnet(severity_loss=loss)
    plain = Draem(**common(SIZE, severity_max=0.8), image_score="max")
    start = model.state_dict()
    assert all(torch.equal(value, start[name]) for name, value in plain.state_dict().items())
    for step in (0, 1):
        total, parts = model.training_loss(batch_of(encoded()), step=step)
        base, base_parts = plain.training_loss(batch_of(encoded()), step=step)
        assert set(parts) == {*base_parts, "severity_loss", "severity_mae"}
        expected = base + weight * parts["severity_loss"]
        assert total.item() == pytest.approx(expected.item(), rel=1e-6)
        assert all(torch.equal(parts[name], value) for name, value in base_parts.items())


def test_validation_loss_contains_the_severity_and_leaves_no_trace() -> None:
    light, heavy = (
        sevnet(severity_loss=SeverityLoss(kind="mse", weight=weight, severity_max=1.0))
        for weight in (0.0, 1.0)
    )
    for model in (light, heavy):
        model.training_loss(batch_of(encoded()), step=0)
    before = {name: value.clone() for name, value in heavy.state_dict().items()}
    difference = heavy.validation_loss(encoded(), position=2) - light.validation_loss(encoded(), position=2)
    assert all(torch.equal(before[name], value) for name, value in heavy.state_dict().items())
    noise = Noise(7, step=2, device=torch.device("cpu"))
    faulty = heavy.faults(encoded().squeeze(1), generator=noise.generator("validation faults"))
    with torch.no_grad():
        severity = heavy.eval().head(heavy.examine(faulty.images_BHW).activations, noise=None)
    assert torch.allclose(difference, (severity - faulty.severity_B) ** 2, atol=1e-6)


@pytest.mark.parametrize(("mode", "pooling"), list(product(MODES, POOLINGS)))
def test_gradient_reaches_every_parameter(mode: HeadMode, pooling: str) -> None:
    model = sevnet((64, 64), head=head(mode, pooling, hidden=32))
    model.training_loss(batch_of(encoded(size=(64, 64))), step=0).total.backward()
    # In training, batch norm takes away whatever the bias in front of it adds.
    cancelled = {
        f"{name}.0.bias"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Sequential) and isinstance(layer[0], nn.Conv2d)
    }
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert name in cancelled or parameter.grad.any(), name


def test_steps_repeat_themselves() -> None:
    first, again = sevnet(), sevnet()
    losses = [first.training_loss(batch_of(encoded()), step=step).total.item() for step in (0, 1)]
    torch.manual_seed(99)
    assert [again.training_loss(batch_of(encoded()), step=step).total.item() for step in (0, 1)] == losses
    assert losses[0] != losses[1]


def test_it_learns_one_batch() -> None:
    model = sevnet((64, 64), head=head("multi_scale", "spatial_aware", hidden=32, dropout=0.0))
    optimizer = torch.optim.Adam(model.parameter_groups()[0].parameters, lr=2e-3)
    totals, errors = [], []
    for _ in range(30):
        total, parts = model.training_loss(batch_of(encoded(2, (64, 64))), step=0)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
        errors.append(parts["severity_mae"].item())
    assert totals[-1] < 0.7 * totals[0]
    assert errors[-1] < 0.2 * errors[0]


# The score


@pytest.mark.parametrize(
    ("mode", "pooling", "kind", "combination"), list(product(MODES, POOLINGS, LOSSES, COMBINATIONS))
)
def test_every_head_loss_and_combination_scores_by_its_formula(
    mode: HeadMode, pooling: str, kind: SeverityLossType, combination: str
) -> None:
    combine, formula = COMBINATIONS[combination]
    loss = SeverityLoss(kind=kind, weight=0.5, severity_max=1.0)
    model = sevnet(head=head(mode, pooling), severity_loss=loss, combination=combine)
    assert model.training_loss(batch_of(encoded()), step=0).total.isfinite()
    map_BHW, score_B = model.score(encoded())
    model.eval()
    with torch.no_grad():
        outputs = model.examine(encoded().squeeze(1))
        severity_B = model.head(outputs.activations, noise=None)
    softmax = outputs.logits_B2HW.softmax(dim=1)[:, 1].amax(dim=(1, 2))
    expected = [formula(m, s) for m, s in zip(softmax.tolist(), severity_B.tolist(), strict=True)]
    assert len(set(softmax.tolist())) == len(set(severity_B.tolist())) == 4
    assert score_B.tolist() == pytest.approx(expected, abs=1e-6)
    assert map_BHW.shape == (4, 20, 30)
    assert score_B.min() >= 0
    assert score_B.max() <= 1


def test_score_does_not_depend_on_the_rest_of_the_batch() -> None:
    model = settled(sevnet(head=head("multi_scale", "spatial_aware")))
    together = model.score(encoded())
    assert torch.equal(together.score_B, model.score(encoded()).score_B)
    assert together.score_B.std() > 1e-3
    others = torch.cat([encoded()[:1], 2 * encoded()[1:].flip(2)])
    assert model.score(others).score_B[0].item() == pytest.approx(together.score_B[0].item(), abs=1e-6)
    # Other batch sizes are convolved in another order: rounding, no more.
    alone = torch.cat([model.score(image[None]).score_B for image in encoded()])
    assert torch.allclose(alone, together.score_B, rtol=0, atol=2e-4)


def test_losses_and_scores_are_float32_under_autocast() -> None:
    model = sevnet(head=head("multi_scale", "spatial_aware"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, parts = model.training_loss(batch_of(encoded()), step=0)
        score_B = model.score(encoded()).score_B
    assert {total.dtype, score_B.dtype, *(part.dtype for part in parts.values())} == {torch.float32}
