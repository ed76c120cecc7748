"""Which rows and columns thin horizontal bands cover."""

# B batch, H W pixels, S pixels of one axis

from typing import NamedTuple

import torch
from torch import Generator, Tensor

SHORTEST_LENGTH = 2
BROKEN_SHARE, GAP_SHARE = 0.5, 0.4


class Bands(NamedTuple):
    """Which rows and columns a band covers, which columns are missing in it, and how strong it is."""

    row_BH: Tensor
    column_BW: Tensor
    missing_BW: Tensor
    severity_B: Tensor


def draw_bands(images_BHW: Tensor, *, height: tuple[int, int], generator: Generator) -> Bands:
    """Draw one band an image; the order of the draws is part of what a seed means."""
    batch, rows, columns = images_BHW.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=generator.device).to(images_BHW.device)

    row_BH = _segment(rows, batch, lengths=height, generator=generator).to(images_BHW.device)
    column_BW = _segment(columns, batch, lengths=(SHORTEST_LENGTH, columns), generator=generator)
    column_BW = column_BW.to(images_BHW.device)
    broken_B1 = uniform(batch, 1) < BROKEN_SHARE
    return Bands(row_BH, column_BW, broken_B1 & (uniform(batch, columns) < GAP_SHARE), uniform(batch))


def _segment(size: int, batch: int, *, lengths: tuple[int, int], generator: Generator) -> Tensor:
    """Return (B, size), true on a run of random length and place."""
    device = generator.device
    shortest, longest = (min(length, size) for length in lengths)
    length_B1 = torch.randint(shortest, longest + 1, (batch, 1), generator=generator, device=device)
    room_B1 = size - length_B1 + 1
    start_B1 = (torch.rand(batch, 1, generator=generator, device=device) * room_B1).long()
    place_1S = torch.arange(size, device=device).unsqueeze(0)
    return (place_1S >= start_B1) & (place_1S < start_B1 + length_B1)
