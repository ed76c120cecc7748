"""DRAEM-SevNet: DRAEM whose discriminator also tells how severe the fault is."""

# B batch, C channels, F features, H W pixels

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinomaly_hd.config import PooledHead, SevNetConfig, SpatialHead
from dinomaly_hd.models.detector import Noise
from dinomaly_hd.models.draem.detector import Draem, ImageLosses, Outputs
from dinomaly_hd.models.draem.faults import Faulty
from dinomaly_hd.models.draem.networks import activation_channels, initialise, unit
from dinomaly_hd.models.fast import dropout

FIRST_SCALE = {"single_scale": 5, "multi_scale": 1}
"""Index of the first of the six activations that a head reads: act6 alone, or act2 .. act6."""
SPATIAL_CHANNELS = 32
HEAD_DROPOUT = 0.1


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

    32 channels for every activation: convolutions that kept the activation's own would make the multi-scale
    head more than ten times larger, half as large as the discriminator. With attention each cell is weighted
    by a sigmoid of its channels.
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
ELEMENT_LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    # Errors stay below 1, the threshold, where it is half the mse.
    "smooth_l1": F.smooth_l1_loss,
}
COMBINATIONS: dict[str, Callable[[Tensor, Tensor, Any], Tensor]] = {
    "simple_average": lambda map_B, severity_B, _: _weighted(map_B, severity_B, 0.5),
    "weighted_average": lambda map_B, severity_B, config: _weighted(
        map_B, severity_B, config.severity_weight_for_combination
    ),
    "maximum": lambda map_B, severity_B, _: torch.maximum(map_B, severity_B),
}
"""The image score of the map's largest value and the severity, each (B,), 0..1."""


def _weighted(map_B: Tensor, severity_B: Tensor, weight: float) -> Tensor:
    return (1 - weight) * map_B + weight * severity_B


class SeverityHead(nn.Module):
    """Pooled activations, a hidden layer with ReLU and dropout, one sigmoid: severity (B,), 0..1.

    ``channels`` are those of the six activations (``networks.activation_channels``).
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


class SevNet(Draem):
    """DRAEM with a severity head on the discriminator's encoder (spec/models.md, DRAEM-SevNet).

    Both networks start as those of ``Draem`` with the same seed and width, and train on the same faults. The
    head is compared with severity / severity_max of these, so that both live in 0..1.
    """

    config: SevNetConfig

    def __init__(self, config: SevNetConfig, **parts: Any) -> None:
        super().__init__(config, **parts)
        self.head = SeverityHead(config, activation_channels(config.width))
        initialise(nn.ModuleDict({"head": self.head}), seed=self.seed)

    def image_losses(
        self, outputs: Outputs, *, clean_BHW: Tensor, faulty: Faulty, noise: Noise | None
    ) -> ImageLosses:
        base = super().image_losses(outputs, clean_BHW=clean_BHW, faulty=faulty, noise=noise)
        severity_B = self.head(outputs.activations, noise=noise)
        label_B = faulty.severity_B / self.faults.severity_max
        loss_B = ELEMENT_LOSSES[self.config.severity_loss_type](severity_B, label_B, reduction="none")
        parts = {"severity_loss": loss_B, "severity_mae": (severity_B - label_B).abs()}
        return ImageLosses(base.total_B + self.config.severity_weight * loss_B, {**base.parts, **parts})

    def scores(self, anomaly_BHW: Tensor, outputs: Outputs) -> Tensor:
        combination, severity_B = self.config.combination, self.head(outputs.activations, noise=None)
        combine = COMBINATIONS[combination.score_combination]
        return combine(super().scores(anomaly_BHW, outputs), severity_B, combination)
