"""DRAEM's networks: one rebuilds the image without its faults, one tells where, a head how severe."""

# B batch, C channels, F features, H W pixels

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinomaly_hd.config.families import PooledHead, SevNetConfig, SpatialHead
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.models.detector import Noise, dropout
from dinomaly_hd.randomness import derive

RECONSTRUCTIVE_WIDTH, DISCRIMINATIVE_WIDTH = 128, 64
RECONSTRUCTIVE_STAGES = (1, 2, 4, 8, 8)
DISCRIMINATIVE_STAGES = (1, 2, 4, 8, 8, 8)
CHANNEL_MULTIPLE = 4
LARGEST_STRIDE = 2 ** (len(DISCRIMINATIVE_STAGES) - 1)
INITIAL_SIGMA = 0.02
SSIM_WINDOW = 11
# Index of the first of the six activations that a severity head reads: act6 alone, or act2 .. act6.
FIRST_SCALE = {"single_scale": 5, "multi_scale": 1}
# For every activation: convolutions that kept the activation's own would make the multi-scale head more than
# ten times larger, half as large as the discriminator.
SPATIAL_CHANNELS = 32
HEAD_DROPOUT = 0.1


def channels_of(stages: Sequence[int], *, base: int, width: float) -> tuple[int, ...]:
    """Return each stage's channels: a multiple of the base, itself scaled to a multiple of 4 (at least 4)."""
    scaled = max(1, round(width * base / CHANNEL_MULTIPLE)) * CHANNEL_MULTIPLE
    return tuple(stage * scaled for stage in stages)


def activation_channels(width: float) -> tuple[int, ...]:
    """Return the channels of the discriminative encoder's six activations, act1 .. act6."""
    return channels_of(DISCRIMINATIVE_STAGES, base=DISCRIMINATIVE_WIDTH, width=width)


def check_input(size: tuple[int, int], *, batch_size: int) -> None:
    """Refuse images smaller than the SSIM's window, and a batch whose deepest activation has no variance."""
    if min(size) < SSIM_WINDOW:
        raise ConfigError(
            f"image_size={size[0]}x{size[1]}: the SSIM's window is {SSIM_WINDOW} x {SSIM_WINDOW} pixels; "
            f"image_size and crop must be {SSIM_WINDOW} or more in both directions"
        )
    if batch_size == 1 and max(size) <= LARGEST_STRIDE:
        raise ConfigError(
            f"batch_size=1: batch norm needs more than one value, and an image of {size[0]}x{size[1]} pixels "
            f"ends in one; use batch_size=2 or a larger image_size"
        )


def unit(inputs: int, outputs: int) -> nn.Sequential:
    """Return 3 x 3 convolution, batch norm, ReLU."""
    # The bias, which batch norm cancels in training, stays: the published parameter counts contain it.
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def units(*channels: int) -> nn.Sequential:
    """Return a chain of units that leads through the given channels."""
    return nn.Sequential(*(unit(*pair) for pair in pairwise(channels)))


def enlarge(x_BCHW: Tensor, *, like: Tensor) -> Tensor:
    """Resize to the height and width of ``like``, bilinear, corners aligned: twice the size, or one less."""
    return F.interpolate(x_BCHW, size=like.shape[-2:], mode="bilinear", align_corners=True)


class Encoder(nn.Module):
    """Stages of two units, with 2 x 2 max pooling between; returns the output of each stage."""

    def __init__(self, inputs: int, channels: Sequence[int]) -> None:
        super().__init__()
        befores = (inputs, *channels[:-1])
        self.stages = nn.ModuleList(units(i, o, o) for i, o in zip(befores, channels, strict=True))

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        activations: list[Tensor] = []
        for stage in self.stages:
            if activations:
                # A last odd row or column is pooled alone, and the decoders enlarge to the size of the stage
                # they go back to, not by two: so every size is allowed, a health map's own 31 x 95 among
                # them, and for multiples of 32 the shapes are the published ones.
                x_BCHW = F.max_pool2d(x_BCHW, 2, ceil_mode=True)
            x_BCHW = stage(x_BCHW)
            activations.append(x_BCHW)
        return tuple(activations)


def way_back(channels: Sequence[int]) -> list[tuple[int, int]]:
    """Return (inputs, outputs) of each decoder stage: the encoder's channels backwards, the first twice.

    >>> way_back([1, 2, 4, 8, 8])
    [(8, 4), (4, 2), (2, 1), (1, 1)]
    """
    outputs = [*channels[-3::-1], channels[0]]
    return list(zip([channels[-1], *outputs], outputs, strict=False))


class ReconstructiveNetwork(nn.Module):
    """Auto-encoder without skip connections, (B, 3, H, W) in and out, no bound on its output (DRAEM, 3.1).

    ``width`` is a factor on the base width 128; at 1 it has 69.0 M parameters.
    """

    def __init__(self, width: float) -> None:
        super().__init__()
        channels = channels_of(RECONSTRUCTIVE_STAGES, base=RECONSTRUCTIVE_WIDTH, width=width)
        self.encoder = Encoder(3, channels)
        self.stages = nn.ModuleList(units(i, i, i, o) for i, o in way_back(channels))
        self.head = nn.Conv2d(channels[0], 3, 3, padding=1)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        *skipped, x_BCHW = self.encoder(x_B3HW)
        for stage, passed in zip(self.stages, reversed(skipped), strict=True):
            x_BCHW = stage(enlarge(x_BCHW, like=passed))
        rebuilt_B3HW: Tensor = self.head(x_BCHW)
        return rebuilt_B3HW


class DiscriminativeNetwork(nn.Module):
    """U-Net on an image and its reconstruction side by side, (B, 6, H, W) (DRAEM, 3.2).

    Returns logits (B, 2, H, W) of normal and anomalous pixels, and the encoder's act1 .. act6. ``width`` is a
    factor on the base width 64; at 1 it has 28.4 M parameters.
    """

    def __init__(self, width: float) -> None:
        super().__init__()
        channels = activation_channels(width)
        self.encoder = Encoder(6, channels)
        back, skips = way_back(channels), channels[-2::-1]
        self.enlarged = nn.ModuleList(unit(i, o) for i, o in back)
        self.joined = nn.ModuleList(units(o + s, o, o) for (_, o), s in zip(back, skips, strict=True))
        self.head = nn.Conv2d(channels[0], 2, 3, padding=1)

    def forward(self, x_B6HW: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        activations = self.encoder(x_B6HW)
        x_BCHW, skips = activations[-1], activations[-2::-1]
        for enlarged, joined, skip in zip(self.enlarged, self.joined, skips, strict=True):
            x_BCHW = joined(torch.cat([enlarged(enlarge(x_BCHW, like=skip)), skip], dim=1))
        return self.head(x_BCHW), activations


class GlobalPooling(nn.Module):
    """The mean of each channel of activations (B, C, H, W), side by side (B, F) (gap)."""

    def __init__(self, config: PooledHead, channels: Sequence[int]) -> None:
        super().__init__()
        del config
        self.features = sum(channels)

    def forward(self, activations: Sequence[Tensor]) -> Tensor:
        return torch.cat([x_BCHW.mean(dim=(2, 3)) for x_BCHW in activations], dim=1)


class SpatialPooling(nn.Module):
    """A 3 x 3 convolution to 32 channels and its means on a small square grid (spatial_aware).

    With attention each cell is weighted by a sigmoid of its channels.
    """

    def __init__(self, config: SpatialHead, channels: Sequence[int]) -> None:
        super().__init__()
        self.size = config.severity_head_spatial_size
        self.features = len(channels) * SPATIAL_CHANNELS * self.size**2
        attended = channels if config.severity_head_use_spatial_attention else ()
        self.units = nn.ModuleList(unit(count, SPATIAL_CHANNELS) for count in channels)
        self.attention = nn.ModuleList(nn.Conv2d(SPATIAL_CHANNELS, 1, 1) for _ in attended)

    def forward(self, activations: Sequence[Tensor]) -> Tensor:
        cells = [
            F.adaptive_avg_pool2d(layer(x_BCHW), self.size)
            for layer, x_BCHW in zip(self.units, activations, strict=True)
        ]
        if self.attention:
            cells = [x * gate(x).sigmoid() for gate, x in zip(self.attention, cells, strict=True)]
        return torch.cat([x_BCHW.flatten(1) for x_BCHW in cells], dim=1)


POOLINGS: dict[str, Callable[[Any, Sequence[int]], GlobalPooling | SpatialPooling]] = {
    "gap": GlobalPooling,
    "spatial_aware": SpatialPooling,
}


class SeverityHead(nn.Module):
    """Pooled activations, a hidden layer with ReLU and dropout, one sigmoid: severity (B,), 0..1.

    ``channels`` are those of the six activations (``activation_channels``).
    """

    def __init__(self, config: SevNetConfig, channels: Sequence[int]) -> None:
        super().__init__()
        head, self.p = config.head, HEAD_DROPOUT
        self.first = FIRST_SCALE[config.severity_head_mode]
        self.pooling = POOLINGS[head.severity_head_pooling_type](head, channels[self.first :])
        self.fc1 = nn.Linear(self.pooling.features, head.severity_head_hidden_dim)
        self.fc2 = nn.Linear(head.severity_head_hidden_dim, 1)

    def forward(self, activations: Sequence[Tensor], *, noise: Noise | None) -> Tensor:
        """Return the severity as a share of the largest; ``noise=None`` means inference (no dropout)."""
        generator = None if noise is None else noise.generator("severity dropout")
        hidden = F.relu(self.fc1(self.pooling([x.float() for x in activations[self.first :]])))
        logit_B1: Tensor = self.fc2(dropout(hidden, p=self.p, generator=generator))
        return logit_B1.squeeze(1).sigmoid()


def initialise(module: nn.Module, *, seed: int) -> None:
    """Give every layer its start, a function of (seed, name), so that an added part moves no other's.

    Convolutions N(0, 0.02), batch norm's weights N(1, 0.02), linear layers N(0, 1 / sqrt(inputs)), biases 0.
    """
    for name, layer in module.named_modules():
        generator = torch.Generator().manual_seed(derive(seed, "initialise", name))
        match layer:
            case nn.Conv2d():
                nn.init.normal_(layer.weight, 0, INITIAL_SIGMA, generator=generator)
            case nn.BatchNorm2d():
                nn.init.normal_(layer.weight, 1, INITIAL_SIGMA, generator=generator)
            case nn.Linear():
                nn.init.normal_(layer.weight, 0, 1 / math.sqrt(layer.in_features), generator=generator)
            case _:
                continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
