"""Perlin noise equals a slow loop; every source gives each image a texture of its own range."""

import math

import pytest
import torch
from torch import Generator, Tensor

from dinomaly_hd.errors import ConfigError
from dinomaly_hd.models.perlin import perlin_mask, perlin_noise
from dinomaly_hd.models.textures import FolderSource, OtherImages, Sources, Textures

IMAGES = torch.rand(60, 31, 95, generator=Generator().manual_seed(1)) * torch.arange(1, 61)[:, None, None] - 3
FOLDER = torch.rand(3, 20, 120, generator=Generator().manual_seed(2))


def textures_of(sources: Sources, images_BHW: Tensor = IMAGES, *, seed: int = 3) -> Tensor:
    return sources(images_BHW, generator=Generator().manual_seed(seed))


def fade(t: float) -> float:
    return 6 * t**5 - 15 * t**4 + 10 * t**3


def slow_noise(turns: list[list[float]], cells: tuple[int, int], size: tuple[int, int]) -> list[list[float]]:
    """Return Perlin noise, one pixel and one corner at a time."""

    def pixel(row: int, column: int) -> float:
        y, x = (row + 0.5) / size[0] * cells[0], (column + 0.5) / size[1] * cells[1]
        total = 0.0
        for i in (math.floor(y), math.floor(y) + 1):
            for j in (math.floor(x), math.floor(x) + 1):
                angle = 2 * math.pi * turns[i][j]
                slope = math.cos(angle) * (x - j) + math.sin(angle) * (y - i)
                total += (1 - fade(abs(y - i))) * (1 - fade(abs(x - j))) * slope
        return math.sqrt(2) * total

    return [[pixel(row, column) for column in range(size[1])] for row in range(size[0])]


def test_perlin_noise_equals_the_loop_over_pixels_and_corners() -> None:
    turns = torch.rand(4, 9, 9, generator=Generator().manual_seed(1))
    cells, size = torch.tensor([[1, 1], [8, 8], [2, 8], [4, 1]]), (9, 14)
    found = perlin_noise(turns, cells_B2=cells, size=size)
    for image, turn, (rows, columns) in zip(found, turns, cells.tolist(), strict=True):
        # cells that end exactly at a pixel's centre would need one more corner of weight 0
        padded = torch.nn.functional.pad(turn, (0, 1, 0, 1)).tolist()
        expected = torch.tensor(slow_noise(padded, (rows, columns), size))
        assert (image - expected).abs().max() < 1e-5


def test_perlin_noise_is_never_zero_everywhere_and_within_its_range() -> None:
    turns = torch.rand(500, 33, 33, generator=Generator().manual_seed(1))
    cells = 2 ** torch.randint(0, 6, (500, 2), generator=Generator().manual_seed(2))
    noise = perlin_noise(turns, cells_B2=cells, size=(32, 32))
    assert noise.abs().max() <= 1
    assert (noise.amax(dim=(1, 2)) - noise.amin(dim=(1, 2))).min() > 0.05


def test_the_mask_is_where_noise_reaches_a_half_or_else_the_top_quarter_of_its_range() -> None:
    noise = torch.tensor([[[-1.0, 0.49, 0.5, 0.9]], [[-0.8, -0.1, 0.0, 0.4]], [[-0.3, -0.3, -0.3, -0.3]]])
    expected = [[[False, False, True, True]], [[False, False, False, True]], [[True, True, True, True]]]
    assert perlin_mask(noise).tolist() == expected


def test_other_images_are_a_permutation_that_leaves_none_in_place() -> None:
    for batch in (2, 3, 60):
        textures = textures_of(OtherImages(), IMAGES[:batch])
        given = [[torch.equal(texture, image) for image in IMAGES[:batch]] for texture in textures]
        assert all(sum(row) == 1 for row in given)
        assert all(sum(column) == 1 for column in zip(*given, strict=True))
        assert not any(row[number] for number, row in enumerate(given))


def test_an_image_alone_is_its_own_texture_rolled_far() -> None:
    for seed in range(50):
        (texture,) = textures_of(OtherImages(), IMAGES[:1], seed=seed)
        assert sorted(texture.flatten().tolist()) == sorted(IMAGES[0].flatten().tolist())
        (peak,), (home,) = ((image == image.max()).nonzero().tolist() for image in (texture, IMAGES[0]))
        for side, (to, start) in zip((31, 95), zip(peak, home, strict=True), strict=True):
            assert math.ceil(side / 4) <= (to - start) % side <= math.ceil(3 * side / 4)


@pytest.mark.parametrize("sources", [Textures(), FolderSource(textures_KHW=FOLDER)], ids=["drawn", "folder"])
def test_textures_have_the_range_of_their_own_image(sources: Sources) -> None:
    textures = textures_of(sources)
    for extreme in (torch.amin, torch.amax):
        error_B = extreme(textures, dim=(1, 2)) - extreme(IMAGES, dim=(1, 2))
        assert error_B.abs().max() < 1e-4
    assert all(not torch.equal(a, b) for a, b in zip(textures[1:], textures[:-1], strict=True))


@pytest.mark.parametrize("sources", [OtherImages(), Textures(), FolderSource(textures_KHW=FOLDER)], ids=str)
def test_textures_are_new_tensors_that_the_generator_decides(sources: Sources) -> None:
    before = IMAGES.clone()
    first, again, other = (textures_of(sources, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    first.zero_()
    assert torch.equal(IMAGES, before)


def test_a_third_of_the_procedural_textures_are_stripes_of_two_values() -> None:
    textures = textures_of(Textures(), torch.rand(600, 24, 24, generator=Generator().manual_seed(1)))
    values = [len(texture.unique()) for texture in textures]
    assert min(values) == 2, "every texture has a contrast"
    assert 0.25 < sum(count == 2 for count in values) / len(values) < 0.42
    assert sorted(values)[len(values) // 2] > 500


@pytest.mark.parametrize("size", [(31, 95), (7, 200)])
def test_folder_textures_start_anywhere_and_wrap_around(size: tuple[int, int]) -> None:
    images = torch.rand(30, *size, generator=Generator().manual_seed(1))
    folder = torch.arange(2 * 4 * 5.0).reshape(2, 4, 5)
    starts = set()
    for image, texture in zip(images, textures_of(FolderSource(textures_KHW=folder), images), strict=True):
        assert torch.equal(texture[4:], texture[:-4])
        assert torch.equal(texture[:, 5:], texture[:, :-5])
        unit = (texture - image.min()) / (image.max() - image.min())
        starts.add(round(unit[0, 0].item() * 19))
    assert len(starts) > 8


def test_a_flat_folder_texture_gives_no_infinite_values() -> None:
    assert textures_of(FolderSource(textures_KHW=torch.ones(1, 4, 4))).isfinite().all()


BAD = {
    "one picture": (torch.rand(4, 4), r"textures of shape \(4, 4\)"),
    "none": (torch.rand(0, 4, 4), r"textures of shape \(0, 4, 4\)"),
    "whole numbers": (torch.ones(1, 4, 4, dtype=torch.uint8), "type torch.uint8: use one stack"),
    "not finite": (torch.full((1, 4, 4), math.nan), "not finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_folder_that_cannot_be_drawn_from_is_refused(case: str) -> None:
    textures, message = BAD[case]
    with pytest.raises(ConfigError, match=message):
        FolderSource(textures_KHW=textures)
