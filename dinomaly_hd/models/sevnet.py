"""DRAEM-SevNet: DRAEM whose discriminator also tells how severe the fault is."""

# B batch, C channels, F features, H W pixels

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinomaly_hd.models.bottleneck import dropout
from dinomaly_hd.models.draem import Draem, ImageLosses, Outputs
from dinomaly_hd.models.draem_networks import initialise, unit
from dinomaly_hd.models.draem.faults import Faults, Faulty
from dinomaly_hd.models.noise import Noise
from dinomaly_hd.models.preprocessing import Preprocessing

HeadMode = Literal["single_scale", "multi_scale"]
FIRST_SCALE: dict[HeadMode, int] = {"single_scale": 5, "multi_scale": 1}
"""Index of the first of the six activations that a head reads: act6 alone, or act2 .. act6."""
SPATIAL_CHANNELS = 32

SeverityLossType = Literal["mse", "smooth_l1"]
ELEMENT_LOSSES: dict[SeverityLossType, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "smooth_l1": F.smooth_l1_loss,
}


class Pooling(Protocol):
    """Makes ``features`` numbers of an image's activations: list of (B, C, H, W) -> (B, F)."""

    features: int

    def __call__(self, activations: Sequence[Tensor]) -> Tensor: ...


class GlobalPooling(nn.Module):
    """The mean of each channel (gap).

    Args:
        channels: Of each activation.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.features = sum(channels)

    def forward(self, activations: Sequence[Tensor]) -> Tensor:
        return torch.cat([x_BCHW.mean(dim=(2, 3)) for x_BCHW in activations], dim=1)


class SpatialPooling(nn.Module):
    """A 3 x 3 convolution to 32 channels and its means on a size x size grid (spatial_aware).

    32 channels for every activation: convolutions that kept the activation's own would make the multi-scale
    head more than ten times larger, half as large as the discriminator.

    Args:
        channels: Of each activation.
        size: Cells of the grid to a side.
        attention: Weight each cell by a sigmoid of its channels.
    """

    def __init__(self, channels: Sequence[int], *, size: int, attention: bool) -> None:
        super().__init__()
        self.size, self.features = size, len(channels) * SPATIAL_CHANNELS * size**2
        self.units = nn.ModuleList(unit(count, SPATIAL_CHANNELS) for count in channels)
        self.attention = nn.ModuleList(nn.Conv2d(SPATIAL_CHANNELS, 1, 1) for _ in channels if attention)

    def forward(self, activations: Sequence[Tensor]) -> Tensor:
        cells = [
            F.adaptive_avg_pool2d(layer(x_BCHW), self.size)
            for layer, x_BCHW in zip(self.units, activations, strict=True)
        ]
        if self.attention:
            cells = [x * gate(x).sigmoid() for gate, x in zip(self.attention, cells, strict=True)]
        return torch.cat([x_BCHW.flatten(1) for x_BCHW in cells], dim=1)


class SeverityHead(nn.Module):
    """Pooled activations, a hidden layer with ReLU and dropout, one sigmoid: severity (B,), 0..1.

    Args:
        channels: Of the six activations (``draem_networks.activation_channels``).
        mode: Read act6 alone (single_scale) or act2 .. act6 (multi_scale).
        pooling: Makes the pooling for the channels read, e.g. ``GlobalPooling``.
        hidden: Width of the hidden layer.
        dropout: Share of its values dropped in training, 0..1.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        mode: HeadMode,
        pooling: Callable[[Sequence[int]], Pooling],
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.first, self.p = FIRST_SCALE[mode], dropout
        self.pooling = pooling(channels[self.first :])
        self.fc1 = nn.Linear(self.pooling.features, hidden)
        self.fc2 = nn.Linear(hidden, 1)

    def forward(self, activations: Sequence[Tensor], *, noise: Noise | None) -> Tensor:
        """Return the severity as a share of the largest; ``noise=None`` means inference (no dropout)."""
        generator = None if noise is None else noise.generator("severity dropout")
        hidden = F.relu(self.fc1(self.pooling([x.float() for x in activations[self.first :]])))
        logit_B1: Tensor = self.fc2(dropout(hidden, p=self.p, generator=generator))
        return logit_B1.squeeze(1).sigmoid()


@dataclass(frozen=True, kw_only=True)
class SeverityLoss:
    """Compares the head with severity / severity_max, so that both live in 0..1.

    Args:
        kind: mse or smooth_l1. Errors here stay below 1, where smooth_l1 (threshold 1) is half the mse.
        weight: In the whole loss, 0 or more.
        severity_max: Largest severity that the faults have.
    """

    kind: SeverityLossType
    weight: float
    severity_max: float

    def label(self, severity_B: Tensor) -> Tensor:
        """Return what the head should say."""
        return severity_B / self.severity_max

    def __call__(self, severity_B: Tensor, label_B: Tensor) -> Tensor:
        """Return the unweighted loss of each image (B,)."""
        return ELEMENT_LOSSES[self.kind](severity_B, label_B, reduction="none")


Combination = Callable[[Tensor, Tensor], Tensor]
"""Makes the image score of the map's largest value and the severity, each (B,), 0..1."""


@dataclass(frozen=True)
class WeightedAverage:
    """(1 - w) m + w s.

    Args:
        severity_weight: w, 0..1.
    """

    severity_weight: float

    def __call__(self, map_B: Tensor, severity_B: Tensor) -> Tensor:
        return (1 - self.severity_weight) * map_B + self.severity_weight * severity_B


SIMPLE_AVERAGE: Combination = WeightedAverage(0.5)
MAXIMUM: Combination = torch.maximum


class SevNet(Draem):
    """DRAEM with a severity head on the discriminator's encoder (spec/models.md, DRAEM-SevNet).

    Both networks start as those of ``Draem`` with the same seed and width, and train on the same faults.

    Args:
        preprocessing: Of mean 0 and standard deviation 1.
        faults: Put into the images of a training step, with severities up to ``severity_loss.severity_max``.
        width: Factor on both networks' channels.
        head: Reads the activations of a discriminator of this width.
        severity_loss: Added to DRAEM's.
        combination: Of the largest softmax and the head's severity, the image score.
        map_size: (height, width) of the anomaly maps, pixels.
        seed: Of initial weights, faults and dropout.
    """

    def __init__(
        self,
        *,
        preprocessing: Preprocessing,
        faults: Faults,
        width: float,
        head: SeverityHead,
        severity_loss: SeverityLoss,
        combination: Combination,
        map_size: tuple[int, int],
        seed: int,
    ) -> None:
        super().__init__(
            preprocessing=preprocessing,
            faults=faults,
            width=width,
            image_score="max",
            map_size=map_size,
            seed=seed,
        )
        self.head, self.severity_loss, self.combination = head, severity_loss, combination
        initialise(nn.ModuleDict({"head": head}), seed=seed)

    def image_losses(
        self, outputs: Outputs, *, clean_BHW: Tensor, faulty: Faulty, noise: Noise | None
    ) -> ImageLosses:
        base = super().image_losses(outputs, clean_BHW=clean_BHW, faulty=faulty, noise=noise)
        severity_B = self.head(outputs.activations, noise=noise)
        label_B = self.severity_loss.label(faulty.severity_B)
        loss_B = self.severity_loss(severity_B, label_B)
        parts = {"severity_loss": loss_B, "severity_mae": (severity_B - label_B).abs()}
        return ImageLosses(base.total_B + self.severity_loss.weight * loss_B, {**base.parts, **parts})

    def scores(self, anomaly_BHW: Tensor, outputs: Outputs) -> Tensor:
        return self.combination(
            super().scores(anomaly_BHW, outputs), self.head(outputs.activations, noise=None)
        )
