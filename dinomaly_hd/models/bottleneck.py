"""The noisy bottleneck: an MLP with dropout, alone or behind horizontal segment dropout."""

# B batch, h w token grid, N = h * w tokens (plus prefix tokens where kept), D width

from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from dinomaly_hd.errors import ConfigError


class Noised(NamedTuple):
    """Bottleneck output (B, N, D) and the measured share of tokens dropped by segments (scalar)."""

    tokens_BND: Tensor
    drop_rate: Tensor


def dropout(x: Tensor, *, p: float, generator: Generator | None) -> Tensor:
    """Zero elements with probability ``p`` and scale the rest by 1/(1-p); identity without a generator."""
    if generator is None or p == 0:
        return x
    keep = torch.empty_like(x).bernoulli_(1 - p, generator=generator)
    return x * keep.mul_(1 / (1 - p)) if p < 1 else x * 0


class BottleneckMLP(nn.Module):
    """y = Drop(W2 Drop(GELU(W1 Drop(x)))): dropout at three places, no residual, no norm.

    Args:
        width: D.
        hidden: Width of the hidden layer (4 D in Dinomaly).
        p: Dropout probability; a constant, it never ramps (spec/dinomaly.md, Bottleneck).
    """

    def __init__(self, width: int, *, hidden: int, p: float) -> None:
        super().__init__()
        self.p = p
        self.fc1 = nn.Linear(width, hidden)
        self.activation: nn.Module = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x_BND: Tensor, *, generator: Generator | None) -> Noised:
        """Apply the MLP; ``generator=None`` means inference (no dropout)."""
        hidden = self.activation(self.fc1(dropout(x_BND, p=self.p, generator=generator)))
        hidden = dropout(hidden, p=self.p, generator=generator)
        out = dropout(self.fc2(hidden), p=self.p, generator=generator)
        return Noised(out, x_BND.new_zeros(()))


class SegmentDropout(nn.Module):
    """Drop short horizontal runs of whole tokens, so that a row cannot be rebuilt from its neighbours.

    Each row of each sample is picked with probability ``row_p``; a start is drawn uniformly so that the
    segment fits; each of its ``seg_len`` tokens is zeroed with probability ``seg_drop_p``. Nothing is
    rescaled: the decoder's LayerNorm absorbs it (spec/variants.md, Segment dropout).

    Args:
        grid: (h, w) of the tokens.
        row_p: 0 .. 1.
        seg_len: 1 .. w.
        seg_drop_p: 0 .. 1.

    Raises:
        ConfigError: The segment is wider than the grid.
    """

    def __init__(self, grid: tuple[int, int], *, row_p: float, seg_len: int, seg_drop_p: float) -> None:
        super().__init__()
        if seg_len > grid[1]:
            raise ConfigError(f"seg_len={seg_len}: the token grid is only {grid[1]} wide; use 1..{grid[1]}")
        self.grid, self.row_p, self.seg_len, self.seg_drop_p = grid, row_p, seg_len, seg_drop_p

    @property
    def expected_drop_rate(self) -> float:
        """Share of tokens dropped on average."""
        return self.row_p * self.seg_len / self.grid[1] * self.seg_drop_p

    def draw(self, batch: int, *, generator: Generator) -> Tensor:
        """Return a boolean mask (B, h, w), true where a token is dropped."""
        height, width = self.grid
        device = generator.device
        picked_Bh1 = torch.rand(batch, height, 1, generator=generator, device=device) < self.row_p
        starts = width - self.seg_len + 1
        start_Bh1 = torch.randint(starts, (batch, height, 1), generator=generator, device=device)
        offset_Bhw = torch.arange(width, device=device) - start_Bh1
        inside_Bhw = (offset_Bhw >= 0) & (offset_Bhw < self.seg_len)
        hit_Bhw = torch.rand(batch, height, width, generator=generator, device=device) < self.seg_drop_p
        return picked_Bh1 & inside_Bhw & hit_Bhw

    def forward(self, x_BND: Tensor, *, generator: Generator | None) -> Noised:
        """Drop segments; ``generator=None`` means inference (identity)."""
        batch, tokens, _ = x_BND.shape
        height, width = self.grid
        if tokens != height * width:
            raise ValueError(
                f"segment dropout got {tokens} tokens for a {height} x {width} grid of {height * width}"
            )
        if generator is None:
            return Noised(x_BND, x_BND.new_zeros(()))
        dropped_BN1 = self.draw(batch, generator=generator).reshape(batch, tokens, 1).to(x_BND.device)
        return Noised(x_BND.masked_fill(dropped_BN1, 0), dropped_BN1.float().mean())


class SegmentMLP(nn.Module):
    """Segment dropout in front of the bottleneck MLP, whose element dropout acts at its three places."""

    def __init__(self, segment: SegmentDropout, mlp: BottleneckMLP) -> None:
        super().__init__()
        self.segment, self.mlp = segment, mlp

    def forward(self, x_BND: Tensor, *, generator: Generator | None) -> Noised:
        dropped = self.segment(x_BND, generator=generator)
        return Noised(self.mlp(dropped.tokens_BND, generator=generator).tokens_BND, dropped.drop_rate)
