"""Where a patch is cut and where it is added: sizes that fit, places that overlap little."""

# B batch, H W pixels, h w pixels of the largest patch, T tries, P numbers of an image

from typing import NamedTuple

import torch
from torch import Tensor

from dinomaly_hd.models.draws import integers

TRIES = 16
NUMBERS = 4 + 4 * TRIES


class Placement(NamedTuple):
    """One patch an image in whole pixels, (B,) each; rows and columns are those of the upper left corners."""

    height: Tensor
    width: Tensor
    source_row: Tensor
    source_column: Tensor
    target_row: Tensor
    target_column: Tensor


def place_patches(
    uniform_BP: Tensor, *, width: tuple[int, int], ratio: tuple[float, float], size: tuple[int, int]
) -> Placement:
    """Return patches whose source and target overlap by at most 30 % of the patch.

    The first of 16 random pairs of places that keeps the limit; if none does, two opposite corners.

    Args:
        uniform_BP: (B, NUMBERS) in [0, 1).
        width: Smallest and largest width, pixels, uniform.
        ratio: Smallest and largest height / width, uniform.
        size: (H, W) of the images, 2 x 2 pixels or more.
    """
    height_B, width_B = _sizes(uniform_BP[:, :2], width=width, ratio=ratio, size=size)
    room_B2 = torch.stack([size[0] - height_B, size[1] - width_B], dim=1)
    tries_BT22 = uniform_BP[:, 4:].reshape(-1, TRIES, 2, 2)
    random_BT22 = integers(tries_BT22, low=0, high=room_B2[:, None, None, :])
    corner_B2 = (uniform_BP[:, 2:4] < 0.5).long()
    corners_B122 = torch.stack([corner_B2, 1 - corner_B2], dim=1)[:, None] * room_B2[:, None, None, :]
    places_BT22 = torch.cat([random_BT22, corners_B122], dim=1)
    apart_BT2 = (places_BT22[:, :, 0] - places_BT22[:, :, 1]).abs()
    fits_BT = _overlaps_little(
        apart_BT2[..., 0], apart_BT2[..., 1], height=height_B[:, None], width=width_B[:, None]
    )
    first_B = fits_BT.int().argmax(dim=1)
    source_B2, target_B2 = places_BT22[torch.arange(len(first_B), device=first_B.device), first_B].unbind(
        dim=1
    )
    return Placement(height_B, width_B, *source_B2.unbind(dim=1), *target_B2.unbind(dim=1))


def _sizes(
    uniform_B2: Tensor, *, width: tuple[int, int], ratio: tuple[float, float], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return heights and widths cut to the image, the short side further where no two places would do."""
    rows, columns = size
    width_B = integers(uniform_B2[:, 0], low=width[0], high=width[1]).clamp(max=columns)
    ratio_B = ratio[0] + (ratio[1] - ratio[0]) * uniform_B2[:, 1]
    height_B = (width_B * ratio_B).round().long().clamp(min=1, max=rows)
    crowded_B = ~_overlaps_little(rows - height_B, columns - width_B, height=height_B, width=width_B)
    wide_B = height_B <= width_B
    # (2 h - H) w <= 0.3 h w for every w if 1.7 h <= H
    height_B = torch.where(crowded_B & wide_B, height_B.clamp(max=rows * 10 // 17), height_B)
    width_B = torch.where(crowded_B & ~wide_B, width_B.clamp(max=columns * 10 // 17), width_B)
    return height_B, width_B


def _overlaps_little(rows_apart: Tensor, columns_apart: Tensor, *, height: Tensor, width: Tensor) -> Tensor:
    """Return whether two patches so far apart share at most 30 % of their pixels, in whole numbers."""
    overlap = (height - rows_apart).clamp(min=0) * (width - columns_apart).clamp(min=0)
    return 10 * overlap <= 3 * height * width


def add_patches(
    images_BHW: Tensor, *, to: Tensor, mask_BHW: Tensor, severity_B: Tensor, placement: Placement
) -> None:
    """Add one patch to each image of positive severity, in place, and its target to the mask."""
    height_B11, width_B11 = placement.height[:, None, None], placement.width[:, None, None]
    row_h1 = torch.arange(int(placement.height.max()), device=images_BHW.device)[:, None]
    column_w = torch.arange(int(placement.width.max()), device=images_BHW.device)
    inside_Bhw = (row_h1 < height_B11) & (column_w < width_B11) & (severity_B > 0)[:, None, None]
    image, row, column = inside_Bhw.nonzero(as_tuple=True)
    patch = images_BHW[image, placement.source_row[image] + row, placement.source_column[image] + column]
    target = image, placement.target_row[image] + row, placement.target_column[image] + column
    to[target] += severity_B[image].to(patch.dtype) * patch
    mask_BHW[target] = True
