"""Perlin noise, and what its faults are filled with: other images, procedural textures, a user's pictures.

Each source of textures gives every image (B, H, W) a new texture of the same shape, dtype and device, which
may be written to.
"""

# B batch, H W pixels, S pixels of one axis, K textures or waves, I J points of a gradient grid,
# P numbers of an image

import math
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor

from dinomaly_hd.config.families import OTHER_IMAGES, TEXTURES

CHUNK = 16
THRESHOLD = 0.5
THRESHOLD_SHARE = 0.75
WAVES = 4
LARGEST_OCTAVE = 5
OCTAVES = (2, 3, 4, LARGEST_OCTAVE)
STRIPE_OFFSET = 0.7


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

    Gradients of length 1 on a grid, faded by 6 t^5 - 15 t^4 + 10 t^3, times sqrt 2.

    ``turn_BIJ`` are the gradients' directions as shares of a full turn; images use as many as they need of
    them: ``cells_B2`` along rows and columns are 1..I - 1 and 1..J - 1.
    """
    # Not rotated: quarter turns only swap two axes that are drawn alike. A grid point's weight factors into
    # rows and columns, so that a batch needs no loop.
    angle_BIJ = 2 * math.pi * turn_BIJ
    row_BHI, row_offset_BHI = _weights(cells_B2[:, 0], pixels=size[0], points=turn_BIJ.shape[1])
    column_BWJ, column_offset_BWJ = _weights(cells_B2[:, 1], pixels=size[1], points=turn_BIJ.shape[2])
    left = torch.cat([row_BHI @ angle_BIJ.cos(), row_offset_BHI @ angle_BIJ.sin()], dim=2)
    right = torch.cat([column_offset_BWJ, column_BWJ], dim=2)
    return math.sqrt(2) * left @ right.mT


def _weights(cells_B: Tensor, *, pixels: int, points: int) -> tuple[Tensor, Tensor]:
    """Return the weight of each grid point at each pixel of an axis, and weight times offset, (B, S, I)."""
    device = cells_B.device
    # At pixels' centres: at the grid points, where a fine grid on few pixels would sample, noise is zero.
    place_S = (torch.arange(pixels, device=device) + 0.5) / pixels
    offset_BSI = (place_S * cells_B[:, None])[:, :, None] - torch.arange(points, device=device)
    # Beyond one cell the clamp makes the fade 1 and the weight 0.
    t = offset_BSI.abs().clamp(max=1)
    weight_BSI = 1 - t**3 * (t * (6 * t - 15) + 10)
    return weight_BSI, weight_BSI * offset_BSI


def perlin_mask(noise_BHW: Tensor) -> Tensor:
    """Return where noise reaches 0.5, or, if it stays below, three quarters of its range; never empty."""
    low_B11 = noise_BHW.amin(dim=(1, 2), keepdim=True)
    high_B11 = noise_BHW.amax(dim=(1, 2), keepdim=True)
    own_B11 = low_B11 + THRESHOLD_SHARE * (high_B11 - low_B11)
    return noise_BHW >= own_B11.where(high_B11 < THRESHOLD, THRESHOLD)


def other_images(images_BHW: Tensor, *, generator: Generator) -> Tensor:
    """Return another image of the batch for each, along one random cycle; one alone is rolled by 1/4..3/4."""
    batch, *size = images_BHW.shape
    if batch == 1:
        places = uniform_rows(1, 2, generator=generator, device=generator.device)[0]
        shifts = [
            int(integers(place, low=math.ceil(side / 4), high=math.ceil(3 * side / 4)))
            for place, side in zip(places, size, strict=True)
        ]
        return images_BHW.roll(shifts, dims=(1, 2))
    order_B = torch.randperm(batch, generator=generator, device=generator.device)
    other_B = torch.empty_like(order_B)
    other_B[order_B] = order_B.roll(1)
    return images_BHW[other_B.to(images_BHW.device)]


def drawn_textures(images_BHW: Tensor, *, generator: Generator) -> Tensor:
    """Return procedural textures, one of three kinds for each image, stretched to the image's own range.

    Each depends on its own image's range and place in the batch only.
    """
    batch, size = len(images_BHW), (images_BHW.shape[1], images_BHW.shape[2])
    uniform_BP = uniform_rows(batch, 1 + NUMBERS, generator=generator, device=images_BHW.device)
    kind_B = integers(uniform_BP[:, 0], low=0, high=len(KINDS) - 1)
    textures_BHW = torch.empty_like(images_BHW)
    for number, kind in enumerate(KINDS):
        of_kind = (kind_B == number).nonzero().squeeze(1)
        for chunk in chunks(len(of_kind)):
            part = of_kind[chunk]
            drawn = kind(uniform_BP[part, 1:], size)
            textures_BHW[part] = _stretched(drawn, like=images_BHW[part])
    return textures_BHW


class FolderSource:
    """A user's textures, one at random for each image, stretched to the image's own range.

    The texture is entered at a random pixel and wraps around where it ends, so it may be of any size. Each
    texture given depends on its own image's range and place in the batch only.
    """

    def __init__(self, textures_KHW: Tensor | None) -> None:
        self.textures_KHW = textures_KHW

    def __call__(self, images_BHW: Tensor, *, generator: Generator) -> Tensor:
        assert self.textures_KHW is not None, "loaded without its textures: it can score, not train"
        batch, height, width = images_BHW.shape
        count, rows, columns = self.textures_KHW.shape
        device = self.textures_KHW.device
        uniform_B3 = uniform_rows(batch, 3, generator=generator, device=device)
        chosen_B = integers(uniform_B3[:, 0], low=0, high=count - 1)
        first_row_B1 = integers(uniform_B3[:, 1:2], low=0, high=rows - 1)
        first_column_B1 = integers(uniform_B3[:, 2:3], low=0, high=columns - 1)
        row_BH = (first_row_B1 + torch.arange(height, device=device)) % rows
        column_BW = (first_column_B1 + torch.arange(width, device=device)) % columns
        textures_BHW = torch.empty_like(images_BHW)
        for part in chunks(batch):
            row_BH1, column_B1W = row_BH[part].unsqueeze(2), column_BW[part].unsqueeze(1)
            drawn_BHW = self.textures_KHW[chosen_B[part, None, None], row_BH1, column_B1W]
            textures_BHW[part] = _stretched(drawn_BHW.to(images_BHW.device), like=images_BHW[part])
        return textures_BHW


def source_of(path: str, textures_KHW: Tensor | None) -> Callable[..., Tensor]:
    """Return the source that ``anomaly_source_path`` names; ``textures_KHW`` are those of a user's folder."""
    sources = {OTHER_IMAGES: other_images, TEXTURES: drawn_textures}
    return sources.get(path, FolderSource(textures_KHW))


def _stretched(textures_BHW: Tensor, *, like: Tensor) -> Tensor:
    """Return textures with the smallest and largest value of each image; a constant one gets the smallest."""
    low, high = (extreme(like.float(), dim=(1, 2), keepdim=True) for extreme in (torch.amin, torch.amax))
    drawn = textures_BHW.float()
    smallest, largest = (extreme(drawn, dim=(1, 2), keepdim=True) for extreme in (torch.amin, torch.amax))
    share = (drawn - smallest).div_((largest - smallest).clamp(min=torch.finfo(drawn.dtype).tiny))
    return share.mul_(high - low).add_(low).to(like.dtype)


def _plane_waves(uniform_BKP: Tensor, size: tuple[int, int]) -> Tensor:
    """Return sums of plane waves, by sin(x + y) = sin x cos y + cos x sin y as one matrix product."""
    # 1..32 cycles an image, log-uniform, in any direction.
    amplitude_BK, frequency_BK, direction_BK, phase_BK = uniform_BKP.unbind(dim=2)
    cycles_BK = 2 ** (LARGEST_OCTAVE * frequency_BK)
    angle_BK = math.pi * direction_BK

    def phases(cycles_BK: Tensor, pixels: int) -> Tensor:
        place_S = (torch.arange(pixels, device=cycles_BK.device) + 0.5) / pixels
        return 2 * math.pi * place_S[None, :, None] * cycles_BK[:, None, :]

    row_BHK = phases(cycles_BK * angle_BK.sin(), size[0])
    column_BWK = phases(cycles_BK * angle_BK.cos(), size[1]) + 2 * math.pi * phase_BK[:, None, :]
    left = torch.cat([row_BHK.cos(), row_BHK.sin()], dim=2) * amplitude_BK.repeat(1, 2)[:, None, :]
    return left @ torch.cat([column_BWK.sin(), column_BWK.cos()], dim=2).mT


def _stripes(uniform_BP: Tensor, size: tuple[int, int]) -> Tensor:
    drawn_B14 = uniform_BP[:, None, :4].clone()
    drawn_B14[..., 0] = 1
    level_B11 = STRIPE_OFFSET * (2 * uniform_BP[:, 4, None, None] - 1)
    return (_plane_waves(drawn_B14, size) > level_B11).to(uniform_BP.dtype)


def _noise(uniform_BP: Tensor, size: tuple[int, int]) -> Tensor:
    noise_BHW = uniform_BP.new_zeros(len(uniform_BP), *size)
    start = len(OCTAVES)
    for number, octave in enumerate(OCTAVES):
        points = 2**octave + 1
        turn_BIJ = uniform_BP[:, start : start + points**2].reshape(-1, points, points)
        start += points**2
        cells_B2 = torch.full((len(turn_BIJ), 2), 2**octave, device=turn_BIJ.device)
        octave_BHW = perlin_noise(turn_BIJ, cells_B2=cells_B2, size=size)
        noise_BHW += uniform_BP[:, number, None, None] * octave_BHW
    return noise_BHW


# Four plane waves; noise of four scales, 4..32 cells; stripes, one plane wave cut at a level.
KINDS: tuple[Callable[[Tensor, tuple[int, int]], Tensor], ...] = (
    lambda uniform_BP, size: _plane_waves(uniform_BP[:, : 4 * WAVES].reshape(-1, WAVES, 4), size),
    _noise,
    _stripes,
)
# What the kind that draws most, noise, needs.
NUMBERS = len(OCTAVES) + sum((2**octave + 1) ** 2 for octave in OCTAVES)
