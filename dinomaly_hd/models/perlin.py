"""Perlin noise of a batch without a loop: a grid point's weight factors into rows and columns."""

# B batch, H W pixels, S pixels of one axis, I J points of the gradient grid

import math

import torch
from torch import Tensor

THRESHOLD = 0.5
THRESHOLD_SHARE = 0.75


def perlin_noise(turn_BIJ: Tensor, *, cells_B2: Tensor, size: tuple[int, int]) -> Tensor:
    """Return noise (B, H, W) within -1..1, an own number of cells for each image and axis.

    Gradients of length 1 on a grid, faded by 6 t^5 - 15 t^4 + 10 t^3, times sqrt 2. Pixels are sampled at
    their centres, since at the grid points, where a fine grid on few pixels would sample, noise is zero.
    The noise is not rotated: quarter turns only swap two axes that are drawn alike.

    Args:
        turn_BIJ: Directions of the gradients as shares of a full turn; images use as many as they need.
        cells_B2: Cells along rows and columns, 1..I - 1 and 1..J - 1.
        size: (H, W).
    """
    angle_BIJ = 2 * math.pi * turn_BIJ
    row_BHI, row_offset_BHI = _weights(cells_B2[:, 0], pixels=size[0], points=turn_BIJ.shape[1])
    column_BWJ, column_offset_BWJ = _weights(cells_B2[:, 1], pixels=size[1], points=turn_BIJ.shape[2])
    left = torch.cat([row_BHI @ angle_BIJ.cos(), row_offset_BHI @ angle_BIJ.sin()], dim=2)
    right = torch.cat([column_offset_BWJ, column_BWJ], dim=2)
    return math.sqrt(2) * left @ right.mT


def _weights(cells_B: Tensor, *, pixels: int, points: int) -> tuple[Tensor, Tensor]:
    """Return the weight of each grid point at each pixel of an axis, and weight times offset, (B, S, I)."""
    device = cells_B.device
    place_S = (torch.arange(pixels, device=device) + 0.5) / pixels
    offset_BSI = (place_S * cells_B[:, None])[:, :, None] - torch.arange(points, device=device)
    # Beyond one cell the clamp makes the fade 1 and the weight 0.
    t = offset_BSI.abs().clamp(max=1)
    weight_BSI = 1 - t**3 * (t * (6 * t - 15) + 10)
    return weight_BSI, weight_BSI * offset_BSI


def perlin_mask(noise_BHW: Tensor) -> Tensor:
    """Return where noise reaches 0.5, never empty.

    An image whose noise stays below has its threshold three quarters up its own range instead, which is
    where 0.5 lies in -1..1.
    """
    low_B11 = noise_BHW.amin(dim=(1, 2), keepdim=True)
    high_B11 = noise_BHW.amax(dim=(1, 2), keepdim=True)
    own_B11 = low_B11 + THRESHOLD_SHARE * (high_B11 - low_B11)
    return noise_BHW >= own_B11.where(high_B11 < THRESHOLD, THRESHOLD)
