"""DRAEM: published networks, losses equal to plain references, inference that leaves no trace."""

import math
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dinomaly_hd.batch import Batch
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.models import draem_networks as networks
from dinomaly_hd.models.draem import MINIMUM_SIZE, Draem, check_size, focal_loss, structural_similarity
from dinomaly_hd.models.draem.faults import Faulty
from dinomaly_hd.models.preprocessing import Preprocessing
from dinomaly_hd.models.scoring import top_share_score

WIDTH = 1 / 16
SIZE = (32, 48)


class Blocks(NamedTuple):
    """Adds a block of 6 x 6 pixels of random height to each image but those of an odd place."""

    def __call__(self, images_BHW: Tensor, *, generator: Generator) -> Faulty:
        batch, height, width = images_BHW.shape
        device = images_BHW.device
        severity_B = 0.1 + 0.9 * torch.rand(batch, generator=generator, device=device)
        severity_B[1::2] = 0
        row = int(torch.randint(height - 6, (), generator=generator, device=device))
        column = int(torch.randint(width - 6, (), generator=generator, device=device))
        mask_BHW = torch.zeros(images_BHW.shape, dtype=torch.bool, device=device)
        mask_BHW[::2, row : row + 6, column : column + 6] = True
        return Faulty(images_BHW + severity_B.view(-1, 1, 1) * mask_BHW, mask_BHW, severity_B)


def draem(size: tuple[int, int] = SIZE, **changes: Any) -> Draem:
    values: dict[str, Any] = {
        "preprocessing": Preprocessing(size, None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        "faults": Blocks(),
        "width": WIDTH,
        "image_score": "max",
        "map_size": (20, 30),
        "seed": 7,
    }
    model = Draem(**{**values, **changes})
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            # The last batch's statistics: the few steps of a test end in no running mean.
            layer.momentum = 1.0
    return model


def images(count: int, size: tuple[int, int] = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return F.interpolate(torch.rand(count, 1, 5, 5, generator=generator), size=size, mode="bilinear").squeeze(
        1
    )


def batch_of(model: Draem, count: int = 4, size: tuple[int, int] = SIZE) -> Batch:
    given = images(count, size)
    return Batch(given, torch.zeros(count, dtype=torch.int64), model.encode(given))


def encoded(model: Draem, count: int = 4) -> Tensor:
    return model.encode(images(count))


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Networks


def test_parameter_counts_are_the_published_ones() -> None:
    with torch.device("meta"):
        assert count_parameters(networks.ReconstructiveNetwork(1.0)) == 69_048_579  # 69.0 M
        assert count_parameters(networks.DiscriminativeNetwork(1.0)) == 28_374_146  # 28.4 M


@pytest.mark.parametrize(
    ("width", "first"), [(1.0, (128, 64)), (0.5, (64, 32)), (1 / 16, (8, 4)), (0.1, (12, 8)), (1e-6, (4, 4))]
)
def test_width_scales_both_networks_in_multiples_of_four(width: float, first: tuple[int, int]) -> None:
    with torch.device("meta"):
        reconstructive = networks.ReconstructiveNetwork(width)
        discriminative = networks.DiscriminativeNetwork(width)
    assert (reconstructive.head.in_channels, discriminative.head.in_channels) == first
    assert networks.activation_channels(width) == tuple(first[1] * n for n in (1, 2, 4, 8, 8, 8))


@pytest.mark.parametrize("size", [(64, 96), (31, 95), (11, 11), (33, 40)])
def test_any_size_survives_the_poolings(size: tuple[int, int]) -> None:
    given = torch.rand(2, 6, *size)
    assert networks.ReconstructiveNetwork(WIDTH)(given[:, :3]).shape == (2, 3, *size)
    logits, activations = networks.DiscriminativeNetwork(WIDTH)(given)
    assert logits.shape == (2, 2, *size)
    for level, (found, channels) in enumerate(
        zip(activations, networks.activation_channels(WIDTH), strict=True)
    ):
        assert found.shape == (2, channels, *(math.ceil(side / 2**level) for side in size))


def test_start_is_a_function_of_seed_and_name() -> None:
    torch.manual_seed(1)
    first = draem().state_dict()
    torch.manual_seed(2)
    again, other = draem().state_dict(), draem(seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "discrimination.encoder.stages.4.1.0.weight"
    assert not torch.equal(first[name], other[name])
    weights = dict(draem(width=0.25).named_modules())
    convolution = weights["reconstruction.encoder.stages.3.1.0"]
    norm = weights["reconstruction.encoder.stages.4.1.1"]
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert convolution.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert norm.weight.mean().item() == pytest.approx(1.0, abs=0.01)
    assert norm.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert convolution.bias is not None
    assert not convolution.bias.any()
    assert not norm.bias.any()


# Losses against plain references


def plain_ssim(a_HW: Tensor, b_HW: Tensor) -> float:
    """One pixel at a time, float64, mirrored at the border."""
    offset = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(offset**2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2
    a, b = (F.pad(x.double()[None, None], (5,) * 4, mode="reflect")[0, 0] for x in (a_HW, b_HW))
    values = []
    for row, column in product(range(a_HW.shape[0]), range(a_HW.shape[1])):
        x, y = (image[row : row + 11, column : column + 11] for image in (a, b))
        mean_x, mean_y = (window * x).sum(), (window * y).sum()
        var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
        both = (window * (x - mean_x) * (y - mean_y)).sum()
        similar = (2 * mean_x * mean_y + 0.01**2) * (2 * both + 0.03**2)
        values.append(similar / ((mean_x**2 + mean_y**2 + 0.01**2) * (var_x + var_y + 0.03**2)))
    return float(torch.stack(values).mean())


def test_ssim_equals_a_loop_over_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 3, 11, 12, generator=generator) for _ in range(2))
    b[1] = 0.7 * a[1] + 0.3 * b[1]
    expected = [sum(plain_ssim(a[i, c], b[i, c]) for c in range(3)) / 3 for i in range(2)]
    assert structural_similarity(a, b).tolist() == pytest.approx(expected, abs=1e-5)
    assert structural_similarity(a, a).tolist() == pytest.approx([1, 1], abs=1e-6)


def test_focal_loss_is_the_softmax_focal_of_both_classes_without_alpha() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 2, 4, 5, generator=generator)
    mask = torch.rand(2, 4, 5, generator=generator) < 0.3
    expected = []
    for image in range(2):
        losses = []
        for row, column in product(range(4), range(5)):
            pair = logits[image, :, row, column].double().tolist()
            label = int(mask[image, row, column])
            p = math.exp(pair[label]) / (math.exp(pair[0]) + math.exp(pair[1]))
            losses.append(-((1 - p) ** 2) * math.log(p))
        expected.append(sum(losses) / 20)
    assert focal_loss(logits, mask).tolist() == pytest.approx(expected, abs=1e-5)
    assert focal_loss(logits, torch.zeros_like(mask)).min() > 0, "normal pixels weigh as well"


def test_training_loss_is_the_sum_of_its_parts_over_the_batch() -> None:
    model = draem()
    given = batch_of(model)
    total, parts = model.training_loss(given, step=5)
    assert set(parts) == {"l2", "ssim", "focal", "fault_rate"}
    expected = parts["l2"] + 2 * (1 - parts["ssim"]) + parts["focal"]
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert parts["fault_rate"].item() == 0.5
    assert not any(part.requires_grad for part in parts.values())


def test_the_clean_image_is_rebuilt_from_the_faulty_one() -> None:
    model = draem()
    given = batch_of(model)
    seen: list[Tensor] = []
    model.reconstruction.register_forward_hook(lambda _, inputs, output: seen.extend([*inputs, output]))
    parts = model.training_loss(given, step=5).parts
    clean = images(4)
    faulty, rebuilt = seen
    assert not torch.equal(faulty[0, 0], clean[0])
    assert torch.allclose(faulty[1, 2], clean[1], atol=1e-6)
    expected = (rebuilt - clean[:, None]).square().mean()
    assert parts["l2"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_gradient_reaches_every_parameter() -> None:
    model = draem((64, 64))
    model.training_loss(batch_of(model, size=(64, 64)), step=0).total.backward()
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


def test_faults_are_a_function_of_seed_and_step() -> None:
    losses = {}
    for seed, step in product((7, 8), (0, 1)):
        model = draem(seed=seed)
        model.load_state_dict(draem().state_dict())
        losses[seed, step] = model.training_loss(batch_of(model), step=step).total.item()
    model = draem()
    torch.manual_seed(99)
    assert model.training_loss(batch_of(model), step=0).total.item() == losses[7, 0]
    assert len(set(losses.values())) == 4


def test_it_learns_one_batch() -> None:
    model = draem((64, 64))
    given = batch_of(model, 2, (64, 64))
    optimizer = torch.optim.Adam(model.parameter_groups()[0].parameters, lr=2e-3)
    losses = []
    for _ in range(30):
        total = model.training_loss(given, step=0).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.6 * losses[0]


# Inference


def settled(model: Draem) -> Draem:
    """Let batch norm see a batch: before, the networks say the same of every image."""
    model.training_loss(batch_of(model), step=0)
    return model


@pytest.mark.parametrize("training", [True, False])
def test_validation_and_score_leave_no_trace(training: bool) -> None:
    model = draem().train(training)
    model.training_loss(batch_of(model), step=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    validation = model.validation_loss(encoded(model), position=3)
    prediction = model.score(encoded(model))
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.training is training
    assert model.discrimination.training is training
    assert validation.shape == (4,)
    assert not validation.requires_grad
    assert not prediction.score_B.requires_grad
    again = model.eval()
    assert torch.equal(validation, again.validation_loss(encoded(model), position=3))
    assert torch.equal(prediction.score_B, again.score(encoded(model)).score_B)


def test_validation_faults_are_those_of_their_position() -> None:
    model = settled(draem()).eval()
    first = model.validation_loss(encoded(model), position=0)
    assert not torch.equal(first, model.validation_loss(encoded(model), position=1))
    trained = model.training_loss(batch_of(model), step=0).total
    assert trained.item() != pytest.approx(first.mean().item(), rel=1e-6), "not the faults of a training step"


@pytest.mark.parametrize("image_score", ["max", "top_share"])
def test_score_is_of_the_full_size_softmax(image_score: str) -> None:
    model = settled(draem(image_score=image_score)).eval()
    given = encoded(model)
    with torch.no_grad():
        softmax = model.examine(given.squeeze(1)).logits_B2HW.softmax(dim=1)[:, 1]
    map_BHW, score_B = model.score(given)
    large = F.interpolate(softmax[:, None], size=(20, 30), mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(map_BHW, large, atol=1e-6)
    expected = top_share_score(softmax) if image_score == "top_share" else softmax.amax(dim=(1, 2))
    assert torch.allclose(score_B, expected, atol=1e-6)
    assert score_B.min() >= 0
    assert score_B.max() <= 1


def test_score_does_not_depend_on_the_rest_of_the_batch() -> None:
    model = settled(draem()).eval()
    together = model.score(encoded(model))
    assert torch.equal(together.score_B, model.score(encoded(model)).score_B)
    assert together.score_B.std() > 1e-3
    others = torch.cat([encoded(model)[:1], 2 * encoded(model)[1:].flip(2)])
    assert model.score(others).score_B[0].item() == pytest.approx(together.score_B[0].item(), abs=1e-6)
    # Other batch sizes are convolved in another order, which in float32 rounds otherwise.
    exact, given = model.double(), encoded(model).squeeze(1).double()
    alone = torch.cat([exact.examine(image[None]).logits_B2HW for image in given])
    assert torch.allclose(alone, exact.examine(given).logits_B2HW, rtol=0, atol=1e-9)


def test_losses_and_scores_are_float32_under_autocast() -> None:
    model = draem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, parts = model.training_loss(batch_of(model), step=0)
        prediction = model.score(encoded(model))
    exact = model.training_loss(batch_of(model), step=0).total
    assert {total.dtype, *(part.dtype for part in parts.values())} == {torch.float32}
    assert {part.dtype for part in prediction} == {torch.float32}
    assert total.item() == pytest.approx(exact.item(), rel=0.02)


def test_encode_gives_one_channel_of_its_own() -> None:
    model = draem()
    given = images(2, (64, 96))
    found = model.encode(given)
    assert found.shape == (2, 1, *SIZE)
    assert not found.requires_grad
    assert found.untyped_storage().nbytes() == found.numel() * 4
    assert torch.equal(found, model.preprocessing(given)[:, 1:2])
    assert model.encode(given * 3).max() > 1, "values above 1 are kept"


# Refusals


def test_images_smaller_than_the_ssim_window_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"image_size=10x48.*11 or more"):
        draem((10, 48))
    check_size((MINIMUM_SIZE, MINIMUM_SIZE))
    smallest = draem((MINIMUM_SIZE, MINIMUM_SIZE))
    loss = smallest.training_loss(batch_of(smallest, size=(MINIMUM_SIZE, MINIMUM_SIZE)), step=0)
    assert loss.total.isfinite()


def test_a_batch_without_variance_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_size=1.*32x32"):
        networks.check_batch(1, size=(32, 32))
    networks.check_batch(1, size=(32, 33))
    networks.check_batch(2, size=(32, 32))
    model, wide = draem((32, 32)), draem((32, 33))
    with pytest.raises(ValueError, match="more than 1 value"):
        model.training_loss(batch_of(model, 1, (32, 32)), step=0)
    assert wide.training_loss(batch_of(wide, 1, (32, 33)), step=0).total.isfinite()
