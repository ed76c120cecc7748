"""What synthetic faults are drawn of: uniform numbers, Perlin noise, places of patches, thin bands."""

# B batch, H W pixels, S pixels of one axis, I J points of a gradient grid, h w pixels of the largest patch,
# T tries, K P numbers of an image

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Generator, Tensor

CHUNK = 16
THRESHOLD = 0.5
THRESHOLD_SHARE = 0.75
TRIES = 16
PATCH_NUMBERS = 4 + 4 * TRIES
SHORTEST_LENGTH = 2
BROKEN_SHARE, GAP_SHARE = 0.5, 0.4


def uniform_rows(batch: int, numbers: int, *, generator: Generator, device: torch.device) -> Tensor:
    """Return (B, K) in [0, 1), drawn where the generator lives: a CPU generator gives every device the same.

    On the CPU the first n rows are the same whatever the batch size.
    """
    return torch.rand(batch, numbers, generator=generator, device=generator.device).to(device)


def fork(generator: Generator) -> Generator:
    """Return a generator that the given one seeds, so that what it draws moves nothing drawn later."""
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return Generator(generator.device).manual_seed(int(seed))


def integers(uniform: Tensor, *, low: int, high: Tensor | int) -> Tensor:
    """Return whole numbers low..high, both included, from numbers in [0, 1); shapes broadcast."""
    return low + (uniform * (high - low + 1)).long()


def chunks(batch: int) -> Iterator[slice]:
    """Yield the parts of a batch that are worked on at once: intermediate results stay small."""
    for start in range(0, batch, CHUNK):
        yield slice(start, min(start + CHUNK, batch))


def perlin_noise(turn_BIJ: Tensor, *, cells_B2: Tensor, size: tuple[int, int]) -> Tensor:
    """Return noise (B, H, W) within -1..1, an own number of cells for each image and axis.

    Gradients of length 1 on a grid, faded by 6 t^5 - 15 t^4 + 10 t^3, times sqrt 2. Pixels are sampled at
    their centres, since at the grid points, where a fine grid on few pixels would sample, noise is zero.
    The noise is not rotated: quarter turns only swap two axes that are drawn alike. A grid point's weight
    factors into rows and columns, so that a batch needs no loop.

    ``turn_BIJ`` are the gradients' directions as shares of a full turn; images use as many as they need of
    them: ``cells_B2`` along rows and columns are 1..I - 1 and 1..J - 1.
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

    The first of 16 random pairs of places that keeps the limit; if none does, two opposite corners. From
    ``PATCH_NUMBERS`` numbers of each image; widths (pixels) and ratios (height / width) are uniform between
    their two ends; ``size`` (H, W) is 2 x 2 or more.
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
