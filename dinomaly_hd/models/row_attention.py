"""Linear attention that cannot copy along a row: blind to it, or with pieces of it dropped."""

# B batch, h heads, N = R * W tokens in R rows of W columns, d width of a head, C columns of a chunk

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dinomaly_hd.errors import ConfigError
from dinomaly_hd.models.attention import DENOMINATOR_EPSILON, Mixed, attend_features
from dinomaly_hd.models.bottleneck import SegmentDropout, check_tokens
from dinomaly_hd.models.noise import Noise
from dinomaly_hd.models.recompute import positive_feature

SMALLEST_CHUNK = 8


def row_blind_attention(
    q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor, *, grid: tuple[int, int], radius: int | None
) -> Tensor:
    """Attend linearly to all tokens but those of the query's row within ``radius`` columns (None: all of it).

    What a query may not read is subtracted from the global sums of phi(k) v^T and phi(k), so the result is
    exact and the cost linear in the number of tokens (spec/variants.md, Row-blind attention).

    Args:
        q_BhNd: Queries; keys and values alike.
        grid: (R, W) of the tokens.
        radius: 0 hides the token itself only.
    """
    accumulate = torch.promote_types(q_BhNd.dtype, torch.float32)
    rows = [x.to(accumulate).reshape(*x.shape[:2], *grid, x.shape[3]) for x in (q_BhNd, k_BhNd, v_BhNd)]
    q_BhRWd, k_BhRWd, v_BhRWd = positive_feature(rows[0]), positive_feature(rows[1]), rows[2]
    # One more value of 1 turns the denominator into a column of the numerator.
    v_BhRWe = F.pad(v_BhRWd, (0, 1), value=1.0)
    state_BhRde = k_BhRWd.transpose(-2, -1) @ v_BhRWe
    total_Bh1de = state_BhRde.sum(dim=2, keepdim=True)
    if radius is None or radius >= grid[1] - 1:
        attended_BhRWe = q_BhRWd @ (total_Bh1de - state_BhRde)
    else:
        attended_BhRWe = q_BhRWd @ total_Bh1de - _windowed(q_BhRWd, k_BhRWd, v_BhRWe, radius=radius)
    value_BhRWd = attended_BhRWe[..., :-1] / (attended_BhRWe[..., -1:] + DENOMINATOR_EPSILON)
    return value_BhRWd.flatten(2, 3).to(v_BhNd.dtype)


def _windowed(q_BhRWd: Tensor, k_BhRWd: Tensor, v_BhRWe: Tensor, *, radius: int) -> Tensor:
    """Return sum_j phi(q_i).phi(k_j) v_j over |i - j| <= radius within each row, chunk by chunk of a row."""
    width = q_BhRWd.shape[3]
    chunk = max(SMALLEST_CHUNK, 2 * radius)
    count = math.ceil(width / chunk)
    missing = count * chunk - width
    q = F.pad(q_BhRWd, (0, 0, 0, missing))
    q = q.reshape(*q.shape[:3], count, chunk, q.shape[4])
    k, v = (
        F.pad(x, (0, 0, radius, radius + missing)).unfold(3, chunk + 2 * radius, chunk)
        for x in (k_BhRWd, v_BhRWe)
    )
    offset = torch.arange(chunk + 2 * radius, device=q.device) - torch.arange(chunk, device=q.device)[:, None]
    inside = (offset >= 0) & (offset <= 2 * radius)
    near: Tensor = (q @ k).masked_fill(~inside, 0) @ v.transpose(-2, -1)
    return near.flatten(3, 4)[..., :width, :]


class RowBlindMixing:
    """Row-blind linear attention, in training and at inference.

    Args:
        grid: (R, W) of the tokens.
        radius: Columns to either side that a query cannot read; None is the whole row.

    Raises:
        ConfigError: The grid has one row, and its middle token would have nothing left to read.
    """

    drops = False

    def __init__(self, grid: tuple[int, int], *, radius: int | None) -> None:
        if grid[0] < 2 and (radius is None or radius >= grid[1] // 2):
            raise ConfigError(
                f"row_radius: a {grid[0]} x {grid[1]} grid leaves nothing to read; use a smaller one"
            )
        self.grid, self.radius = grid, radius

    def expected_drop_rate(self, step: int) -> float:
        """Return 0: nothing is drawn."""
        del step
        return 0.0

    def __call__(self, q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor, *, noise: Noise | None) -> Mixed:
        del noise
        check_tokens(q_BhNd.shape[2], grid=self.grid, what="row-blind attention")
        value_BhNd = row_blind_attention(q_BhNd, k_BhNd, v_BhNd, grid=self.grid, radius=self.radius)
        return Mixed(value_BhNd, v_BhNd.new_zeros(()))


class RowDropoutMixing:
    """Segment dropout on the values of some heads, and with ``keys`` on phi(k) of the same tokens too.

    With ``keys`` a dropped token leaves numerator and denominator alike; without, the others' values shrink
    by its share. Training only; ``row_p`` rises linearly over ``warmup`` steps (spec/variants.md, Row dropout
    in the decoder).

    Args:
        segments: Draws the tokens.
        heads: Number of heads, the first ones, that drop.
        keys: Whether keys drop too.
        warmup: Optimizer steps.
        place: Names the block, so that each draws for itself.
    """

    drops = True

    def __init__(self, segments: SegmentDropout, *, heads: int, keys: bool, warmup: int, place: str) -> None:
        self.segments, self.heads, self.keys = segments, heads, keys
        self.warmup, self.place = warmup, place

    def strength(self, step: int) -> float:
        """Return the share of ``row_p`` in force at an optimizer step."""
        return min(step / self.warmup, 1.0) if self.warmup > 0 else 1.0

    def expected_drop_rate(self, step: int) -> float:
        """Return the share of values dropped on average in the heads that drop."""
        return self.segments.expected_drop_rate * self.strength(step)

    def __call__(self, q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor, *, noise: Noise | None) -> Mixed:
        check_tokens(q_BhNd.shape[2], grid=self.segments.grid, what="decoder row dropout")
        accumulate = torch.promote_types(q_BhNd.dtype, torch.float32)
        q, k = positive_feature(q_BhNd.to(accumulate)), positive_feature(k_BhNd.to(accumulate))
        v, rate = v_BhNd.to(accumulate), v_BhNd.new_zeros(())
        if noise is not None:
            dropped_Bhw = self.segments.draw(
                len(v), generator=noise.generator(self.place), strength=self.strength(noise.step)
            )
            dropped_BhN1 = dropped_Bhw.flatten(1)[:, None, :, None] & self._dropping(v)
            v, rate = v.masked_fill(dropped_BhN1, 0), dropped_Bhw.float().mean()
            k = k.masked_fill(dropped_BhN1, 0) if self.keys else k
        return Mixed(attend_features(q, k, v).value_BhNd.to(v_BhNd.dtype), rate)

    def _dropping(self, v_BhNd: Tensor) -> Tensor:
        heads = torch.arange(v_BhNd.shape[1], device=v_BhNd.device)
        return (heads < self.heads)[None, :, None, None]
