"""Frozen encoders: any timm ViT (DINOv2 first of all) and any timm CNN behind an adapter."""

# B batch, H W pixels, h w token grid, P prefix tokens, N = h * w, T = P + N, D width, S groups (2)

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinomaly_hd.errors import ConfigError
from dinomaly_hd.models.pieces import MLP_RATIO, pieces
from dinomaly_hd.models.preprocessing import Preprocessing
from dinomaly_hd.models.products import with_fast_products
from dinomaly_hd.randomness import derive

DINOV2_INTERPOLATION_OFFSET = 0.1


def interpolate_positions(table_1ND: Tensor, *, grid: tuple[int, int]) -> Tensor:
    """Resample a square position table (1, g*g, D) to (1, h*w, D) as DINOv2 does.

    Bicubic without antialias, by the scale factor (side + 0.1) / g and not by the size, which moves the
    sampling points a little (golden g6c).
    """
    side = round(table_1ND.shape[1] ** 0.5)
    if grid == (side, side):
        return table_1ND
    picture = table_1ND.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = [(length + DINOV2_INTERPOLATION_OFFSET) / side for length in grid]
    resized = F.interpolate(picture, scale_factor=scale, mode="bicubic", antialias=False)
    return resized.permute(0, 2, 3, 1).flatten(1, 2)


def target_blocks(depth: int) -> list[int]:
    """Return the eight blocks whose outputs are taken: 2..9 of 12, 4,6..18 of 24, else the middle, evenly.

    >>> target_blocks(12), target_blocks(24)
    ([2, 3, 4, 5, 6, 7, 8, 9], [4, 6, 8, 10, 12, 14, 16, 18])
    """
    known = {12: list(range(2, 10)), 24: list(range(4, 20, 2))}
    if depth in known:
        return known[depth]
    if depth < 8:
        raise ConfigError(f"the encoder has {depth} blocks; Dinomaly takes the outputs of eight")
    if depth < 12:
        return list(range((depth - 8) // 2, (depth - 8) // 2 + 8))
    first, last = depth / 6, depth * 5 / 6 - 1
    return sorted({round(first + (last - first) * i / 7) for i in range(8)})


def mean_of(layers: Sequence[Tensor]) -> Tensor:
    """Return the mean of tensors of one shape; stacking them would be a copy, and another one backwards."""
    return sum(layers[1:], start=layers[0]) / len(layers)


class Encoder(nn.Module, ABC):
    """A frozen network that turns an image into two groups of token maps on a known grid.

    Attributes:
        grid: (h, w) of the patch tokens.
        prefix_tokens: Class and register tokens in front of the patch tokens.
        width: D.
        heads: Attention heads that a decoder of this width uses.
    """

    grid: tuple[int, int]
    prefix_tokens: int
    width: int
    heads: int

    @abstractmethod
    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return group means (B, S, T, D) of the target layers, without gradient."""

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Take statistics from pre-processed training images (B, 3, H, W)."""

    def train(self, mode: bool = True) -> "Encoder":
        """Stay in evaluation mode: the encoder is frozen."""
        del mode
        return super().train(False)


class _GeluInPlace(nn.Module):
    """GELU that writes over its input, which a frozen block's hidden layer can spare."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.aten.gelu_(x)
        return out


class ViTEncoder(Encoder):
    """A timm vision transformer; blocks after the last target are let go.

    Args:
        model: timm ViT made for the input size of ``preprocessing``.
        preprocessing: What the images went through; gives the grid.
        blocks: Those whose outputs are taken, ascending; the first half makes group 0.
        keep_prefix: Whether class and register tokens go on to the decoder.
    """

    def __init__(
        self, model: nn.Module, *, preprocessing: Preprocessing, blocks: list[int], keep_prefix: bool
    ) -> None:
        super().__init__()
        cast(Any, model).prune_intermediate_layers(blocks)
        self.model = with_fast_products(model.requires_grad_(False).eval())
        for block in cast(Any, model).blocks:
            if type(getattr(block.mlp, "act", None)) is nn.GELU and block.mlp.act.approximate == "none":
                block.mlp.act = _GeluInPlace()
        patch = cast(Any, model).patch_embed.patch_size
        height, width = preprocessing.input_size
        self.grid = (height // patch[0], width // patch[1])
        self.keep_prefix = keep_prefix
        self.prefix_tokens = int(cast(Any, model).num_prefix_tokens) if keep_prefix else 0
        self.width = int(cast(Any, model).embed_dim)
        self.heads = int(cast(Any, model).blocks[0].attn.num_heads)
        self.blocks = blocks

    @torch.no_grad()
    def forward(self, images_B3HW: Tensor) -> Tensor:
        tokens = self.grid[0] * self.grid[1]
        parts = pieces(images_B3HW, widest=tokens * MLP_RATIO * self.width)
        return torch.cat([self._groups(part_B3HW) for part_B3HW in parts])

    def _groups(self, images_B3HW: Tensor) -> Tensor:
        layers = cast(Any, self.model).forward_intermediates(
            images_B3HW,
            indices=self.blocks,
            stop_early=True,
            norm=False,
            output_fmt="NLC",
            return_prefix_tokens=self.keep_prefix,
            intermediates_only=True,
        )
        if self.keep_prefix:
            layers = [torch.cat([prefix, patches], dim=1) for patches, prefix in layers]
        half = len(layers) // 2
        return torch.stack([mean_of(layers[:half]), mean_of(layers[half:])], dim=1)


class ConvEncoder(Encoder):
    """A timm CNN: stage outputs resampled to one grid, standardised per channel, turned to width D.

    Each stage is averaged or interpolated to the grid, standardised with the training images' channel
    statistics, and multiplied by its rows of a fixed seeded orthogonal matrix, so that within a group the
    summed stages keep all their distances (where a group has no more than D channels). Buffers ``mean`` and
    ``std`` are filled by ``fit``.

    Args:
        model: timm model made with ``features_only=True`` that returns the stages used.
        preprocessing: What the images went through.
        groups: For each of the two groups the positions of its stages in the model's output.
        grid: (h, w) of the tokens.
        width: D.
        heads: Heads of the decoder.
    """

    PROJECTION_SEED: ClassVar[int] = 392
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        preprocessing: Preprocessing,
        groups: tuple[tuple[int, ...], tuple[int, ...]],
        grid: tuple[int, int],
        width: int,
        heads: int,
    ) -> None:
        super().__init__()
        # Channels last: convolutions on CPU and GPU run up to twice as fast (measured 47 -> 20 ms an image).
        self.model = model.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        self.preprocessing = preprocessing
        self.groups, self.grid, self.width, self.heads = groups, grid, width, heads
        self.prefix_tokens = 0
        self.channels: list[int] = cast(Any, model).feature_info.channels()
        total = sum(self.channels)
        self.register_buffer("mean", torch.zeros(total))
        self.register_buffer("std", torch.ones(total))
        for i, group in enumerate(groups):
            self.register_buffer(f"projection{i}", self._projection(group), persistent=False)

    def _projection(self, group: tuple[int, ...]) -> Tensor:
        """Return (channels, D): orthonormal for the group's stages, zero rows for the others.

        Up to D channels keep all distances (orthonormal rows); more are projected (orthonormal columns).
        """
        rows = [stage in group for stage, size in enumerate(self.channels) for _ in range(size)]
        used = torch.tensor(rows)
        count = int(used.sum())
        side = max(count, self.width)
        generator = torch.Generator().manual_seed(derive(self.PROJECTION_SEED, "projection", *group))
        square = torch.randn(side, side, generator=generator, dtype=torch.float64)
        matrix = torch.zeros(len(rows), self.width, dtype=torch.float64)
        matrix[used] = torch.linalg.qr(square).Q[:count, : self.width]
        return matrix.float()

    def _stages(self, images_B3HW: Tensor) -> list[Tensor]:
        stages: list[Tensor] = self.model(images_B3HW.contiguous(memory_format=torch.channels_last))
        return stages

    @torch.no_grad()
    def _raw(self, images_B3HW: Tensor) -> Tensor:
        """Return all stages on the grid, concatenated, (B, N, channels)."""
        resampled = [resample(stage_BChw, grid=self.grid) for stage_BChw in self._stages(images_B3HW)]
        return torch.cat(resampled, dim=1).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        count, total, squares = 0, torch.zeros_like(self.mean).double(), torch.zeros_like(self.mean).double()
        for images in batches:
            flat = self._raw(images).flatten(0, 1).double()
            count += flat.shape[0]
            total += flat.sum(0)
            squares += flat.square().sum(0)
        mean = total / count
        self.mean.copy_(mean)
        self.std.copy_((squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=1e-6))

    @torch.no_grad()
    def forward(self, images_B3HW: Tensor) -> Tensor:
        standard_BNC = (self._raw(images_B3HW) - self.mean) / self.std
        return torch.stack(
            [standard_BNC @ self.get_buffer(f"projection{i}") for i in range(len(self.groups))], dim=1
        )


def resample(maps_BChw: Tensor, *, grid: tuple[int, int]) -> Tensor:
    """Bring feature maps to the grid: average where they are finer, bilinear where they are coarser."""
    rows, columns = (min(have, want) for have, want in zip(maps_BChw.shape[-2:], grid, strict=True))
    pooled = F.adaptive_avg_pool2d(maps_BChw, (rows, columns))
    if (rows, columns) == grid:
        return pooled
    return F.interpolate(pooled, size=grid, mode="bilinear", align_corners=False)
