"""Row masking replaces whole rows, and every place that draws has numbers of its own."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dinomaly_hd.models import bottleneck
from dinomaly_hd.models.bottleneck import (
    BottleneckMLP,
    GridNoise,
    NoisyMLP,
    RowMasking,
    SegmentDropout,
    draw_kept,
)
from dinomaly_hd.models.noise import Noise
from dinomaly_hd.models.recompute import Kept

GRID, WIDTH = (9, 7), 6
TOKENS = GRID[0] * GRID[1]


def noise(seed: int = 0, *, step: int = 0) -> Noise:
    return Noise(seed, step=step, device=torch.device("cpu"))


def tokens(batch: int) -> Tensor:
    return 1 + torch.rand(batch, TOKENS, WIDTH, generator=torch.Generator().manual_seed(2))


def masking(*, row_p: float = 0.3, token: float = -5.0) -> RowMasking:
    module = RowMasking(GRID, width=WIDTH, row_p=row_p)
    with torch.no_grad():
        module.mask_token.fill_(token)
    return module


def test_the_learned_token_stands_in_for_whole_rows() -> None:
    x_BND = tokens(50)
    out_BND, rate = masking()(x_BND, noise=noise(1))
    row_BR = (out_BND == -5).all(-1).reshape(50, *GRID)
    assert torch.equal(row_BR.all(2), row_BR.any(2)), "part of a row"
    kept_BN = ~row_BR.flatten(1)
    assert torch.equal(out_BND[kept_BN], x_BND[kept_BN])
    assert rate.item() == pytest.approx(float(row_BR.float().mean()))
    assert not torch.equal(row_BR[0], row_BR[1]), "samples share their rows"


@pytest.mark.parametrize("row_p", [0.0, 0.1, 0.5, 1.0])
def test_rows_are_masked_at_their_rate(row_p: float) -> None:
    module, batch = masking(row_p=row_p), 3000
    assert module.expected_drop_rate == row_p
    rate = module(tokens(batch)[..., :1].expand(-1, -1, WIDTH), noise=noise(3)).drop_rate.item()
    sigma = math.sqrt(row_p * (1 - row_p) / (batch * GRID[0]))
    assert rate == pytest.approx(row_p, abs=3 * sigma + 1e-9)


def test_the_token_starts_at_zero_and_learns_from_the_masked_places_only() -> None:
    module = RowMasking(GRID, width=WIDTH, row_p=0.3)
    assert not module.mask_token.detach().any()
    x_BND = tokens(4).requires_grad_()
    weight_BND = torch.rand(x_BND.shape, generator=torch.Generator().manual_seed(5))
    out_BND, _ = module(x_BND, noise=noise(1))
    (out_BND * weight_BND).sum().backward()
    masked_BN = (out_BND == 0).all(-1)
    assert masked_BN.any()
    assert module.mask_token.grad is not None
    torch.testing.assert_close(module.mask_token.grad, weight_BND[masked_BN].sum(0))
    assert x_BND.grad is not None
    torch.testing.assert_close(x_BND.grad, weight_BND.masked_fill(masked_BN[..., None], 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_masking_keeps_the_type_and_does_nothing_at_inference(dtype: torch.dtype) -> None:
    x_BND = tokens(4).to(dtype)
    assert masking()(x_BND, noise=noise()).tokens_BND.dtype == dtype
    plain = masking()(x_BND, noise=None)
    assert torch.equal(plain.tokens_BND, x_BND)
    assert plain.drop_rate == 0


def test_rows_are_a_function_of_seed_and_step() -> None:
    places = [noise(1, step=3), noise(1, step=3), noise(1, step=4), noise(2, step=3)]
    first, again, later, other = (masking()(tokens(8), noise=place).tokens_BND for place in places)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, other)


def test_a_wrong_token_count_is_named() -> None:
    with pytest.raises(ValueError, match="row masking got 68 tokens for a 9 x 7 grid of 63"):
        masking()(torch.zeros(1, 68, WIDTH), noise=None)


def mlp(p: float = 0.2) -> BottleneckMLP:
    made = BottleneckMLP(WIDTH, hidden=2 * WIDTH, p=p)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(generator=generator)
    return made


def kept_inputs(module: BottleneckMLP | NoisyMLP, x_BND: Tensor, place: Noise) -> Tensor:
    """Return which inputs of the MLP's first layer are not zero."""
    inner = module.mlp if isinstance(module, NoisyMLP) else module
    seen: list[Tensor] = []
    handle = inner.fc1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(x_BND, noise=place)
    handle.remove()
    return seen[0] != 0


GRID_NOISES: list[GridNoise] = [
    SegmentDropout(GRID, row_p=0.5, seg_len=3, seg_drop_p=0.6),
    RowMasking(GRID, width=WIDTH, row_p=0.3),
]


@pytest.mark.parametrize("grid_noise", GRID_NOISES, ids=lambda part: type(part).__name__)
def test_element_dropout_is_the_same_with_and_without_directional_noise(grid_noise: GridNoise) -> None:
    x_BND, inner, place = tokens(8), mlp(), noise(7, step=11)
    alone = kept_inputs(inner, x_BND, place)
    dropped_BN = (grid_noise(x_BND, noise=place).tokens_BND == 0).all(-1)
    behind = kept_inputs(NoisyMLP(grid_noise, inner), x_BND, place)
    assert dropped_BN.any()
    assert torch.equal(behind[~dropped_BN], alone[~dropped_BN])
    assert not behind[dropped_BN].any()


def test_the_three_places_of_the_mlp_draw_different_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    inner, place = mlp(p=0.5), noise(7)
    seen: list[Tensor] = []

    def watched(*args: Any, **keywords: Any) -> Kept | None:
        kept = draw_kept(*args, **keywords)
        assert kept is not None
        seen.append(kept.mask)
        return kept

    monkeypatch.setattr(bottleneck, "draw_kept", watched)
    inner(tokens(8), noise=place)
    first, second, third = seen
    assert not torch.equal(first, third)
    assert not torch.equal(first.flatten()[:2000], second.flatten()[:2000])


@pytest.mark.parametrize("grid_noise", GRID_NOISES, ids=lambda part: type(part).__name__)
def test_a_noisy_mlp_is_the_mlp_at_inference_and_reports_its_noise(grid_noise: GridNoise) -> None:
    x_BND, inner = tokens(2), mlp()
    module = NoisyMLP(grid_noise, inner)
    plain = module(x_BND, noise=None)
    expected = F.linear(F.gelu(F.linear(x_BND, inner.fc1.weight, inner.fc1.bias)), inner.fc2.weight)
    torch.testing.assert_close(plain.tokens_BND, expected + inner.fc2.bias)
    assert plain.drop_rate == 0
    assert module.expected_drop_rate == grid_noise.expected_drop_rate
    place = noise(3)
    assert module(x_BND, noise=place).drop_rate == grid_noise(x_BND, noise=place).drop_rate > 0
