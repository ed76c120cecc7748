"""Patch features: chosen layers of a frozen network, locally averaged, on one grid, side by side."""

# B batch, H W pixels, C channels of all layers, h w grid of the finest layer

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = (2, 3)
"""Stages of a CNN by default: strides 8 and 16, layer2 and layer3 of a ResNet."""


def default_blocks(depth: int) -> tuple[int, ...]:
    """Return a transformer's blocks by default: at two thirds of its depth, and the last.

    >>> default_blocks(12)
    (8, 11)
    """
    return 2 * depth // 3, depth - 1


def local_mean(maps_BChw: Tensor) -> Tensor:
    """Return the mean of each place's 3x3 neighbourhood, fewer places at the borders.

    Zeros beyond the border would count as neighbours, shorten border features by up to 5/9, and make of them
    a population of their own, which fills the coreset.
    """
    return F.avg_pool2d(maps_BChw, kernel_size=3, stride=1, padding=1, count_include_pad=False)


def side_by_side(layers_BChw: Sequence[Tensor]) -> Tensor:
    """Return the layers' channels on the largest grid (B, C, h, w), coarser layers bilinear."""
    grid = max(layer.shape[-2] for layer in layers_BChw), max(layer.shape[-1] for layer in layers_BChw)
    return torch.cat(
        [F.interpolate(layer, size=grid, mode="bilinear", align_corners=False) for layer in layers_BChw],
        dim=1,
    )


class PatchFeatures(nn.Module, ABC):
    """A frozen network whose chosen layers describe each place of an image (spec/models.md, PatchCore).

    Args:
        model: timm network.
        layers: Which of its layers are used.
    """

    def __init__(self, model: nn.Module, *, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.layers = layers

    @abstractmethod
    def outputs(self, images_B3HW: Tensor) -> list[Tensor]:
        """Return the layers' maps (B, C_layer, h_layer, w_layer)."""

    @torch.no_grad()
    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return patch features (B, C, h, w) of pre-processed images."""
        return side_by_side([local_mean(layer) for layer in self.outputs(images_B3HW)])

    def train(self, mode: bool = True) -> "PatchFeatures":
        """Stay in evaluation mode: the network is frozen."""
        del mode
        return super().train(False)


class ConvPatchFeatures(PatchFeatures):
    """Stages of a CNN; ``model`` is made with ``features_only=True`` and returns just these."""

    def __init__(self, model: nn.Module, *, layers: tuple[int, ...]) -> None:
        # Channels last: convolutions run up to twice as fast.
        super().__init__(cast(Any, model).to(memory_format=torch.channels_last), layers=layers)

    def outputs(self, images_B3HW: Tensor) -> list[Tensor]:
        stages: list[Tensor] = self.model(images_B3HW.contiguous(memory_format=torch.channels_last))
        return stages


class ViTPatchFeatures(PatchFeatures):
    """Patch tokens of a vision transformer's blocks; blocks after the last are let go."""

    def __init__(self, model: nn.Module, *, layers: tuple[int, ...]) -> None:
        cast(Any, model).prune_intermediate_layers(list(layers))
        super().__init__(model, layers=layers)

    def outputs(self, images_B3HW: Tensor) -> list[Tensor]:
        blocks: list[Tensor] = cast(Any, self.model).forward_intermediates(
            images_B3HW,
            indices=list(self.layers),
            stop_early=True,
            norm=False,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        return blocks
