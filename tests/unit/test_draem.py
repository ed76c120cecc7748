"""DRAEM and DRAEM-SevNet: published networks, losses equal to plain references, inference without a trace."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dinomaly_hd.batch import Batch
from dinomaly_hd.config.families import DraemConfig, PooledHead, SevNetConfig, SpatialHead
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.models.detector import Noise
from dinomaly_hd.models.dinomaly.score import top_share_score
from dinomaly_hd.models.draem import networks
from dinomaly_hd.models.draem.detector import Draem, SevNet, focal_loss, structural_similarity
from dinomaly_hd.models.draem.faults import Faults, Faulty
from dinomaly_hd.models.draem.networks import SeverityHead, SpatialPooling
from dinomaly_hd.models.networks import Preprocessing

WIDTH, SIZE = 1 / 16, (33, 40)
CPU = torch.device("cpu")
MODES = ("single_scale", "multi_scale")
HEADS = {
    "gap": PooledHead(severity_head_hidden_dim=32),
    "spatial_aware": SpatialHead(severity_head_hidden_dim=32),
}
Combine = Callable[[float, float], float]


class Blocks(Faults):
    """Brightens a block of 6 x 6 pixels in every second image, by a severity up to ``severity_max``."""

    def __init__(self, severity_max: float = 1.0) -> None:
        self.severity_max = severity_max

    def __call__(self, images_BHW: Tensor, *, generator: Generator) -> Faulty:
        batch, height, width = images_BHW.shape
        self.drawn_B = self.severity_max * (0.1 + 0.9 * torch.rand(batch, generator=generator))
        self.drawn_B[1::2] = 0
        row, column = (int(torch.randint(side - 6, (), generator=generator)) for side in (height, width))
        mask_BHW = torch.zeros(images_BHW.shape, dtype=torch.bool)
        mask_BHW[::2, row : row + 6, column : column + 6] = True
        return Faulty(images_BHW + self.drawn_B.view(-1, 1, 1) * mask_BHW, mask_BHW, self.drawn_B)


def made(config: Any, size: tuple[int, int] = SIZE, *, seed: int = 7, severity_max: float = 1.0) -> Any:
    model = (SevNet if isinstance(config, SevNetConfig) else Draem)(
        config,
        preprocessing=Preprocessing(size, None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        faults=Blocks(severity_max),
        map_size=(20, 30),
        seed=seed,
    )
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            # The last batch's statistics: the few steps of a test end in no running mean.
            layer.momentum = 1.0
    return model


def draem(
    *size: tuple[int, int], seed: int = 7, severity_max: float = 1.0, width: float = WIDTH, **values: Any
) -> Draem:
    return made(DraemConfig(width=width, **values), *size, seed=seed, severity_max=severity_max)


def sevnet(*size: tuple[int, int], seed: int = 7, severity_max: float = 1.0, **values: Any) -> SevNet:
    own = {"width": WIDTH, "severity_head_mode": "multi_scale", "head": HEADS["spatial_aware"], **values}
    return made(SevNetConfig(**own), *size, seed=seed, severity_max=severity_max)


both = pytest.mark.parametrize("make", [draem, sevnet])
Make = Callable[..., Draem]


def images(count: int = 4, size: tuple[int, int] = SIZE) -> Tensor:
    drawn = torch.rand(count, 1, 5, 5, generator=Generator().manual_seed(3))
    return F.interpolate(drawn, size=size, mode="bilinear").squeeze(1)


def batch_of(model: Draem, count: int = 4, size: tuple[int, int] = SIZE) -> Batch:
    given = images(count, size)
    return Batch(given, torch.zeros(count, dtype=torch.int64), model.encode(given))


def encoded(count: int = 4) -> Tensor:
    return images(count)[:, None]


def settled(model: Draem) -> Draem:
    """Let batch norm see a batch: before, the networks say the same of every image."""
    model.training_loss(batch_of(model), step=0)
    return model


def test_width_scales_both_networks_in_multiples_of_four() -> None:
    for width, first in {1.0: (128, 64), 0.5: (64, 32), 1 / 16: (8, 4), 0.1: (12, 8), 1e-6: (4, 4)}.items():
        with torch.device("meta"):
            reconstructive = networks.ReconstructiveNetwork(width)
            discriminative = networks.DiscriminativeNetwork(width)
        assert (reconstructive.head.in_channels, discriminative.head.in_channels) == first
        assert networks.activation_channels(width) == tuple(first[1] * n for n in (1, 2, 4, 8, 8, 8))


@pytest.mark.parametrize("size", [(64, 96), (31, 95), (11, 11), (33, 40)])
def test_any_size_survives_the_poolings(size: tuple[int, int]) -> None:
    given = torch.rand(2, 6, *size)
    assert networks.ReconstructiveNetwork(WIDTH)(given[:, :3]).shape == (2, 3, *size)
    logits, found = networks.DiscriminativeNetwork(WIDTH)(given)
    assert logits.shape == (2, 2, *size)
    assert [one.shape for one in found] == [
        (2, channels, *(math.ceil(side / 2**level) for side in size))
        for level, channels in enumerate(networks.activation_channels(WIDTH))
    ]


def test_start_is_a_function_of_seed_and_name() -> None:
    first, again, other = (draem(seed=seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    name = "discrimination.encoder.stages.4.1.0.weight"
    assert not torch.equal(first[name], other[name])
    layers = dict(draem(width=0.25).named_modules())
    convolution = layers["reconstruction.encoder.stages.3.1.0"]
    norm = layers["reconstruction.encoder.stages.4.1.1"]
    assert convolution.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert norm.weight.mean().item() == pytest.approx(1.0, abs=0.01)
    assert norm.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert not convolution.bias.any()
    assert not norm.bias.any()


def test_ssim_and_focal_loss_equal_their_formulas() -> None:
    generator = Generator().manual_seed(0)
    a, b = (torch.rand(2, 3, 11, 12, generator=generator) for _ in range(2))
    b[1] = 0.7 * a[1] + 0.3 * b[1]
    # All windows at once in float64, mirrored at the border, 11 x 11, sigma 1.5, data range 1, gave these.
    assert structural_similarity(a, b).tolist() == pytest.approx([-0.0793277, 0.8931130], abs=1e-5)
    assert structural_similarity(a, a).tolist() == pytest.approx([1, 1], abs=1e-6)
    logits = 3 * torch.randn(2, 2, 4, 5, generator=generator)
    mask = torch.rand(2, 4, 5, generator=generator) < 0.3
    p = logits.double().softmax(dim=1).gather(1, mask[:, None].long())
    focal = (-((1 - p) ** 2) * p.log()).mean((1, 2, 3))
    assert focal_loss(logits, mask).tolist() == pytest.approx(focal.tolist(), abs=1e-5)
    assert focal_loss(logits, torch.zeros_like(mask)).min() > 0, "normal pixels weigh as well"


def test_training_losses_are_the_sums_of_their_parts_and_start_alike() -> None:
    plain, weight = draem(severity_max=0.8), 1.2
    model = sevnet(severity_max=0.8, severity_weight=weight, severity_loss_type="smooth_l1")
    start = model.state_dict()
    assert all(torch.equal(value, start[name]) for name, value in plain.state_dict().items())
    for step in (0, 1):
        base, own = plain.training_loss(batch_of(plain), step=step)
        assert set(own) == {"l2", "ssim", "focal", "fault_rate"}
        expected = own["l2"] + 2 * (1 - own["ssim"]) + own["focal"]
        assert base.item() == pytest.approx(expected.item(), rel=1e-6)
        assert own["fault_rate"].item() == 0.5
        assert not any(part.requires_grad for part in own.values())
        total, more = model.training_loss(batch_of(model), step=step)
        assert set(more) == {*own, "severity_loss", "severity_mae"}
        assert total.item() == pytest.approx((base + weight * more["severity_loss"]).item(), rel=1e-6)
        assert all(torch.equal(more[name], value) for name, value in own.items())


def test_the_clean_image_is_rebuilt_from_the_faulty_one() -> None:
    model, clean = draem(), images(4)
    seen: list[Tensor] = []
    model.reconstruction.register_forward_hook(lambda _, inputs, output: seen.extend([*inputs, output]))
    parts = model.training_loss(batch_of(model), step=5).parts
    faulty, rebuilt = seen
    assert not torch.equal(faulty[0, 0], clean[0])
    assert torch.allclose(faulty[1, 2], clean[1], atol=1e-6)
    expected = (rebuilt - clean[:, None]).square().mean()
    assert parts["l2"].item() == pytest.approx(expected.item(), rel=1e-5)


@both
def test_gradient_reaches_every_parameter_and_noise_is_a_function_of_seed_and_step(make: Make) -> None:
    model = make((64, 64))
    model.training_loss(batch_of(model, size=(64, 64)), step=0).total.backward()
    # In training, batch norm takes away whatever the bias in front of it adds.
    cancelled = {
        f"{name}.0.bias"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Sequential) and isinstance(layer[0], nn.Conv2d)
    }
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert name in cancelled or parameter.grad.any(), name

    losses, start = [], make().state_dict()
    for seed, step in ((7, 0), (7, 0), (7, 1), (8, 0), (8, 1)):
        model = make(seed=seed)
        model.load_state_dict(start)
        losses.append(model.training_loss(batch_of(model), step=step).total.item())
    assert losses[0] == losses[1]
    assert len(set(losses)) == 4


# Inference


@both
@pytest.mark.parametrize("training", [True, False])
def test_validation_and_score_leave_no_trace_and_know_their_position(make: Make, training: bool) -> None:
    model = settled(make()).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    validation = model.validation_loss(encoded(), position=3)
    score_B = model.score(encoded()).score_B
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(part.training is training for part in (model, model.discrimination))
    assert validation.shape == (4,)
    assert not validation.requires_grad
    assert not score_B.requires_grad
    model.eval()
    assert torch.equal(score_B, model.score(encoded()).score_B)
    assert torch.equal(validation, model.validation_loss(encoded(), position=3))
    assert not torch.equal(validation, model.validation_loss(encoded(), position=1))
    trained = model.training_loss(batch_of(model), step=3).total
    assert trained.item() != pytest.approx(validation.mean().item(), rel=1e-6), "a training step's faults"


@pytest.mark.parametrize("image_score", ["max", "top_share"])
def test_score_is_of_the_full_size_softmax(image_score: str) -> None:
    model = settled(draem(image_score=image_score)).eval()
    with torch.no_grad():
        softmax = model.examine(images()).logits_B2HW.softmax(dim=1)[:, 1]
    map_BHW, score_B = model.score(encoded())
    large = F.interpolate(softmax[:, None], size=(20, 30), mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(map_BHW, large, atol=1e-6)
    expected = top_share_score(softmax) if image_score == "top_share" else softmax.amax(dim=(1, 2))
    assert torch.allclose(score_B, expected, atol=1e-6)


@both
def test_scores_do_not_depend_on_the_rest_of_the_batch_and_are_float32_under_autocast(make: Make) -> None:
    model = make()
    exact = model.training_loss(batch_of(model), step=0).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, seen = model.training_loss(batch_of(model), step=0)
        prediction = model.score(encoded())
    assert {total.dtype, *(part.dtype for part in (*seen.values(), *prediction))} == {torch.float32}
    assert total.item() == pytest.approx(exact.item(), rel=0.02)

    model = settled(make()).eval()
    together = model.score(encoded()).score_B
    assert together.std() > 1e-3
    others = torch.cat([encoded()[:1], 2 * encoded()[1:].flip(2)])
    assert model.score(others).score_B[0].item() == pytest.approx(together[0].item(), abs=1e-6)
    # Other batch sizes are convolved in another order, which in float32 rounds otherwise.
    exact_model, given = model.double(), images().double()
    alone = torch.cat([exact_model.examine(image[None]).logits_B2HW for image in given])
    assert torch.allclose(alone, exact_model.examine(given).logits_B2HW, rtol=0, atol=1e-9)


def test_encode_gives_one_channel_of_its_own() -> None:
    model, given = draem(), images(2, (64, 96))
    found = model.encode(given)
    assert found.shape == (2, 1, *SIZE)
    assert not found.requires_grad
    assert found.untyped_storage().nbytes() == found.numel() * 4
    assert torch.equal(found, model.preprocessing(given)[:, 1:2])
    assert model.encode(given * 3).max() > 1, "values above 1 are kept"


def test_images_smaller_than_the_ssim_window_and_batches_without_variance_are_refused() -> None:
    for size, batch, message in (
        ((10, 48), 2, r"image_size=10x48.*11 or more"),
        ((32, 32), 1, r"batch_size=1.*32x32"),
    ):
        with pytest.raises(ConfigError, match=message):
            networks.check_input(size, batch_size=batch)
    for size, batch in (((11, 11), 2), ((32, 33), 1)):
        networks.check_input(size, batch_size=batch)
        model = draem(size)
        assert model.training_loss(batch_of(model, batch, size), step=0).total.isfinite()
    model = draem((32, 32))
    with pytest.raises(ValueError, match="more than 1 value"):
        model.training_loss(batch_of(model, 1, (32, 32)), step=0)


# The severity head


def head(mode: str = "single_scale", kind: str = "gap", width: float = WIDTH) -> SeverityHead:
    pooling = HEADS[kind] if width == WIDTH else type(HEADS[kind])()
    config = SevNetConfig(width=width, severity_head_mode=mode, head=pooling)
    return SeverityHead(config, networks.activation_channels(width))


def activations() -> list[Tensor]:
    return [torch.rand(2, count, 3, 5) for count in networks.activation_channels(WIDTH)]


def test_parameter_counts_at_full_width() -> None:
    with torch.device("meta"):
        counts = {
            networks.ReconstructiveNetwork(1.0): 69_048_579,  # published: 69.0 M
            networks.DiscriminativeNetwork(1.0): 28_374_146,  # published: 28.4 M
            head("single_scale", "gap", 1.0): 65_793,
            head("multi_scale", "gap", 1.0): 246_017,
            head("single_scale", "spatial_aware", 1.0): 213_378,
            head("multi_scale", "spatial_aware", 1.0): 881_542,
        }
    for part, count in counts.items():
        assert sum(parameter.numel() for parameter in part.parameters()) == count


def test_a_head_reads_its_scales_and_no_others_and_equals_its_formula() -> None:
    for mode, pooling in product(MODES, HEADS):
        given = [activation.requires_grad_() for activation in activations()]
        head(mode, pooling)(given, noise=None).sum().backward()
        read = [x.grad is not None and bool(x.grad.any()) for x in given]
        assert read == ([False, *[True] * 5] if mode == "multi_scale" else [*[False] * 5, True])
    part, given = head("multi_scale", "gap"), activations()
    pooled = torch.cat([x.mean(dim=(2, 3)) for x in given[1:]], dim=1)
    hidden = (pooled @ part.fc1.weight.T + part.fc1.bias).clamp(min=0)
    expected = torch.sigmoid(hidden @ part.fc2.weight.T + part.fc2.bias)[:, 0]
    assert torch.allclose(part(given, noise=None), expected, atol=1e-6)


@pytest.mark.parametrize("attention", [True, False])
def test_spatial_pooling_keeps_where_things_are(attention: bool) -> None:
    config = SpatialHead(severity_head_use_spatial_attention=attention)
    part = SpatialPooling(config, [4]).eval()
    assert part.features == 32 * 16
    x = torch.zeros(1, 4, 16, 16)
    empty = part([x]).view(32, 4, 4)
    x[:, :, 9:11, 13:15] = 1
    changed = (part([x]).view(32, 4, 4) != empty).any(dim=0)
    assert changed.nonzero().tolist() == [[2, 3]]
    assert len(list(part.attention.parameters())) == 2 * attention


def test_dropout_is_a_function_of_seed_and_step_and_keeps_the_mean() -> None:
    part, given = head(), activations()
    part.p = 0.5

    def said(seed: int, step: int) -> Tensor:
        return part(given, noise=Noise(seed, step=step, device=CPU))

    assert torch.equal(said(7, 0), said(7, 0))
    assert not torch.equal(said(7, 0), said(7, 1))
    assert not torch.equal(said(7, 0), said(8, 0))
    many = torch.stack([said(7, step) for step in range(400)]).mean(dim=0)
    assert torch.allclose(many, part(given, noise=None), atol=0.03)


def test_label_and_head_share_one_scale() -> None:
    for kind, severity_max, error in product(("mse", "smooth_l1"), (0.8, 2.0), (0.0, 0.1)):
        model = sevnet(severity_max=severity_max, severity_loss_type=kind).eval()
        drawn: Any = model.faults
        model.head.register_forward_hook(lambda *_, d=drawn, m=severity_max, e=error: d.drawn_B / m + e)
        seen = model.training_loss(batch_of(model), step=0).parts
        assert drawn.drawn_B.max() > 0.3 * severity_max
        expected = error**2 * (0.5 if kind == "smooth_l1" else 1)
        assert seen["severity_loss"].item() == pytest.approx(expected, abs=1e-7)
        assert seen["severity_mae"].item() == pytest.approx(error, abs=1e-6)


def test_validation_loss_contains_the_severity() -> None:
    light, heavy = (settled(sevnet(severity_weight=weight)) for weight in (0.0, 1.0))
    difference = heavy.validation_loss(encoded(), position=2) - light.validation_loss(encoded(), position=2)
    generator = Noise(7, step=2, device=CPU).generator("validation faults")
    faulty = heavy.faults(images(), generator=generator)
    heavy.eval()
    with torch.no_grad():
        severity = heavy.head(heavy.examine(faulty.images_BHW).activations, noise=None)
    assert torch.allclose(difference, (severity - faulty.severity_B) ** 2, atol=1e-6)


WEIGHTED = {"score_combination": "weighted_average", "severity_weight_for_combination": 0.2}
SCORED: list[tuple[str, str, dict[str, Any], Combine]] = [
    ("single_scale", "gap", {"score_combination": "simple_average"}, lambda m, s: (m + s) / 2),
    ("multi_scale", "spatial_aware", WEIGHTED, lambda m, s: 0.8 * m + 0.2 * s),
    ("multi_scale", "gap", {"score_combination": "maximum"}, max),
]


@pytest.mark.parametrize(("mode", "kind", "combination", "formula"), SCORED)
def test_heads_score_by_their_formula(
    mode: str, kind: str, combination: dict[str, Any], formula: Combine
) -> None:
    model = settled(sevnet(severity_head_mode=mode, head=HEADS[kind], combination=combination))
    map_BHW, score_B = model.score(encoded())
    model.eval()
    with torch.no_grad():
        outputs = model.examine(images())
        severity_B = model.head(outputs.activations, noise=None)
    softmax = outputs.logits_B2HW.softmax(dim=1)[:, 1].amax(dim=(1, 2))
    expected = [formula(m, s) for m, s in zip(softmax.tolist(), severity_B.tolist(), strict=True)]
    assert len(set(softmax.tolist())) == len(set(severity_B.tolist())) == 4
    assert score_B.tolist() == pytest.approx(expected, abs=1e-6)
    assert map_BHW.shape == (4, 20, 30)
