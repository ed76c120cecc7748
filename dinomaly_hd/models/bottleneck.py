"""The noisy bottleneck: an MLP with dropout, alone or behind directional noise on the token grid."""

# B batch, h w token grid, N = h * w tokens (plus prefix tokens where kept), D width

from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn

from dinomaly_hd.errors import ConfigError
from dinomaly_hd.models.noise import Noise
from dinomaly_hd.models.products import Linear
from dinomaly_hd.models.recompute import Kept, linear_of_gelu, masked


class Noised(NamedTuple):
    """Tokens (B, N, D) and the measured share of them that directional noise dropped (scalar)."""

    tokens_BND: Tensor
    drop_rate: Tensor


def draw_kept(like: Tensor, *, p: float, generator: Generator | None) -> Kept | None:
    """Return what dropout with probability ``p`` keeps of a tensor; None, all, without a generator."""
    if generator is None or p == 0:
        return None
    # Uniform numbers and a comparison: less than half the time of bernoulli_ on the CPU.
    mask = torch.rand(like.shape, generator=generator, device=like.device) >= p
    return Kept(mask, 1.0 if p == 1 else 1 / (1 - p))


def dropout(x: Tensor, *, p: float, generator: Generator | None) -> Tensor:
    """Zero elements with probability ``p`` and scale the rest by 1/(1-p); identity without a generator."""
    kept = draw_kept(x, p=p, generator=generator)
    return x if kept is None else masked(x, kept)


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
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    @property
    def expected_drop_rate(self) -> float:
        """Return 0: no whole tokens are dropped."""
        return 0.0

    def forward(self, x_BND: Tensor, *, noise: Noise | None) -> Noised:
        """Apply the MLP; ``noise=None`` means inference (no dropout)."""
        generator = None if noise is None else noise.generator("dropout")
        hidden = self.fc1(dropout(x_BND, p=self.p, generator=generator))
        kept = draw_kept(hidden, p=self.p, generator=generator)
        out = linear_of_gelu(hidden, layer=self.fc2, kept=kept)
        return Noised(dropout(out, p=self.p, generator=generator), x_BND.new_zeros(()))


class GridNoise(Protocol):
    """Directional noise on a token grid, with the share of tokens it drops on average."""

    @property
    def expected_drop_rate(self) -> float: ...

    def __call__(self, x_BND: Tensor, *, noise: Noise | None) -> Noised: ...


def check_tokens(tokens: int, *, grid: tuple[int, int], what: str) -> None:
    """Refuse tokens that do not fill the grid, e.g. because class tokens are still among them.

    Raises:
        ValueError: Names both counts.
    """
    height, width = grid
    if tokens != height * width:
        raise ValueError(f"{what} got {tokens} tokens for a {height} x {width} grid of {height * width}")


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

    def draw(self, batch: int, *, generator: Generator, strength: float = 1.0) -> Tensor:
        """Return a boolean mask (B, h, w), true where a token is dropped; ``strength`` scales ``row_p``."""
        height, width = self.grid
        device = generator.device
        picked_Bh1 = torch.rand(batch, height, 1, generator=generator, device=device) < self.row_p * strength
        starts = width - self.seg_len + 1
        start_Bh1 = torch.randint(starts, (batch, height, 1), generator=generator, device=device)
        offset_Bhw = torch.arange(width, device=device) - start_Bh1
        inside_Bhw = (offset_Bhw >= 0) & (offset_Bhw < self.seg_len)
        hit_Bhw = torch.rand(batch, height, width, generator=generator, device=device) < self.seg_drop_p
        return picked_Bh1 & inside_Bhw & hit_Bhw

    def forward(self, x_BND: Tensor, *, noise: Noise | None) -> Noised:
        """Drop segments; ``noise=None`` means inference (identity)."""
        batch, tokens, _ = x_BND.shape
        check_tokens(tokens, grid=self.grid, what="segment dropout")
        if noise is None:
            return Noised(x_BND, x_BND.new_zeros(()))
        dropped_Bhw = self.draw(batch, generator=noise.generator("segments"))
        dropped_BN1 = dropped_Bhw.reshape(batch, tokens, 1)
        return Noised(x_BND.masked_fill(dropped_BN1, 0), dropped_BN1.float().mean())


class RowMasking(nn.Module):
    """Put a learned token, zero at the start, in place of whole rows, each picked with ``row_p``.

    Args:
        grid: (h, w) of the tokens.
        width: D.
        row_p: 0 .. 1.
    """

    def __init__(self, grid: tuple[int, int], *, width: int, row_p: float) -> None:
        super().__init__()
        self.grid, self.row_p = grid, row_p
        self.mask_token = nn.Parameter(torch.zeros(width))

    @property
    def expected_drop_rate(self) -> float:
        """Share of tokens replaced on average."""
        return self.row_p

    def forward(self, x_BND: Tensor, *, noise: Noise | None) -> Noised:
        """Mask rows; ``noise=None`` means inference (identity)."""
        batch, tokens, _ = x_BND.shape
        check_tokens(tokens, grid=self.grid, what="row masking")
        if noise is None:
            return Noised(x_BND, x_BND.new_zeros(()))
        generator = noise.generator("rows")
        height, width = self.grid
        picked_Bh = torch.rand(batch, height, generator=generator, device=generator.device) < self.row_p
        picked_BN1 = picked_Bh.repeat_interleave(width, dim=1).unsqueeze(2)
        out_BND = torch.where(picked_BN1, self.mask_token.to(x_BND.dtype), x_BND)
        return Noised(out_BND, picked_BN1.float().mean())


class NoisyMLP(nn.Module):
    """Directional noise in front of the bottleneck MLP, whose element dropout acts at its three places."""

    def __init__(self, grid_noise: GridNoise, mlp: BottleneckMLP) -> None:
        super().__init__()
        self.grid_noise, self.mlp = grid_noise, mlp

    @property
    def expected_drop_rate(self) -> float:
        """Return the share of tokens dropped on average."""
        return self.grid_noise.expected_drop_rate

    def forward(self, x_BND: Tensor, *, noise: Noise | None) -> Noised:
        noised = self.grid_noise(x_BND, noise=noise)
        return Noised(self.mlp(noised.tokens_BND, noise=noise).tokens_BND, noised.drop_rate)
