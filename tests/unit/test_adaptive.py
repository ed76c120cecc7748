"""Angular power entropy equals a loop, knows directions, and sets each map's discard rate."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dinomaly_hd.batch import Batch
from dinomaly_hd.models.dinomaly.distance import MeanPooling
from dinomaly_hd.models.entropy import SECTORS, angular_power_entropy
from dinomaly_hd.models.losses import AdaptiveMining, token_distance

MEAN = MeanPooling()


def noise_maps(count: int, *, shape: tuple[int, int] = (31, 95), seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def band(*, rows: slice, columns: slice = slice(None)) -> Tensor:
    image_BHW = torch.full((1, 31, 95), 0.2)
    image_BHW[:, rows, columns] += 0.7
    return image_BHW


def looped_entropy(image: np.ndarray) -> float:
    height, width = image.shape
    spectrum = np.fft.fft2(image.astype(np.float64))
    share = np.zeros(SECTORS)
    for row in range(height):
        for column in range(width):
            # Frequencies in cycles per pixel, -1/2 .. 1/2; a direction and its opposite are one.
            vertical = (row if row < (height + 1) // 2 else row - height) / height
            horizontal = (column if column < (width + 1) // 2 else column - width) / width
            if vertical == horizontal == 0:
                continue
            angle = math.atan2(vertical, horizontal) % math.pi
            share[min(int(angle * SECTORS / math.pi), SECTORS - 1)] += abs(spectrum[row, column]) ** 2
    share = share[share > 0] / share.sum()
    return float(-(share * np.log(share)).sum() / math.log(SECTORS))


@pytest.mark.parametrize("shape", [(31, 95), (12, 8), (7, 30), (16, 16)])
def test_the_entropy_equals_a_loop(shape: tuple[int, int]) -> None:
    images_BHW = noise_maps(2, shape=shape).cumsum(dim=2)
    found = angular_power_entropy(images_BHW)
    assert found.dtype == torch.float64
    expected = [looped_entropy(image) for image in images_BHW.double().numpy()]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


def test_one_direction_is_zero_and_no_direction_is_one() -> None:
    assert angular_power_entropy(band(rows=slice(10, 12))).item() == pytest.approx(0, abs=1e-6)
    assert angular_power_entropy(band(rows=slice(10, 12)).mT).item() == pytest.approx(0, abs=1e-6)
    assert angular_power_entropy(noise_maps(20)).min() > 0.97
    part = angular_power_entropy(band(rows=slice(10, 12), columns=slice(20, 60))).item()
    assert 0.1 < part < 0.7, "a band of half the width lies between"


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 7.7])
def test_a_map_without_variation_has_one(value: float) -> None:
    assert angular_power_entropy(torch.full((2, 31, 95), value)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("scale", "offset"), [(1e-6, 0.0), (1e3, 0.0), (1.0, -40.0), (0.3, 5.0)])
def test_scale_and_offset_do_not_count(scale: float, offset: float) -> None:
    images_BHW = noise_maps(3).double()
    expected = angular_power_entropy(images_BHW)
    found = angular_power_entropy(images_BHW * scale + offset)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_mirrored_and_turned_maps_have_the_same_entropy_and_each_map_its_own() -> None:
    images_BHW = noise_maps(4).cumsum(dim=2)
    expected = angular_power_entropy(images_BHW)
    torch.testing.assert_close(angular_power_entropy(images_BHW.flip(1, 2)), expected, atol=1e-9, rtol=0)
    alone = torch.cat([angular_power_entropy(image[None]) for image in images_BHW])
    torch.testing.assert_close(alone, expected, atol=1e-12, rtol=0)


def mixed_maps(count: int) -> Tensor:
    """Maps from nearly one direction to nearly none."""
    share_B11 = torch.linspace(0.5, 1.0, count).view(-1, 1, 1)
    smooth_BHW = noise_maps(count, seed=1).cumsum(dim=2) / 5
    return share_B11 * noise_maps(count) + (1 - share_B11) * smooth_BHW


def adaptive(*, scale: float, images_BHW: Tensor, final: float = 0.9) -> AdaptiveMining:
    loss = AdaptiveMining(ape_scale=scale, discard_final=final, discard_warmup=1000, discard_factor=0.1)
    loss.fit(images_BHW.split(7))
    return loss


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5])
def test_the_mean_rate_of_the_training_images_is_p(p: float) -> None:
    images_BHW = mixed_maps(40)
    loss = adaptive(scale=4.0, images_BHW=images_BHW)
    rate_B = loss.rates(images_BHW, p=p)
    assert rate_B.max() < 1
    assert rate_B.mean().item() == pytest.approx(p, abs=1e-12)
    entropy_B = angular_power_entropy(images_BHW)
    raw = [1 / (1 + math.exp(-4.0 * (entropy_B.mean().item() - e))) for e in entropy_B.tolist()]
    assert rate_B.tolist() == pytest.approx([p * one * len(raw) / sum(raw) for one in raw], abs=1e-12)
    if p > 0:
        order = entropy_B.argsort()
        assert (rate_B[order].diff() < 0).all(), "structure of one direction discards more"


def test_a_rate_never_exceeds_one() -> None:
    images_BHW = mixed_maps(40)
    loss = adaptive(scale=50.0, images_BHW=images_BHW)
    assert loss.rates(images_BHW, p=0.9).max() == 1


def groups(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    encoder, decoder = (
        torch.randn(count, 2, 50, 4, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    return encoder, decoder.requires_grad_()


@pytest.mark.parametrize("scale", [0.0, 4.0])
def test_each_image_is_mined_at_its_own_rate_within_itself(scale: float) -> None:
    images_BHW, (encoder, decoder) = mixed_maps(6), groups(6)
    loss = adaptive(scale=scale, images_BHW=images_BHW)
    batch = Batch(images_BHW, torch.zeros(6, dtype=torch.int64), None)
    step = 600
    rates = loss.rates(images_BHW, p=0.54).tolist()
    if scale == 0:
        assert rates == pytest.approx([0.54] * 6, abs=1e-12), "all alike without a scale"
    else:
        assert max(rates) - min(rates) > 0.1
    distance_BSN = token_distance(encoder, decoder).detach()
    factor = torch.ones(6, 2, 50, 1, dtype=torch.float64)
    plain = torch.zeros((), dtype=torch.float64)
    for image in range(6):
        for group in range(2):
            own = distance_BSN[image, group].tolist()
            threshold = sorted(own, reverse=True)[max(1, int(50 * (1 - rates[image]))) - 1]
            for token, value in enumerate(own):
                factor[image, group, token] = 0.1 if value < threshold else 1.0
            a, b = encoder[image, group].flatten(), decoder[image, group].flatten()
            plain = plain + (1 - (a @ b) / (a.norm() * b.norm())) / 12
    total, parts = loss(encoder, decoder, pooling=MEAN, batch=batch, step=step)
    assert total.item() == pytest.approx(plain.item(), abs=1e-12)
    (found,) = torch.autograd.grad(total, decoder)
    (expected,) = torch.autograd.grad(plain, decoder)
    torch.testing.assert_close(found, expected * factor, atol=1e-12, rtol=0)
    assert float(parts["discard_rate"]) == pytest.approx(float((factor < 1).double().mean()))
    assert float(parts["discard_target"]) == pytest.approx(0.54)


def test_what_was_fitted_is_saved_with_the_weights() -> None:
    images_BHW = mixed_maps(10)
    loss = adaptive(scale=4.0, images_BHW=images_BHW)
    copy = AdaptiveMining(ape_scale=4.0, discard_final=0.9, discard_warmup=1000, discard_factor=0.1)
    copy.load_state_dict(loss.state_dict())
    assert torch.equal(copy.rates(images_BHW, p=0.3), loss.rates(images_BHW, p=0.3))
