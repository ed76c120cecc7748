"""Linear attention of the decoder: over all tokens, blind to a query's row, or with pieces dropped."""

# B batch, h heads, N = R * W tokens in R rows of W columns, d width of a head, D width = h * d,
# C columns of a chunk

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinomaly_hd.config.base import FULL_ROW
from dinomaly_hd.config.dinomaly import RowBlindAttention, RowDropoutAttention
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.models.detector import Noise
from dinomaly_hd.models.dinomaly.bottleneck import Noised, SegmentDropout, check_tokens
from dinomaly_hd.models.fast import Linear, divided, positive_feature

DENOMINATOR_EPSILON = 1e-6
SMALLEST_CHUNK = 8


class LinearAttended(NamedTuple):
    """Attended values (B, h, N, d) and the summed outer products k v^T (B, h, d, d)."""

    value_BhNd: Tensor
    state_Bhdd: Tensor


def attend(q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor) -> LinearAttended:
    """Return q (sum k v^T) / (q . sum k) of features q, k: linear attention, without softmax and scaling.

    Source: Dinomaly's LinearAttention2 (spec/dinomaly.md, Decoder).
    """
    state_Bhdd = k_BhNd.transpose(-2, -1) @ v_BhNd
    denominator_BhN1 = q_BhNd @ k_BhNd.sum(dim=-2).unsqueeze(-1)
    # The original returns NaN where all features underflow; 1e-6 in the denominator does not.
    return LinearAttended(divided(q_BhNd @ state_Bhdd, denominator_BhN1 + DENOMINATOR_EPSILON), state_Bhdd)


def attend_beyond_row(
    q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor, *, grid: tuple[int, int], radius: int | None
) -> Tensor:
    """Attend linearly to all tokens but those of the query's row within ``radius`` columns (None: all of it).

    A radius of 0 hides the token itself only. Exact, and linear in the number of tokens (spec/variants.md,
    Row-blind attention).
    """
    # What a query may not read is subtracted from the global sums of k v^T and k.
    q_BhRWd, k_BhRWd, v_BhRWd = (x.reshape(*x.shape[:2], *grid, x.shape[3]) for x in (q_BhNd, k_BhNd, v_BhNd))
    # One more value of 1 turns the denominator into a column of the numerator.
    v_BhRWe = F.pad(v_BhRWd, (0, 1), value=1.0)
    state_BhRde = k_BhRWd.transpose(-2, -1) @ v_BhRWe
    total_Bh1de = state_BhRde.sum(dim=2, keepdim=True)
    if radius is None or radius >= grid[1] - 1:
        attended_BhRWe = q_BhRWd @ (total_Bh1de - state_BhRde)
    else:
        attended_BhRWe = q_BhRWd @ total_Bh1de - _windowed(q_BhRWd, k_BhRWd, v_BhRWe, radius=radius)
    value_BhRWd = attended_BhRWe[..., :-1] / (attended_BhRWe[..., -1:] + DENOMINATOR_EPSILON)
    return value_BhRWd.flatten(2, 3)


def _windowed(q_BhRWd: Tensor, k_BhRWd: Tensor, v_BhRWe: Tensor, *, radius: int) -> Tensor:
    """Return sum_j q_i.k_j v_j over |i - j| <= radius within each row, chunk by chunk of a row."""
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


class Mixed(NamedTuple):
    """Attended values (B, h, N, d) and the measured share of values dropped in the heads that drop."""

    value_BhNd: Tensor
    drop_rate: Tensor


class PlainMixing:
    """How queries, keys and values (B, h, N, d) of one block meet: over all tokens, as in the original.

    Mixings of the variants derive from it; ``noise=None`` means inference.
    """

    drops = False  # whether values are ever dropped

    def expected_drop_rate(self, step: int) -> float:
        """Return the share of values dropped on average at an optimizer step, in the heads that drop."""
        del step
        return 0.0

    def __call__(self, q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor, *, noise: Noise | None) -> Mixed:
        # Features, sums and division in float32 at least.
        accumulate = torch.promote_types(q_BhNd.dtype, torch.float32)
        q, k = positive_feature(q_BhNd.to(accumulate)), positive_feature(k_BhNd.to(accumulate))
        mixed = self.mix(q, k, v_BhNd.to(accumulate), noise=noise)
        return mixed._replace(value_BhNd=mixed.value_BhNd.to(v_BhNd.dtype))

    def mix(self, q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor, *, noise: Noise | None) -> Mixed:
        """Return the values that features of queries and keys give."""
        del noise
        return Mixed(attend(q_BhNd, k_BhNd, v_BhNd).value_BhNd, v_BhNd.new_zeros(()))


class RowBlindMixing(PlainMixing):
    """Row-blind linear attention, in training and at inference."""

    def __init__(self, config: RowBlindAttention, grid: tuple[int, int]) -> None:
        self.grid = grid
        self.radius = None if config.row_radius == FULL_ROW else int(config.row_radius)
        # Of a single row, the middle token would have nothing left to read.
        if grid[0] < 2 and (self.radius is None or self.radius >= grid[1] // 2):
            raise ConfigError(
                f"row_radius: a {grid[0]} x {grid[1]} grid leaves nothing to read; use a smaller one"
            )

    def mix(self, q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor, *, noise: Noise | None) -> Mixed:
        del noise
        check_tokens(q_BhNd.shape[2], grid=self.grid, what="row-blind attention")
        value_BhNd = attend_beyond_row(q_BhNd, k_BhNd, v_BhNd, grid=self.grid, radius=self.radius)
        return Mixed(value_BhNd, v_BhNd.new_zeros(()))


class RowDropoutMixing(PlainMixing):
    """Segment dropout on the values of a block's first heads, in training (spec/variants.md, Row dropout).

    ``heads`` is the number of all heads; ``row_p`` rises linearly over ``decoder_warmup`` steps.
    """

    drops = True

    def __init__(self, config: RowDropoutAttention, grid: tuple[int, int], heads: int, block: int) -> None:
        self.config, self.segments = config, SegmentDropout(grid, config)
        self.heads = round(config.decoder_heads * heads)
        self.place = f"decoder block {block}"  # each draws for itself

    def strength(self, step: int) -> float:
        """Return the share of ``row_p`` in force at an optimizer step."""
        warmup = self.config.decoder_warmup
        return min(step / warmup, 1.0) if warmup > 0 else 1.0

    def expected_drop_rate(self, step: int) -> float:
        return self.segments.expected_drop_rate * self.strength(step)

    def mix(self, q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor, *, noise: Noise | None) -> Mixed:
        check_tokens(q_BhNd.shape[2], grid=self.segments.grid, what="decoder row dropout")
        rate = v_BhNd.new_zeros(())
        if noise is not None:
            dropped_Bhw = self.segments.draw(
                len(v_BhNd), generator=noise.generator(self.place), strength=self.strength(noise.step)
            )
            dropping_h11 = (torch.arange(v_BhNd.shape[1], device=v_BhNd.device) < self.heads)[:, None, None]
            dropped_BhN1 = dropped_Bhw.flatten(1)[:, None, :, None] & dropping_h11
            v_BhNd, rate = v_BhNd.masked_fill(dropped_BhN1, 0), dropped_Bhw.float().mean()
            # With keys a dropped token leaves numerator and denominator alike; without, the others' values
            # shrink by its share.
            k_BhNd = k_BhNd.masked_fill(dropped_BhN1, 0) if self.config.keys else k_BhNd
        return Mixed(attend(q_BhNd, k_BhNd, v_BhNd).value_BhNd, rate)


class LinearAttention(nn.Module):
    """Multi-head linear attention with a fused qkv projection, rows [q; k; v], of width D = heads * d.

    ``mixing`` is how queries, keys and values meet; the decoder's projection has a bias.
    """

    def __init__(
        self, width: int, *, heads: int, qkv_bias: bool = True, mixing: PlainMixing | None = None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.mixing = mixing or PlainMixing()
        self.qkv = Linear(width, 3 * width, bias=qkv_bias)
        self.proj = Linear(width, width)

    def forward(self, qkv_BNE: Tensor, *, noise: Noise | None) -> Noised:
        """Attend, from what ``qkv`` made of the tokens (E = 3 D); the drop rate is that of ``mixing``.

        The projection stands outside, so that a block can join it with its norm.
        """
        batch, tokens, width = *qkv_BNE.shape[:2], qkv_BNE.shape[2] // 3
        qkv = qkv_BNE.reshape(batch, tokens, 3, self.heads, width // self.heads)
        q_BhNd, k_BhNd, v_BhNd = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        with torch.autocast(device_type=qkv_BNE.device.type, enabled=False):
            mixed = self.mixing(q_BhNd, k_BhNd, v_BhNd, noise=noise)
        out_BND: Tensor = self.proj(mixed.value_BhNd.transpose(1, 2).reshape(batch, tokens, width))
        return Noised(out_BND, mixed.drop_rate)
