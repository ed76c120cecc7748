"""The noisy bottleneck: an MLP with dropout, alone or behind directional noise on the token grid."""

# B batch, h w token grid, N = h * w tokens (plus prefix tokens where kept), D width

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dinomaly_hd.config.dinomaly import RowMaskingBottleneck, SegmentBottleneck, Segments
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.models.detector import Noise, draw_kept, dropout
from dinomaly_hd.models.fast import MLP_RATIO, Linear, linear_of


class Noised(NamedTuple):
    """Tokens (B, N, D) and the measured share of them that directional noise dropped (scalar)."""

    tokens_BND: Tensor
    drop_rate: Tensor


class Bottleneck(nn.Module):
    """Tokens (B, N, D) in and out, with noise in training; ``noise=None`` means inference."""

    expected_drop_rate = 0.0  # share of whole tokens that directional noise drops on average in training

    def forward(self, x_BND: Tensor, *, noise: Noise | None) -> Noised:
        raise NotImplementedError


def segment(config: SegmentBottleneck, width: int, grid: tuple[int, int]) -> Bottleneck:
    """Return segment dropout in front of the MLP, or the MLP alone."""
    mlp = BottleneckMLP(width, p=config.elem_p)
    return mlp if config.disable_segment else NoisyMLP(SegmentDropout(grid, config), mlp)


class BottleneckMLP(Bottleneck):
    """y = Drop(W2 Drop(GELU(W1 Drop(x)))): dropout at three places, hidden width 4 D, no residual, no norm.

    ``p``, the dropout probability, is a constant: it never ramps (spec/dinomaly.md, Bottleneck).
    """

    def __init__(self, width: int, *, p: float) -> None:
        super().__init__()
        self.p = p
        self.fc1 = Linear(width, MLP_RATIO * width)
        self.fc2 = Linear(MLP_RATIO * width, width)

    def forward(self, x_BND: Tensor, *, noise: Noise | None) -> Noised:
        generator = None if noise is None else noise.generator("dropout")
        hidden = self.fc1(dropout(x_BND, p=self.p, generator=generator))
        kept = draw_kept(hidden, p=self.p, generator=generator)

        def activated(hidden: Tensor) -> Tensor:
            return F.gelu(hidden) if kept is None else kept.of(F.gelu(hidden))

        out = linear_of(activated, hidden, layer=self.fc2)
        return Noised(dropout(out, p=self.p, generator=generator), x_BND.new_zeros(()))


class NoisyMLP(Bottleneck):
    """Directional noise in front of the bottleneck MLP, whose element dropout acts at its three places."""

    def __init__(self, grid_noise: Bottleneck, mlp: BottleneckMLP) -> None:
        super().__init__()
        self.grid_noise, self.mlp = grid_noise, mlp
        self.expected_drop_rate = grid_noise.expected_drop_rate

    def forward(self, x_BND: Tensor, *, noise: Noise | None) -> Noised:
        noised = self.grid_noise(x_BND, noise=noise)
        return Noised(self.mlp(noised.tokens_BND, noise=noise).tokens_BND, noised.drop_rate)


def check_tokens(tokens: int, *, grid: tuple[int, int], what: str) -> None:
    """Refuse tokens that do not fill the grid, e.g. because class tokens are still among them."""
    height, width = grid
    if tokens != height * width:
        raise ValueError(f"{what} got {tokens} tokens for a {height} x {width} grid of {height * width}")


class SegmentDropout(Bottleneck):
    """Drop short horizontal runs of whole tokens, so that a row cannot be rebuilt from its neighbours.

    Nothing is rescaled: the decoder's LayerNorm absorbs it (spec/variants.md, Segment dropout).
    """

    def __init__(self, grid: tuple[int, int], config: Segments) -> None:
        super().__init__()
        self.grid, self.config = grid, config
        if config.seg_len > grid[1]:
            raise ConfigError(
                f"seg_len={config.seg_len}: the token grid is only {grid[1]} wide; use 1..{grid[1]}"
            )
        self.expected_drop_rate = config.row_p * config.seg_len / grid[1] * config.seg_drop_p

    def draw(self, batch: int, *, generator: Generator, strength: float = 1.0) -> Tensor:
        """Return a boolean mask (B, h, w), true where a token is dropped; ``strength`` scales ``row_p``."""
        (height, width), config, device = self.grid, self.config, generator.device
        # Each row of each sample is picked with row_p, a start is drawn so that the segment fits, and each of
        # its tokens drops with seg_drop_p.
        row_p = config.row_p * strength
        picked_Bh1 = torch.rand(batch, height, 1, generator=generator, device=device) < row_p
        starts = width - config.seg_len + 1
        start_Bh1 = torch.randint(starts, (batch, height, 1), generator=generator, device=device)
        offset_Bhw = torch.arange(width, device=device) - start_Bh1
        inside_Bhw = (offset_Bhw >= 0) & (offset_Bhw < config.seg_len)
        hit_Bhw = torch.rand(batch, height, width, generator=generator, device=device) < config.seg_drop_p
        return picked_Bh1 & inside_Bhw & hit_Bhw

    def forward(self, x_BND: Tensor, *, noise: Noise | None) -> Noised:
        batch, tokens, _ = x_BND.shape
        check_tokens(tokens, grid=self.grid, what="segment dropout")
        if noise is None:
            return Noised(x_BND, x_BND.new_zeros(()))
        dropped_Bhw = self.draw(batch, generator=noise.generator("segments"))
        dropped_BN1 = dropped_Bhw.reshape(batch, tokens, 1)
        return Noised(x_BND.masked_fill(dropped_BN1, 0), dropped_BN1.float().mean())


class RowMasking(Bottleneck):
    """Put a learned token, zero at the start, in place of whole rows, each picked with ``row_p``."""

    def __init__(self, grid: tuple[int, int], width: int, config: RowMaskingBottleneck) -> None:
        super().__init__()
        self.grid, self.row_p = grid, config.row_p
        self.expected_drop_rate = config.row_p
        self.mask_token = nn.Parameter(torch.zeros(width))

    def forward(self, x_BND: Tensor, *, noise: Noise | None) -> Noised:
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
