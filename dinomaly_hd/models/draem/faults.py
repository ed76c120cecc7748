"""Synthetic faults: never clipped, each with its mask and severity, drawn from (seed, position)."""

# B batch, H W pixels of the map, I J points of a gradient grid, h w pixels of the largest patch, T tries,
# P numbers of a patch, S pixels of one axis

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dinomaly_hd.config import families as configs
from dinomaly_hd.config.base import range_of
from dinomaly_hd.models.draem.textures import (
    chunks,
    fork,
    integers,
    perlin_mask,
    perlin_noise,
    source_of,
    uniform_rows,
)
from dinomaly_hd.randomness import derive

LARGEST_HEIGHT = 3
LARGEST_EXPONENT = 5
LEAST_BLEND = 0.1
TRIES = 16
PATCH_NUMBERS = 4 + 4 * TRIES
SHORTEST_LENGTH = 2
BROKEN_SHARE, GAP_SHARE = 0.5, 0.4


class Faulty(NamedTuple):
    """Images with or without a fault, where it is, and how strong."""

    images_BHW: Tensor  # of the originals' type and device, of any range; the originals stay as they are
    mask_BHW: Tensor  # true where an image was altered by design: all else is the original's bits
    severity_B: Tensor  # float32, above 0 with a fault and 0 without; each kind of fault says of what


class Faults:
    """Puts a fault into a share of images (B, H, W) of floats; all it draws comes from the generator."""

    severity_max = 1.0  # largest severity that a fault may have

    def __call__(self, images_BHW: Tensor, *, generator: Generator) -> Faulty:
        raise NotImplementedError


class PerlinFaults(Faults):
    """Thresholded Perlin noise filled with a texture (spec/models.md, DRAEM; Zavrtanik et al. 2021).

    Inside the mask: (1 - beta) texture + beta image, beta ~ U(0.1, 1); 2^0..2^5 cells along each axis.
    Severity is 1 - beta, in (0, 0.9]. On the CPU an image's fault does not depend on the images after it,
    unless its texture does.
    """

    def __init__(self, config: configs.PerlinFaults, textures_KHW: Tensor | None) -> None:
        self.probability = config.anomaly_probability
        self.sources = source_of(config.anomaly_source_path, textures_KHW)

    def __call__(self, images_BHW: Tensor, *, generator: Generator) -> Faulty:
        _check_images(images_BHW)
        batch, size = len(images_BHW), (images_BHW.shape[1], images_BHW.shape[2])
        points = 2**LARGEST_EXPONENT + 1
        source_generator = fork(generator)
        uniform = uniform_rows(batch, 4 + points**2, generator=generator, device=images_BHW.device)
        chosen_B = uniform[:, 0] < self.probability
        severity_B = (1 - LEAST_BLEND) * (1 - uniform[:, 1])
        cells_B2 = 2 ** integers(uniform[:, 2:4], low=0, high=LARGEST_EXPONENT)
        turn_BIJ = uniform[:, 4:].reshape(batch, points, points)
        # A mask must not depend on whether the caller trains in mixed precision.
        with torch.autocast(images_BHW.device.type, enabled=False):
            faulty_BHW = self.sources(images_BHW, generator=source_generator)
            mask_BHW = torch.empty_like(faulty_BHW, dtype=torch.bool)
            for part in chunks(batch):
                noise = perlin_noise(turn_BIJ[part], cells_B2=cells_B2[part], size=size)
                mask_BHW[part] = perlin_mask(noise) & chosen_B[part, None, None]
                beta = (1 - severity_B[part, None, None]).to(images_BHW.dtype)
                blend = (1 - beta) * faulty_BHW[part] + beta * images_BHW[part]
                faulty_BHW[part] = torch.where(mask_BHW[part], blend, images_BHW[part])
        return Faulty(faulty_BHW, mask_BHW, severity_B * chosen_B)


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

    From ``PATCH_NUMBERS`` numbers of each image; widths (pixels) and ratios (height / width) are uniform
    between their two ends; ``size`` (H, W) is 2 x 2 or more.
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
    # The first of 16 random pairs of places that keeps the limit; if none does, two opposite corners.
    first_B = fits_BT.int().argmax(dim=1)
    source_B2, target_B2 = places_BT22[torch.arange(len(first_B), device=first_B.device), first_B].unbind(
        dim=1
    )
    return Placement(height_B, width_B, *source_B2.unbind(dim=1), *target_B2.unbind(dim=1))


def _sizes(
    uniform_B2: Tensor, *, width: tuple[int, int], ratio: tuple[float, float], size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return heights and widths cut to the image, the short side to 10/17 where no two places would do."""
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


class PatchFaults(Faults):
    """Patches cut out and added, times severity, elsewhere (spec/models.md, DRAEM-SevNet).

    Source and target overlap by at most 30 % of the patch. Patches are cut from the unaltered image; where
    targets overlap they add up. Severity, one for all patches of an image, is that of the formula, in
    (0, severity_max]. On the CPU an image's fault does not depend on the other images.
    """

    def __init__(self, config: configs.PatchFaults) -> None:
        self.probability, self.count = config.anomaly_probability, config.patch_count
        self.severity_max = config.severity_max
        narrowest, widest = range_of(config.patch_width_range)
        self.width, self.ratio = (int(narrowest), int(widest)), range_of(config.patch_ratio_range)

    def __call__(self, images_BHW: Tensor, *, generator: Generator) -> Faulty:
        _check_images(images_BHW)
        batch, size = len(images_BHW), (images_BHW.shape[1], images_BHW.shape[2])
        uniform = uniform_rows(
            batch, 2 + self.count * PATCH_NUMBERS, generator=generator, device=images_BHW.device
        )
        chosen_B = uniform[:, 0] < self.probability
        severity_B = self.severity_max * (1 - uniform[:, 1]) * chosen_B
        faulty_BHW = images_BHW.clone(memory_format=torch.contiguous_format)
        mask_BHW = torch.zeros_like(faulty_BHW, dtype=torch.bool)
        for numbers_BP in uniform[:, 2:].reshape(batch, self.count, PATCH_NUMBERS).unbind(dim=1):
            placed = place_patches(numbers_BP, width=self.width, ratio=self.ratio, size=size)
            if batch:
                add_patches(
                    images_BHW, to=faulty_BHW, mask_BHW=mask_BHW, severity_B=severity_B, placement=placed
                )
        return Faulty(faulty_BHW, mask_BHW, severity_B)


def _segment(size: int, batch: int, *, lengths: tuple[int, int], generator: Generator) -> Tensor:
    """Return (B, size), true on a run of random length and place."""
    device = generator.device
    shortest, longest = (min(length, size) for length in lengths)
    length_B1 = torch.randint(shortest, longest + 1, (batch, 1), generator=generator, device=device)
    room_B1 = size - length_B1 + 1
    start_B1 = (torch.rand(batch, 1, generator=generator, device=device) * room_B1).long()
    place_1S = torch.arange(size, device=device).unsqueeze(0)
    return (place_1S >= start_B1) & (place_1S < start_B1 + length_B1)


def add_bands(
    images_BHW: Tensor, *, height: tuple[int, int], generator: Generator, probability: float | None = None
) -> Faulty:
    """Add a band to each image, or to a share of them: then none loses all of its columns."""
    _check_images(images_BHW)
    batch, rows, columns = images_BHW.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=generator.device).to(images_BHW.device)

    # The order of the draws is part of what a seed means.
    row_BH = _segment(rows, batch, lengths=height, generator=generator).to(images_BHW.device)
    column_BW = _segment(columns, batch, lengths=(SHORTEST_LENGTH, columns), generator=generator)
    column_BW = column_BW.to(images_BHW.device)
    # Half of the bands are broken: each column is missing with probability 0.4.
    broken_B1 = uniform(batch, 1) < BROKEN_SHARE
    missing_BW = broken_B1 & (uniform(batch, columns) < GAP_SHARE)
    severity_B = uniform(batch)  # of the image's maximum
    if probability is not None:
        chosen_B = uniform(batch) < probability
        row_BH, severity_B = row_BH & chosen_B[:, None], severity_B * chosen_B
        missing_BW = missing_BW & ~(missing_BW | ~column_BW).all(dim=1, keepdim=True)
    mask_BHW = row_BH[:, :, None] & (column_BW & ~missing_BW)[:, None, :]
    amplitude_B = (severity_B * images_BHW.amax(dim=(1, 2))).to(images_BHW.dtype)
    faulty_BHW = torch.where(mask_BHW, images_BHW + amplitude_B[:, None, None], images_BHW)
    return Faulty(faulty_BHW, mask_BHW, severity_B)


class BandFaults(Faults):
    """Thin horizontal bands (spec/models.md, Synthetic faults), 1 to 3 of the map's own rows high.

    ``rows`` is the height of the images given, pixels.
    """

    def __init__(self, config: configs.BandFaults, *, rows: int) -> None:
        self.probability = config.anomaly_probability
        row = rows / config.map_rows
        self.height = max(1, round(row)), max(1, round(LARGEST_HEIGHT * row))

    def __call__(self, images_BHW: Tensor, *, generator: Generator) -> Faulty:
        return add_bands(images_BHW, height=self.height, generator=generator, probability=self.probability)


class SourceFaults(Faults):
    """Signatures of labelled faults of the source domain, scaled and put at random places.

    A pixel of the mask is x (1 + severity * signature): relative, as domains differ in their level. Rows and
    columns are rolled, since both gears turn. ``signatures_KHW`` are those of maps (``trivial.Scan``), here
    enlarged to the images given, whose values are not below 0; None for a detector that only scores. The
    idea is FaultPaste's (Ha and Fink 2023, arXiv 2305.19569).
    """

    def __init__(self, config: configs.SourceFaults, signatures_KHW: Tensor | None) -> None:
        self.probability, self.signatures_KHW = config.anomaly_probability, signatures_KHW
        self.severity_min, self.severity_max = range_of(config.signature_scale)

    def __call__(self, images_BHW: Tensor, *, generator: Generator) -> Faulty:
        _check_images(images_BHW)
        assert self.signatures_KHW is not None, "signatures are read for training only"
        device, (count, rows, columns) = images_BHW.device, self.signatures_KHW.shape
        uniform = uniform_rows(len(images_BHW), 5, generator=generator, device=device)
        chosen_B = uniform[:, 0] < self.probability
        severity_B = self.severity_max - (self.severity_max - self.severity_min) * uniform[:, 1]
        which_B, down_B, right_B = (
            integers(uniform[:, 2 + i], low=0, high=most - 1) for i, most in enumerate((count, rows, columns))
        )
        row_BH1 = ((torch.arange(rows, device=device) - down_B[:, None]) % rows)[:, :, None]
        column_B1W = ((torch.arange(columns, device=device) - right_B[:, None]) % columns)[:, None, :]
        placed_BHW = self.signatures_KHW.to(device)[which_B[:, None, None], row_BH1, column_B1W]
        # Means of the map's cells that a pixel lies in: none is lost, however small the images.
        _, height, width = images_BHW.shape
        signature_BHW = F.adaptive_avg_pool2d(placed_BHW, (height, width))
        mask_BHW = (signature_BHW != 0) & chosen_B[:, None, None]
        factor_BHW = (1 + severity_B[:, None, None] * signature_BHW).to(images_BHW.dtype)
        faulty_BHW = torch.where(mask_BHW, images_BHW * factor_BHW, images_BHW)
        return Faulty(faulty_BHW, mask_BHW, severity_B * chosen_B)


def horizontal_bands(images_BHW: Tensor, *, seed: int, position: int) -> Faulty:
    """Add one thin horizontal band to each image, as ``BandFaults`` of probability 1 does.

    A broken band may lose all its columns here; its mask is then empty. ``position`` is that of the batch,
    e.g. the optimizer step; the same (seed, position) gives the same faults.
    """
    generator = Generator(images_BHW.device).manual_seed(derive(seed, "bands", position))
    return add_bands(images_BHW, height=(1, LARGEST_HEIGHT), generator=generator)


def _check_images(images_BHW: Tensor) -> None:
    if images_BHW.ndim != 3 or min(images_BHW.shape[1:]) < 2 or not images_BHW.is_floating_point():
        shape = tuple(images_BHW.shape)
        raise ValueError(
            f"faults need float images (B, H, W) of 2 x 2 pixels or more, got {shape} {images_BHW.dtype}"
        )
