"""Frozen encoders: any timm ViT (DINOv2 first of all) and any timm CNN behind an adapter."""

# B batch, H W pixels, h w token grid, P prefix tokens, N = h * w, T = P + N, D width, S groups (2)

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from itertools import product
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dinomaly_hd.config.base import AUTO_LAYERS, layers_of
from dinomaly_hd.config.run import EncoderConfig
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.models import fast
from dinomaly_hd.models.fast import CACHED_BYTES, MLP_RATIO, SMALLEST, linear, pieces
from dinomaly_hd.models.networks import CONV_STRIDES, FrozenNetwork, architecture, network, with_stages
from dinomaly_hd.models.weights import Weights
from dinomaly_hd.randomness import derive

CONV_GROUPS = ((0, 1), (1, 2))  # for each group of a CNN the places of its stages among CONV_STRIDES
CONV_WIDTHS, CONV_HEAD_WIDTH = (192, 768), 32
MOST_THREADS = 2  # with which attention head by head was measured; PyTorch's own gives heads to threads


class Encoder(FrozenNetwork, ABC):
    """Turns an image into two groups of token maps on a known grid."""

    grid: tuple[int, int]  # (h, w) of the patch tokens
    prefix_tokens: int  # class and register tokens in front of them
    width: int  # D
    heads: int  # attention heads that a decoder of this width uses

    @abstractmethod
    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return group means (B, S, T, D) of the target layers, without gradient."""

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Take statistics from pre-processed training images (B, 3, H, W)."""


def target_layers(config: EncoderConfig, layers: str) -> list[int]:
    """Return the transformer's blocks or the CNN's stages whose outputs are taken, from 0, ascending.

    Blocks are an even number, since two groups of them are rebuilt.
    """
    known = architecture(config)
    if not known.is_transformer:
        if layers != AUTO_LAYERS:
            raise ConfigError(f"target_layers={layers}: {config.encoder} is a CNN; leave target_layers out")
        return [known.strides.index(stride) for stride in CONV_STRIDES]
    if layers == AUTO_LAYERS:
        return target_blocks(known.depth)
    blocks = layers_of(layers)
    if blocks[-1] >= known.depth or len(blocks) % 2:
        raise ConfigError(
            f"target_layers={layers}: expected an even number of blocks, from 0..{known.depth - 1}"
        )
    return blocks


def target_blocks(depth: int) -> list[int]:
    """Return the eight blocks whose outputs are taken: 2..9 of 12, 4,6..18 of 24, else the middle, evenly.

    >>> target_blocks(12), target_blocks(24)
    ([2, 3, 4, 5, 6, 7, 8, 9], [4, 6, 8, 10, 12, 14, 16, 18])
    """
    if depth == 24:
        return list(range(4, 20, 2))
    if depth < 8:
        raise ConfigError(f"the encoder has {depth} blocks; Dinomaly takes the outputs of eight")
    if depth <= 12:
        return list(range((depth - 8) // 2, (depth - 8) // 2 + 8))
    first, last = depth / 6, depth * 5 / 6 - 1
    return sorted({round(first + (last - first) * i / 7) for i in range(8)})


def build_encoder(
    config: EncoderConfig, *, weights: Weights, keep_prefix: bool, layers: str = AUTO_LAYERS, seed: int
) -> Encoder:
    """Return the frozen encoder with its weights, which ``seed`` draws where random ones were asked for.

    ``keep_prefix``: whether class and register tokens go on to the decoder.
    """
    known, chosen = architecture(config), target_layers(config, layers)
    model = network(config, weights=weights, seed=seed)
    if known.is_transformer:
        return ViTEncoder(model, grid=known.grid, blocks=chosen, keep_prefix=keep_prefix)
    return ConvEncoder(with_stages(model, config, stages=chosen), grid=known.grid)


def mean_of(layers: Sequence[Tensor]) -> Tensor:
    """Return the mean of tensors of one shape; stacking them would be a copy, and another one backwards."""
    return sum(layers[1:], start=layers[0]) / len(layers)


def attention(q_BhNd: Tensor, k_BhNd: Tensor, v_BhNd: Tensor, *masks: Any, **more: Any) -> Tensor:
    """Return what ``F.scaled_dot_product_attention`` does; plain attention by products of ``linear``."""
    plain = not any(isinstance(one, Tensor) or one for one in (*masks, *more.values()))
    alike = q_BhNd.dim() == 4 and q_BhNd.shape == k_BhNd.shape == v_BhNd.shape
    single = q_BhNd.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    worth = math.prod(q_BhNd.shape[2:]) >= SMALLEST and torch.get_num_threads() <= MOST_THREADS
    if not (plain and alike and single and worth):
        return F.scaled_dot_product_attention(q_BhNd, k_BhNd, v_BhNd, *masks, **more)
    batch, heads, tokens, width = q_BhNd.shape
    out_BhNd = q_BhNd.new_empty(batch, tokens, heads, width).transpose(1, 2)  # as the projection reads it
    rows = max(1, CACHED_BYTES // (tokens * q_BhNd.itemsize))
    for head in product(range(batch), range(heads)):
        # oneDNN reads a second factor that lies among others' values thousands of times as slowly.
        k_Nd, v_dN = k_BhNd[head] * width**-0.5, v_BhNd[head].t().contiguous()
        chunks = torch.split(q_BhNd[head], rows), torch.split(out_BhNd[head], rows)
        for q_nd, out_nd in zip(*chunks, strict=True):
            logits_nN = linear(q_nd, k_Nd)
            out_nd.copy_(linear(torch.softmax(logits_nN, dim=-1, out=logits_nN), v_dN))
    return out_BhNd


class FastProducts(TorchFunctionMode):
    """Lets a network that runs inside multiply by ``linear``, also in its attention; without gradients."""

    OURS: ClassVar[dict[Any, Any]] = {F.linear: linear, F.scaled_dot_product_attention: attention}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return self.OURS.get(func, func)(*args, **(kwargs or {}))


class ViTEncoder(Encoder):
    """A timm vision transformer made for inputs of ``grid`` tokens; blocks after the last target are let go.

    The first half of ``blocks``, ascending, makes group 0.
    """

    def __init__(
        self, model: nn.Module, *, grid: tuple[int, int], blocks: list[int], keep_prefix: bool
    ) -> None:
        vit = cast(Any, model)
        vit.prune_intermediate_layers(blocks)
        super().__init__(model)
        for block in vit.blocks:
            act = getattr(block.mlp, "act", None)
            if fast.kernels() != "plain" and type(act) is nn.GELU and act.approximate == "none":
                block.mlp.act.forward = torch.ops.aten.gelu_  # over its input, which a frozen block can spare
        self.grid, self.blocks, self.keep_prefix = grid, blocks, keep_prefix
        self.prefix_tokens = int(vit.num_prefix_tokens) if keep_prefix else 0
        self.width, self.heads = int(vit.embed_dim), int(vit.blocks[0].attn.num_heads)

    @torch.no_grad()
    def forward(self, images_B3HW: Tensor) -> Tensor:
        tokens = self.grid[0] * self.grid[1]
        parts = pieces(images_B3HW, widest=tokens * MLP_RATIO * self.width)
        suits = fast.kernels(images_B3HW.device.type) == "onednn"
        with FastProducts() if suits else nullcontext():
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
    """A timm CNN of three stages: their outputs resampled to one grid, standardised per channel, of width D.

    Standardised with the training images' channel statistics, the buffers ``mean`` and ``std``. D holds a
    group's channels, from 192 up to 768.
    """

    PROJECTION_SEED: ClassVar[int] = 392
    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, *, grid: tuple[int, int]) -> None:
        super().__init__(model)
        self.grid, self.groups, self.prefix_tokens = grid, CONV_GROUPS, 0
        self.channels: list[int] = cast(Any, model).feature_info.channels()
        widest = max(sum(self.channels[stage] for stage in group) for group in self.groups)
        least, most = CONV_WIDTHS
        self.width = min(max(least, -(-widest // CONV_HEAD_WIDTH) * CONV_HEAD_WIDTH), most)
        self.heads = self.width // CONV_HEAD_WIDTH
        total = sum(self.channels)
        self.register_buffer("mean", torch.zeros(total))
        self.register_buffer("std", torch.ones(total))
        # Each stage is multiplied by its rows of a fixed seeded orthogonal matrix, so that within a group the
        # summed stages keep all their distances, where a group has no more than D channels.
        for i, group in enumerate(self.groups):
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

    @torch.no_grad()
    def _raw(self, images_B3HW: Tensor) -> Tensor:
        """Return all stages on the grid (average of finer, bilinear of coarser ones), (B, N, channels)."""
        stages: list[Tensor] = self.model(images_B3HW.contiguous(memory_format=torch.channels_last))
        resampled = []
        for stage_BChw in stages:
            height, width = stage_BChw.shape[-2:]
            pooled = F.adaptive_avg_pool2d(stage_BChw, (min(height, self.grid[0]), min(width, self.grid[1])))
            if pooled.shape[-2:] != self.grid:
                pooled = F.interpolate(pooled, size=self.grid, mode="bilinear", align_corners=False)
            resampled.append(pooled)
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
