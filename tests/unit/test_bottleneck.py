"""Directional noise drops whole tokens or rows at its rate, and each place that draws has its own numbers."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinomaly_hd.config.dinomaly import RowMaskingBottleneck, Segments
from dinomaly_hd.models.detector import Noise
from dinomaly_hd.models.dinomaly.bottleneck import (
    Bottleneck,
    BottleneckMLP,
    NoisyMLP,
    RowMasking,
    SegmentDropout,
)

GRID, WIDTH = (9, 12), 6
TOKENS = GRID[0] * GRID[1]


def noise(seed: int = 0, *, step: int = 0) -> Noise:
    return Noise(seed, step=step, device=torch.device("cpu"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(batch: int) -> Tensor:
    return 1 + torch.rand(batch, TOKENS, WIDTH, generator=generator(2))


def segments(**changes: Any) -> SegmentDropout:
    return SegmentDropout(GRID, Segments(**{"seg_len": 3, **changes}))


def masking(*, row_p: float = 0.3, token: float = 0.0) -> RowMasking:
    module = RowMasking(GRID, WIDTH, RowMaskingBottleneck(row_p=row_p))
    assert not module.mask_token.detach().any(), "the learned token starts at zero"
    nn.init.constant_(module.mask_token, token)
    return module


GRID_NOISES: list[Bottleneck] = [segments(row_p=0.5), masking()]
each_noise = pytest.mark.parametrize("grid_noise", GRID_NOISES, ids=lambda part: type(part).__name__)


@each_noise
def test_whole_tokens_are_dropped_and_the_others_stay_as_they_are(grid_noise: Bottleneck) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x_BND = tokens(4).to(dtype)
        out, rate = grid_noise(x_BND, noise=noise(1))
        assert out.dtype == dtype
        zero_BN = (out == 0).all(-1)
        assert torch.equal(zero_BN, (out == 0).any(-1))
        assert torch.equal(out[~zero_BN], x_BND[~zero_BN]), "nothing is rescaled"
        assert float(rate) == pytest.approx(float(zero_BN.float().mean())) != 0
        plain = grid_noise(x_BND, noise=None)
        assert torch.equal(plain.tokens_BND, x_BND)
        assert plain.drop_rate == 0


@each_noise
def test_each_sample_and_step_draws_for_itself(grid_noise: Bottleneck) -> None:
    places = [noise(1, step=3), noise(1, step=3), noise(1, step=4), noise(2, step=3)]
    first, again, *others = (grid_noise(tokens(8), noise=place).tokens_BND for place in places)
    assert torch.equal(first, again)
    assert not any(torch.equal(first, other) for other in (*others, first.flip(0)))


@pytest.mark.parametrize(("row_p", "seg_len", "seg_drop_p"), [(0.2, 3, 0.6), (0.5, 12, 0.9), (1.0, 1, 0.5)])
def test_segments_drop_the_share_that_the_formula_says(row_p: float, seg_len: int, seg_drop_p: float) -> None:
    dropout = segments(row_p=row_p, seg_len=seg_len, seg_drop_p=seg_drop_p)
    mask_Bhw = dropout.draw(4000, generator=generator())
    expected = row_p * seg_len / 12 * seg_drop_p
    assert dropout.expected_drop_rate == pytest.approx(expected)
    per_row = mask_Bhw.float().mean(-1).flatten().double()  # rows are independent, tokens of a row are not
    sigma = float(per_row.std()) / math.sqrt(len(per_row))
    assert float(per_row.mean()) == pytest.approx(expected, abs=3 * sigma)


def test_segments_fit_their_row_and_begin_anywhere() -> None:
    mask_RW = segments(row_p=1.0, seg_drop_p=1.0).draw(2000, generator=generator()).flatten(0, 1).int()
    starts = mask_RW.argmax(-1)
    assert set(starts.tolist()) == set(range(10))
    columns = torch.arange(12)
    assert torch.equal(mask_RW == 1, (columns >= starts[:, None]) & (columns < starts[:, None] + 3))


def test_the_learned_token_stands_in_for_whole_rows_at_their_rate() -> None:
    out_BND = masking(token=-5)(tokens(50), noise=noise(1)).tokens_BND
    row_BR = (out_BND == -5).all(-1).reshape(50, *GRID)
    assert row_BR.any()
    assert torch.equal(row_BR.all(2), row_BR.any(2)), "part of a row"
    for row_p in (0.0, 0.1, 0.5, 1.0):
        module, batch = masking(row_p=row_p), 3000
        assert module.expected_drop_rate == row_p
        rate = module(tokens(batch), noise=noise(3)).drop_rate.item()
        sigma = math.sqrt(row_p * (1 - row_p) / (batch * GRID[0]))
        assert rate == pytest.approx(row_p, abs=3 * sigma + 1e-9)


def test_the_token_learns_from_the_masked_places_only() -> None:
    module, x_BND = masking(), tokens(4).requires_grad_()
    weight_BND = torch.rand(x_BND.shape, generator=generator(5))
    out_BND, _ = module(x_BND, noise=noise(1))
    slopes = torch.autograd.grad((out_BND * weight_BND).sum(), (module.mask_token, x_BND))
    masked_BN = (out_BND == 0).all(-1)
    assert masked_BN.any()
    torch.testing.assert_close(slopes[0], weight_BND[masked_BN].sum(0))
    torch.testing.assert_close(slopes[1], weight_BND.masked_fill(masked_BN[..., None], 0))


def test_a_wrong_token_count_is_named() -> None:
    for module, name in ((segments(), "segment dropout"), (masking(), "row masking")):
        with pytest.raises(ValueError, match=f"{name} got 113 tokens for a 9 x 12 grid of 108"):
            module(torch.zeros(1, 113, WIDTH), noise=noise())


def mlp(p: float = 0.2) -> BottleneckMLP:
    made, drawn = BottleneckMLP(WIDTH, p=p), generator(4)
    for parameter in made.parameters():
        nn.init.normal_(parameter, generator=drawn)
    return made


def kept_inputs(module: Bottleneck, inner: BottleneckMLP, x_BND: Tensor, place: Noise) -> Tensor:
    """Return which inputs of the MLP's first layer are not zero."""
    seen: list[Tensor] = []
    handle = inner.fc1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(x_BND, noise=place)
    handle.remove()
    return seen[0] != 0


@each_noise
def test_element_dropout_is_the_same_with_and_without_directional_noise(grid_noise: Bottleneck) -> None:
    x_BND, inner, place = tokens(8), mlp(), noise(7, step=11)
    alone = kept_inputs(inner, inner, x_BND, place)
    dropped_BN = (grid_noise(x_BND, noise=place).tokens_BND == 0).all(-1)
    behind = kept_inputs(NoisyMLP(grid_noise, inner), inner, x_BND, place)
    assert dropped_BN.any()
    assert torch.equal(behind[~dropped_BN], alone[~dropped_BN])
    assert not behind[dropped_BN].any()


@each_noise
def test_a_noisy_mlp_is_the_mlp_at_inference_and_reports_its_noise(grid_noise: Bottleneck) -> None:
    x_BND, inner, place = tokens(2), mlp(), noise(3)
    module = NoisyMLP(grid_noise, inner)
    plain = module(x_BND, noise=None)
    torch.testing.assert_close(plain.tokens_BND, inner.fc2(F.gelu(inner.fc1(x_BND))))
    assert plain.drop_rate == 0
    assert module.expected_drop_rate == grid_noise.expected_drop_rate
    assert module(x_BND, noise=place).drop_rate == grid_noise(x_BND, noise=place).drop_rate > 0
