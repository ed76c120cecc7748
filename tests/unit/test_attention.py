"""Attention that cannot copy along a row equals the masked full matrix, values and gradients."""

import itertools
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dinomaly_hd.config import RowBlindAttention, RowDropoutAttention
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.models.detector import Noise
from dinomaly_hd.models.dinomaly.attention import (
    DENOMINATOR_EPSILON,
    PlainMixing,
    RowBlindMixing,
    RowDropoutMixing,
    linear_attention,
    row_blind_attention,
)

Grid = tuple[int, int]
GRIDS: list[Grid] = [(3, 5), (7, 12), (4, 17), (28, 28), (2, 1)]
CASES = [
    (grid, radius)
    for grid in GRIDS
    for radius in (0, 1, 3, grid[1] // 2, grid[1] - 2, grid[1] - 1, grid[1] + 5, None)
    if radius is None or radius >= 0
]


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


@pytest.mark.parametrize(("grid", "radius"), CASES)
def test_row_blind_attention_is_the_masked_full_matrix(grid: Grid, radius: int | None) -> None:
    given, mask = heads(grid), hidden(grid, radius)
    expected = masked_matrix(given, mask)
    exact = row_blind_attention(*given, grid=grid, radius=radius)
    torch.testing.assert_close(exact, expected, atol=1e-10, rtol=0)
    single = row_blind_attention(*(part.float() for part in given), grid=grid, radius=radius)
    assert single.dtype == torch.float32
    error = (single - expected).abs().max() / expected.abs().max()
    assert error < 1e-5


@pytest.mark.parametrize(("grid", "radius"), [case for case in CASES if case[0] != (28, 28)])
def test_its_gradients_are_those_of_the_masked_full_matrix(grid: Grid, radius: int | None) -> None:
    given = Heads(*(part.requires_grad_() for part in heads(grid, batch=1)))
    weight = torch.randn(given.v.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found = torch.autograd.grad((row_blind_attention(*given, grid=grid, radius=radius) * weight).sum(), given)
    expected = torch.autograd.grad((masked_matrix(given, hidden(grid, radius)) * weight).sum(), given)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("radius", [1, None])
def test_gradients_agree_with_finite_differences(radius: int | None) -> None:
    given = Heads(*(part.requires_grad_() for part in heads((3, 4), batch=1, count=1, width=2)))
    assert torch.autograd.gradcheck(
        lambda *parts: row_blind_attention(*parts, grid=(3, 4), radius=radius), tuple(given)
    )


@pytest.mark.parametrize("radius", [0, 2, None])
def test_a_query_does_not_read_what_is_hidden_and_reads_all_else(radius: int | None) -> None:
    grid, token = (4, 9), 2 * 9 + 5
    given, mask = heads(grid, batch=1), hidden(grid, radius)
    before = row_blind_attention(*given, grid=grid, radius=radius)
    changed = given._replace(k=given.k.clone(), v=given.v.clone())
    changed.k[:, :, token] += 1.5
    changed.v[:, :, token] -= 2.0
    after = row_blind_attention(*changed, grid=grid, radius=radius)
    moved_N = (after - before).abs().amax(dim=(0, 1, 3))
    assert moved_N[mask[:, token]].max() < 1e-12
    assert moved_N[~mask[:, token]].min() > 1e-6


@pytest.mark.parametrize("radius", [3, None])
def test_half_precision_is_accumulated_in_single(radius: int | None) -> None:
    given = heads((7, 12))
    half = Heads(*(part.bfloat16() for part in given))
    out = row_blind_attention(*half, grid=(7, 12), radius=radius)
    assert out.dtype == torch.bfloat16
    expected = masked_matrix(Heads(*(part.double() for part in half)), hidden((7, 12), radius))
    torch.testing.assert_close(out.double(), expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("radius", [3, None])
def test_underflowing_keys_stay_finite(radius: int | None) -> None:
    given = Heads(*(part.float() for part in heads((3, 9))))
    out = row_blind_attention(given.q - 200, given.k - 200, given.v, grid=(3, 9), radius=radius)
    assert torch.isfinite(out).all()


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


def test_row_blind_attention_is_the_same_with_noise_and_names_a_wrong_count() -> None:
    mixing, given = row_blind((3, 5), 1), heads((3, 5))
    noisy, plain = (mixing(*given, noise=place).value_BhNd for place in (noise(1), None))
    assert torch.equal(noisy, plain)
    assert mixing.expected_drop_rate(9) == 0
    with pytest.raises(ValueError, match="row-blind attention got 15 tokens for a 4 x 5 grid of 20"):
        row_blind((4, 5), 1)(*given, noise=None)


# Row dropout inside the decoder


def noise(step: int) -> Noise:
    return Noise(0, step=step, device=torch.device("cpu"))


def dropping(*, keys: bool, grid: Grid = (5, 7), warmup: int = 10, block: int = 4) -> RowDropoutMixing:
    """Drop in the first two of the three heads."""
    config = RowDropoutAttention(
        row_p=0.7, seg_len=3, seg_drop_p=0.6, decoder_heads=0.6, keys=keys, decoder_warmup=warmup
    )
    return RowDropoutMixing(config, grid, heads=3, block=block)


def looped(given: Heads, dropped_BN: Tensor, *, keys: bool) -> Tensor:
    """Sum token by token: a dropped value counts nothing; with ``keys`` its weight counts nothing either."""
    q, k, v = feature(given.q), feature(given.k), given.v
    out = torch.zeros_like(v)
    batch, count, tokens, _ = v.shape
    for image, head, query in itertools.product(range(batch), range(count), range(tokens)):
        above, below = torch.zeros_like(v[0, 0, 0]), torch.tensor(DENOMINATOR_EPSILON, dtype=v.dtype)
        for token in range(tokens):
            weight = q[image, head, query] @ k[image, head, token]
            drops = bool(dropped_BN[image, token]) and head < 2
            above = above if drops else above + weight * v[image, head, token]
            below = below if drops and keys else below + weight
        out[image, head, query] = above / below
    return out


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("step", [5, 10])
def test_row_dropout_equals_a_loop(keys: bool, step: int) -> None:
    grid, given, mixing = (4, 5), heads((4, 5)), dropping(keys=keys, grid=(4, 5))
    place = noise(step)
    mask_Bhw = mixing.segments.draw(
        2, generator=place.generator("decoder block 4"), strength=0.5 if step == 5 else 1.0
    )
    assert mask_Bhw.any()
    dropped_BN = mask_Bhw.reshape(2, grid[0] * grid[1])
    mixed = mixing(*given, noise=place)
    expected = looped(given, dropped_BN, keys=keys)
    torch.testing.assert_close(mixed.value_BhNd, expected, atol=1e-12, rtol=0)
    assert mixed.drop_rate.item() == pytest.approx(float(dropped_BN.float().mean()))


def test_heads_that_do_not_drop_and_inference_are_plain() -> None:
    given = heads((5, 7))
    plain = linear_attention(*given).value_BhNd
    assert torch.equal(plain, PlainMixing()(*given, noise=noise(50)).value_BhNd)
    for keys in (False, True):
        mixing = dropping(keys=keys)
        assert torch.equal(mixing(*given, noise=None).value_BhNd, plain)
        assert torch.equal(mixing(*given, noise=noise(0)).value_BhNd, plain), "strength 0 at step 0"
        noisy = mixing(*given, noise=noise(50)).value_BhNd
        assert torch.equal(noisy[:, 2], plain[:, 2])
        assert not torch.equal(noisy[:, :2], plain[:, :2])


def test_blocks_and_steps_draw_for_themselves() -> None:
    given, mixing = heads((5, 7)), dropping(keys=False)
    first, again, later = (mixing(*given, noise=noise(step)).value_BhNd for step in (20, 20, 21))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, dropping(keys=False, block=5)(*given, noise=noise(20)).value_BhNd)


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


def test_row_dropout_names_a_wrong_count() -> None:
    with pytest.raises(ValueError, match="decoder row dropout got 20 tokens for a 5 x 7 grid of 35"):
        dropping(keys=False)(*heads((4, 5)), noise=None)
