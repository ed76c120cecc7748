"""Synthetic faults: additive, never clipped, each with its mask and severity, drawn from (seed, position)."""

# B batch, H W pixels of the map, I J points of a gradient grid, P numbers of a patch

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from dinomaly_hd import config as configs
from dinomaly_hd.config import range_of
from dinomaly_hd.models.draem.shapes import (
    PATCH_NUMBERS,
    Placement,
    add_patches,
    chunks,
    draw_bands,
    fork,
    integers,
    perlin_mask,
    perlin_noise,
    place_patches,
    uniform_rows,
)
from dinomaly_hd.models.draem.textures import source_of
from dinomaly_hd.randomness import derive

LARGEST_HEIGHT = 3
LARGEST_EXPONENT = 5
LEAST_BLEND = 0.1


class Faulty(NamedTuple):
    """Images with or without a fault, where it is, and how strong."""

    # Of the dtype and on the device of the originals, which stay as they are; any range.
    images_BHW: Tensor
    # True where an image was altered by design; outside it equals the original bit for bit.
    mask_BHW: Tensor
    # float32, above 0 with a fault and 0 without; each kind of fault says of what.
    severity_B: Tensor


class Faults:
    """Puts a fault into a share of images (B, H, W) of floats; all it draws comes from the generator."""

    severity_max = 1.0
    """Largest severity that a fault may have."""

    def __call__(self, images_BHW: Tensor, *, generator: Generator) -> Faulty:
        raise NotImplementedError


class PerlinFaults(Faults):
    """Thresholded Perlin noise filled with a texture (spec/models.md, DRAEM; Zavrtanik et al. 2021).

    Inside the mask: (1 - beta) texture + beta image, beta ~ U(0.1, 1); 2^0..2^5 cells along each axis.
    Severity is 1 - beta, in (0, 0.9]. A pixel of the mask keeps its value only where texture and image are
    equal. On the CPU an image's fault does not depend on the images after it, unless its texture does.
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


class PatchFaults(Faults):
    """Patches cut out and added, times severity, elsewhere (spec/models.md, DRAEM-SevNet).

    Source and target overlap by at most 30 % of the patch. Patches are cut from the unaltered image; where
    targets overlap they add up. Patches are cut to the image, and the short side to 10/17 of it where else
    no two places would keep the limit. Severity, one for all patches of an image, is that of the formula,
    in (0, severity_max]. A pixel of the mask keeps its value only where zero is added (or a value too small
    for the sum). On the CPU an image's fault does not depend on the other images.
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
            placement = place_patches(numbers_BP, width=self.width, ratio=self.ratio, size=size)
            for part in chunks(batch):
                add_patches(
                    images_BHW[part],
                    to=faulty_BHW[part],
                    mask_BHW=mask_BHW[part],
                    severity_B=severity_B[part],
                    placement=Placement(*(tensor_B[part] for tensor_B in placement)),
                )
        return Faulty(faulty_BHW, mask_BHW, severity_B)


class BandFaults(Faults):
    """Thin horizontal bands (spec/models.md, Synthetic faults), 1 to 3 of the map's own rows high.

    Length 2..full width, amplitude U(0, 1) of the image's maximum, which is the severity; half of the bands
    are broken, each column missing with probability 0.4; a band that would lose all of them stays whole. A
    pixel of the mask keeps its value only where the amplitude is 0 or too small for the sum; an image without
    a positive value has no brighter band. ``rows`` is the height of the images given, pixels.
    """

    def __init__(self, config: configs.BandFaults, *, rows: int) -> None:
        self.probability = config.anomaly_probability
        row = rows / config.map_rows
        self.height = max(1, round(row)), max(1, round(LARGEST_HEIGHT * row))

    def __call__(self, images_BHW: Tensor, *, generator: Generator) -> Faulty:
        _check_images(images_BHW)
        bands = draw_bands(images_BHW, height=self.height, generator=generator)
        chosen_B = uniform_rows(len(images_BHW), 1, generator=generator, device=images_BHW.device).squeeze(1)
        chosen_B = chosen_B < self.probability
        lost_B1 = (bands.missing_BW | ~bands.column_BW).all(dim=1, keepdim=True)
        return _add_bands(
            images_BHW,
            row_BH=bands.row_BH & chosen_B[:, None],
            column_BW=bands.column_BW & (lost_B1 | ~bands.missing_BW),
            severity_B=bands.severity_B * chosen_B,
        )


def horizontal_bands(images_BHW: Tensor, *, seed: int, position: int) -> Faulty:
    """Add one thin horizontal band to each image, as ``BandFaults`` of probability 1 does.

    A broken band may lose all its columns here; its mask is then empty. ``position`` is that of the batch,
    e.g. the optimizer step; the same (seed, position) gives the same faults.
    """
    _check_images(images_BHW)
    generator = Generator(images_BHW.device).manual_seed(derive(seed, "bands", position))
    bands = draw_bands(images_BHW, height=(1, LARGEST_HEIGHT), generator=generator)
    return _add_bands(
        images_BHW,
        row_BH=bands.row_BH,
        column_BW=bands.column_BW & ~bands.missing_BW,
        severity_B=bands.severity_B,
    )


def _add_bands(images_BHW: Tensor, *, row_BH: Tensor, column_BW: Tensor, severity_B: Tensor) -> Faulty:
    """Add severity times the image's maximum where both row and column are covered."""
    mask_BHW = row_BH[:, :, None] & column_BW[:, None, :]
    amplitude_B = (severity_B * images_BHW.amax(dim=(1, 2))).to(images_BHW.dtype)
    faulty_BHW = torch.where(mask_BHW, images_BHW + amplitude_B[:, None, None], images_BHW)
    return Faulty(faulty_BHW, mask_BHW, severity_B)


def _check_images(images_BHW: Tensor) -> None:
    if images_BHW.ndim != 3 or min(images_BHW.shape[1:]) < 2 or not images_BHW.is_floating_point():
        shape = tuple(images_BHW.shape)
        raise ValueError(
            f"faults need float images (B, H, W) of 2 x 2 pixels or more, got {shape} {images_BHW.dtype}"
        )
