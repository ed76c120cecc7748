"""Patch features: chosen layers of a frozen network, locally averaged, on one grid, side by side."""

# B batch, H W pixels, C channels of all layers, h w grid of the finest layer

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinomaly_hd.config.base import AUTO_LAYERS, layers_of
from dinomaly_hd.config.run import EncoderConfig
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.models.networks import FrozenNetwork, architecture, network, with_stages
from dinomaly_hd.models.weights import Weights

STAGES = (2, 3)  # stages of a CNN by default: strides 8 and 16, layer2 and layer3 of a ResNet


def check_layers(config: EncoderConfig, layers: str) -> tuple[int, ...]:
    """Return the layers, counted from 0, that patch features are made of, such as those of "8,11" or "auto".

    By default a transformer's blocks at two thirds of its depth, and the last.
    """
    known = architecture(config)
    if known.is_transformer:
        kind, default = "blocks", (2 * known.depth // 3, known.depth - 1)
    else:
        kind, default = f"stages, of strides {', '.join(map(str, known.strides))}", STAGES
    try:
        chosen = default if layers == AUTO_LAYERS else tuple(layers_of(layers))
    except ValueError as error:
        raise ConfigError(f"layers={error}; {config.encoder} has 0..{known.depth - 1} ({kind})") from error
    if max(chosen) >= known.depth:
        raise ConfigError(f"layers={layers}: {config.encoder} has only 0..{known.depth - 1} ({kind})")
    return chosen


def build_patch_features(
    config: EncoderConfig, *, layers: str, weights: Weights, seed: int
) -> "PatchFeatures":
    """Return the frozen network of a memory bank with its weights; ``seed`` draws random ones."""
    chosen = check_layers(config, layers)
    model, is_transformer = network(config, weights=weights, seed=seed), architecture(config).is_transformer
    if not is_transformer:
        model = with_stages(model, config, stages=chosen)
    return PatchFeatures(model, layers=chosen, is_transformer=is_transformer)


def local_mean(maps_BChw: Tensor) -> Tensor:
    """Return the mean of each place's 3x3 neighbourhood, fewer places at the borders."""
    # Zeros beyond the border would shorten border features by up to 5/9, and make of them a population of
    # their own, which fills the coreset.
    return F.avg_pool2d(maps_BChw, kernel_size=3, stride=1, padding=1, count_include_pad=False)


class PatchFeatures(FrozenNetwork):
    """A frozen network whose chosen layers describe each place of an image (spec/models.md, PatchCore).

    A CNN returns just these stages; a vision transformer's blocks after the last are let go.
    """

    def __init__(self, model: nn.Module, *, layers: tuple[int, ...], is_transformer: bool = False) -> None:
        if is_transformer:
            cast(Any, model).prune_intermediate_layers(list(layers))
        super().__init__(model)
        self.layers, self.is_transformer = layers, is_transformer

    def outputs(self, images_B3HW: Tensor) -> list[Tensor]:
        """Return the layers' maps (B, C_layer, h_layer, w_layer)."""
        maps: list[Tensor]
        if self.is_transformer:
            maps = cast(Any, self.model).forward_intermediates(
                images_B3HW,
                indices=list(self.layers),
                stop_early=True,
                norm=False,
                output_fmt="NCHW",
                intermediates_only=True,
            )
        else:
            maps = self.model(images_B3HW.contiguous(memory_format=torch.channels_last))
        return maps

    @torch.no_grad()
    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return patch features of pre-processed images on the largest layer's grid (B, C, h, w).

        Coarser layers are interpolated (bilinear).
        """
        layers_BChw = [local_mean(layer) for layer in self.outputs(images_B3HW)]
        grid = max(layer.shape[-2] for layer in layers_BChw), max(layer.shape[-1] for layer in layers_BChw)
        return torch.cat(
            [F.interpolate(layer, size=grid, mode="bilinear", align_corners=False) for layer in layers_BChw],
            dim=1,
        )
