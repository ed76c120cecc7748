"""Attention that cannot copy along a row equals the masked full matrix, values and gradients."""

import itertools
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dinomaly_hd.config.dinomaly import RowBlindAttention, RowDropoutAttention
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.models.detector import Noise
from dinomaly_hd.models.dinomaly.attention import (
    DENOMINATOR_EPSILON,
    PlainMixing,
    RowBlindMixing,
    RowDropoutMixing,
    attend_beyond_row,
)
from dinomaly_hd.models.fast import positive_feature

Grid = tuple[int, int]
GRIDS: list[Grid] = [(3, 5), (7, 12), (4, 17), (14, 14), (2, 1)]


class Heads(NamedTuple):
    """Queries, keys and values (B, h, N, d)."""

    q: Tensor
    k: Tensor
    v: Tensor


def heads(grid: Grid, *, batch: int = 2, count: int = 3, width: int = 4) -> Heads:
    generator = torch.Generator().manual_seed(3)
    shape = (batch, count, grid[0] * grid[1], width)
    return Heads(*(torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(3)))


def feature(x: Tensor) -> Tensor:
    return torch.nn.functional.elu(x) + 1


def hidden(grid: Grid, radius: int | None) -> Tensor:
    """Return (N, N), true where the query (row) may not read the token (column)."""
    places = list(itertools.product(range(grid[0]), range(grid[1])))
    reach = grid[1] if radius is None else radius
    return torch.tensor([[a[0] == b[0] and abs(a[1] - b[1]) <= reach for b in places] for a in places])


def masked_matrix(given: Heads, mask: Tensor) -> Tensor:
    weight = (feature(given.q) @ feature(given.k).transpose(-2, -1)).masked_fill(mask, 0)
    return weight @ given.v / (weight.sum(-1, keepdim=True) + DENOMINATOR_EPSILON)


def beyond_row(given: Heads, grid: Grid, radius: int | None) -> Tensor:
    q, k = positive_feature(given.q), positive_feature(given.k)
    return attend_beyond_row(q, k, given.v, grid=grid, radius=radius)


@pytest.mark.parametrize("grid", GRIDS)
def test_row_blind_attention_and_its_gradients_are_those_of_the_masked_full_matrix(grid: Grid) -> None:
    for radius in {0, 1, 3, *(max(0, grid[1] + more) for more in (-grid[1] // 2, -2, -1, 5)), None}:
        given, mask = Heads(*(part.requires_grad_() for part in heads(grid))), hidden(grid, radius)
        exact, expected = beyond_row(given, grid, radius), masked_matrix(given, mask)
        torch.testing.assert_close(exact, expected, atol=1e-10, rtol=0)
        weight = torch.randn(given.v.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        found = torch.autograd.grad((exact * weight).sum(), given)
        for own, other in zip(found, torch.autograd.grad((expected * weight).sum(), given), strict=True):
            torch.testing.assert_close(own, other, atol=1e-10, rtol=1e-10)
        single = beyond_row(Heads(*(part.detach().float() for part in given)), grid, radius)
        assert single.dtype == torch.float32
        assert (single - expected).abs().max() / expected.abs().max() < 1e-5


@pytest.mark.parametrize("radius", [3, None])
def test_operations_a_token_do_not_grow_with_the_tokens(radius: int | None) -> None:
    operations = []
    for side in (14, 28):
        given = heads((side, side))
        with FlopCounterMode(display=False) as counter:
            beyond_row(given, (side, side), radius)
        operations.append(counter.get_total_flops() / side**2)
    assert operations[1] <= operations[0]


@pytest.mark.parametrize("radius", [3, None])
def test_half_precision_is_accumulated_in_single_and_underflow_stays_finite(radius: int | None) -> None:
    given = heads((7, 12))
    half = Heads(*(part.bfloat16() for part in given))
    out = row_blind((7, 12), radius)(*half, noise=None).value_BhNd
    assert out.dtype == torch.bfloat16
    expected = masked_matrix(Heads(*(part.double() for part in half)), hidden((7, 12), radius))
    torch.testing.assert_close(out.double(), expected, atol=1e-2, rtol=1e-2)
    q, k, v = (part.float() for part in given)
    assert torch.isfinite(beyond_row(Heads(q - 200, k - 200, v), (7, 12), radius)).all()


def row_blind(grid: Grid, radius: int | None) -> RowBlindMixing:
    return RowBlindMixing(RowBlindAttention(row_radius="full" if radius is None else str(radius)), grid)


def test_a_single_row_must_leave_every_token_something_to_read() -> None:
    for width, radius in [(5, 2), (4, 2), (5, None), (1, 0), (3, 1)]:
        assert hidden((1, width), radius).all(1).any()
        with pytest.raises(ConfigError, match=f"a 1 x {width} grid leaves nothing to read"):
            row_blind((1, width), radius)
    for width, radius in [(5, 1), (4, 1), (2, 0), (9, 3)]:
        assert not hidden((1, width), radius).all(1).any()
        row_blind((1, width), radius)
    mixing, given = row_blind((3, 5), 1), heads((3, 5))
    assert torch.equal(mixing(*given, noise=noise(1)).value_BhNd, mixing(*given, noise=None).value_BhNd)
    assert mixing.expected_drop_rate(9) == 0


# Row dropout inside the decoder


def noise(step: int) -> Noise:
    return Noise(0, step=step, device=torch.device("cpu"))


def dropping(*, keys: bool, grid: Grid = (5, 7), warmup: int = 10, block: int = 4) -> RowDropoutMixing:
    """Drop in the first two of the three heads."""
    config = RowDropoutAttention(
        row_p=0.7, seg_len=3, seg_drop_p=0.6, decoder_heads=0.6, keys=keys, decoder_warmup=warmup
    )
    return RowDropoutMixing(config, grid, heads=3, block=block)


def plain_dropout(given: Heads, dropped_BN: Tensor, *, keys: bool) -> Tensor:
    """A dropped value counts nothing; with ``keys`` its weight counts nothing either."""
    weight = feature(given.q) @ feature(given.k).transpose(-2, -1)
    kept = 1 - dropped_BN[:, None, None].double() * (torch.arange(3) < 2).view(3, 1, 1)
    below = (weight * kept if keys else weight).sum(-1, keepdim=True) + DENOMINATOR_EPSILON
    return (weight * kept) @ given.v / below


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize(("step", "strength"), [(5, 0.5), (10, 1.0)])
def test_row_dropout_equals_its_formula(keys: bool, step: int, strength: float) -> None:
    given, mixing, place = heads((4, 5)), dropping(keys=keys, grid=(4, 5)), noise(step)
    drawn = place.generator("decoder block 4")
    dropped_BN = mixing.segments.draw(2, generator=drawn, strength=strength).flatten(1)
    assert dropped_BN.any()
    mixed = mixing(*given, noise=place)
    torch.testing.assert_close(
        mixed.value_BhNd, plain_dropout(given, dropped_BN, keys=keys), atol=1e-12, rtol=0
    )
    assert mixed.drop_rate.item() == pytest.approx(float(dropped_BN.float().mean()))


def test_heads_that_do_not_drop_and_inference_are_plain_and_each_block_and_step_draws_for_itself() -> None:
    given = heads((5, 7))
    plain = PlainMixing()(*given, noise=noise(50)).value_BhNd
    torch.testing.assert_close(plain, masked_matrix(given, torch.zeros(35, 35, dtype=torch.bool)))
    for keys in (False, True):
        mixing = dropping(keys=keys)
        assert torch.equal(mixing(*given, noise=None).value_BhNd, plain)
        assert torch.equal(mixing(*given, noise=noise(0)).value_BhNd, plain), "strength 0 at step 0"
        noisy, again, later = (mixing(*given, noise=noise(step)).value_BhNd for step in (50, 50, 51))
        assert torch.equal(noisy[:, 2], plain[:, 2])
        assert torch.equal(noisy, again)
        elsewhere = dropping(keys=keys, block=5)(*given, noise=noise(50)).value_BhNd
        assert all(not torch.equal(noisy[:, :2], other[:, :2]) for other in (plain, later, elsewhere))


@pytest.mark.parametrize(("step", "strength"), [(0, 0.0), (1, 0.1), (5, 0.5), (10, 1.0), (500, 1.0)])
def test_the_drop_rate_rises_with_the_warm_up_to_the_formula(step: int, strength: float) -> None:
    mixing = dropping(keys=False)
    assert mixing.strength(step) == pytest.approx(strength)
    expected = 0.7 * strength * 3 / 7 * 0.6
    assert mixing.expected_drop_rate(step) == pytest.approx(expected)
    given = heads((5, 7), batch=3000, count=1, width=1)
    rate = mixing(*given, noise=noise(step)).drop_rate.item()
    # Rows are independent. Within a picked row the dropped count is binomial(3, 0.6).
    picked = 0.7 * strength
    second_moment = picked * (3 * 0.6 * 0.4 + (3 * 0.6) ** 2) / 49
    sigma = math.sqrt((second_moment - expected**2) / (3000 * 5))
    assert rate == pytest.approx(expected, abs=3 * sigma)
    assert dropping(keys=False, warmup=0).strength(0) == 1


def test_a_wrong_count_is_named() -> None:
    for mixing, name in (
        (dropping(keys=False), "decoder row dropout"),
        (row_blind((5, 7), 1), "row-blind attention"),
    ):
        with pytest.raises(ValueError, match=f"{name} got 20 tokens for a 5 x 7 grid of 35"):
            mixing(*heads((4, 5)), noise=None)
