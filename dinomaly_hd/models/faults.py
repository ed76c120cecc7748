"""Synthetic faults: additive, never clipped, each with its mask and severity, drawn from (seed, position)."""

# B batch, H W pixels of the map

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from dinomaly_hd.randomness import derive

LARGEST_HEIGHT = 3
SHORTEST_LENGTH = 2
BROKEN_SHARE, GAP_SHARE = 0.5, 0.4


class Faulty(NamedTuple):
    """Images with a fault, where it is, and how strong: amplitude as a share of the image's maximum, 0..1."""

    images_BHW: Tensor
    mask_BHW: Tensor
    severity_B: Tensor


def horizontal_bands(images_BHW: Tensor, *, seed: int, position: int) -> Faulty:
    """Add one thin horizontal band to each image (spec/models.md, Synthetic faults).

    Height 1..3 rows, length 2..full width, amplitude U(0, 1) of the image's maximum; half of the bands are
    broken, each pixel column missing with probability 0.4.

    Args:
        images_BHW: Float maps.
        seed: Of the run.
        position: Of the batch, e.g. the optimizer step; the same (seed, position) gives the same faults.
    """
    batch, height, width = images_BHW.shape
    generator = torch.Generator(images_BHW.device).manual_seed(derive(seed, "bands", position))

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=images_BHW.device)

    row_BH1 = _segment(height, batch, lowest=1, highest=LARGEST_HEIGHT, generator=generator).unsqueeze(2)
    column_B1W = _segment(width, batch, lowest=SHORTEST_LENGTH, highest=width, generator=generator).unsqueeze(
        1
    )
    broken_B11 = uniform(batch, 1, 1) < BROKEN_SHARE
    missing_B1W = broken_B11 & (uniform(batch, 1, width) < GAP_SHARE)
    mask_BHW = row_BH1 & column_B1W & ~missing_B1W
    severity_B = uniform(batch)
    amplitude_B = severity_B * images_BHW.amax(dim=(1, 2))
    return Faulty(images_BHW + amplitude_B.view(-1, 1, 1) * mask_BHW, mask_BHW, severity_B)


def _segment(size: int, batch: int, *, lowest: int, highest: int, generator: Generator) -> Tensor:
    """Return (B, size), true on a run of random length and place."""
    device = generator.device
    length_B1 = torch.randint(lowest, min(highest, size) + 1, (batch, 1), generator=generator, device=device)
    room_B1 = size - length_B1 + 1
    start_B1 = (torch.rand(batch, 1, generator=generator, device=device) * room_B1).long()
    place_1S = torch.arange(size, device=device).unsqueeze(0)
    return (place_1S >= start_B1) & (place_1S < start_B1 + length_B1)
