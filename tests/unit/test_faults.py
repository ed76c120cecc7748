"""Synthetic faults: additive, never clipped, exact masks, a function of the generator; and their textures."""

import math
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from dinomaly_hd.config import families as configs
from dinomaly_hd.models.draem import faults as module
from dinomaly_hd.models.draem.faults import (
    LARGEST_HEIGHT,
    PATCH_NUMBERS,
    BandFaults,
    Faults,
    Faulty,
    PatchFaults,
    PerlinFaults,
    SourceFaults,
    horizontal_bands,
    place_patches,
)
from dinomaly_hd.models.draem.textures import (
    FolderSource,
    drawn_textures,
    other_images,
    perlin_mask,
    perlin_noise,
)


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


IMAGES = torch.rand(400, 31, 95, generator=seeded(1)) + 0.5
FOLDER = torch.rand(3, 20, 120, generator=seeded(2))


def perlin(probability: float, source: str = "images") -> PerlinFaults:
    config = configs.PerlinFaults(anomaly_probability=probability, anomaly_source_path=source)
    return PerlinFaults(config, FOLDER if source == "/folder" else None)


def patches(probability: float = 1.0, **values: Any) -> PatchFaults:
    return PatchFaults(configs.PatchFaults(anomaly_probability=probability, **values))


def bands(probability: float, *, times: int = 1) -> BandFaults:
    """Bands of maps whose rows were enlarged so many times."""
    return BandFaults(configs.BandFaults(anomaly_probability=probability, map_rows=31), rows=31 * times)


def sources(probability: float, *, row: int = 4) -> SourceFaults:
    """Two signatures of whole maps: rows from ``row``, and a piece of three."""
    signatures_KHW = torch.zeros(2, 31, 95)
    signatures_KHW[0, row : row + 4] = torch.rand(95, generator=seeded(7)) + 0.1
    signatures_KHW[1, 20:23, 80:] = 0.5
    return SourceFaults(configs.SourceFaults(anomaly_probability=probability), signatures_KHW)


KINDS: dict[str, Callable[[float], Faults]] = {
    "perlin of other images": perlin,
    "perlin of textures": lambda share: perlin(share, "textures"),
    "perlin of folder": lambda share: perlin(share, "/folder"),
    "wide patch": patches,
    "tall patches": lambda share: patches(
        share, patch_ratio_range="1.5-4", patch_width_range="3-10", patch_count=3
    ),
    "band": bands,
    "tall band": lambda share: bands(share, times=7),
    "source": sources,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def drawn(kind: str, images_BHW: Tensor, *, seed: int = 3, probability: float = 0.5) -> Faulty:
    return KINDS[kind](probability)(images_BHW, generator=seeded(seed))


def sides(mask_HW: Tensor) -> tuple[int, int, int, int]:
    """Return first row, first column, height and width of the box around a mask."""
    rows, columns = mask_HW.any(dim=1).nonzero(), mask_HW.any(dim=0).nonzero()
    row, column = int(rows.min()), int(columns.min())
    return row, column, int(rows.max()) - row + 1, int(columns.max()) - column + 1


@every_kind
def test_images_differ_inside_the_mask_and_nowhere_else_and_the_generator_alone_decides(kind: str) -> None:
    images_BHW = IMAGES.clone()
    faulty, again, other = (drawn(kind, images_BHW, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(images_BHW, IMAGES), "the originals were written to"
    assert faulty.mask_BHW.dtype == torch.bool
    assert torch.equal(faulty.images_BHW[~faulty.mask_BHW], IMAGES[~faulty.mask_BHW])
    assert (faulty.images_BHW != IMAGES)[faulty.mask_BHW].float().mean() > 0.999
    assert torch.equal(faulty.mask_BHW.any(dim=2).any(dim=1), faulty.severity_B > 0)
    assert all(torch.equal(a, b) for a, b in zip(faulty, again, strict=True))
    assert not torch.equal(faulty.mask_BHW, other.mask_BHW)
    assert not torch.equal(faulty.severity_B, other.severity_B)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = drawn(kind, IMAGES)
    assert all(torch.equal(a, b) for a, b in zip(faulty, mixed, strict=True))


@every_kind
def test_as_many_images_as_asked_for_are_faulty(kind: str) -> None:
    images_BHW = IMAGES[:1, :20, :24].expand(2000, 20, 24)
    share = 0.3
    found = (drawn(kind, images_BHW, probability=share).severity_B > 0).float().mean().item()
    assert found == pytest.approx(share, abs=3 * (share * (1 - share) / len(images_BHW)) ** 0.5)
    untouched = drawn(kind, images_BHW, probability=0)
    assert torch.equal(untouched.images_BHW, images_BHW)
    assert not untouched.mask_BHW.any()
    assert (drawn(kind, images_BHW, probability=1).severity_B > 0).all()


@every_kind
def test_type_and_shape_are_kept_down_to_the_smallest_image_and_none(kind: str) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        images_BHW = IMAGES[:20].to(dtype).mT
        faulty = drawn(kind, images_BHW)
        assert (faulty.images_BHW.dtype, faulty.severity_B.dtype) == (dtype, torch.float32)
        assert faulty.images_BHW.shape == faulty.mask_BHW.shape == images_BHW.shape
        assert faulty.severity_B.shape == (20,)
        assert torch.equal(faulty.images_BHW[~faulty.mask_BHW], images_BHW[~faulty.mask_BHW])
    assert drawn(kind, IMAGES[:0]).images_BHW.shape == (0, 31, 95)
    assert drawn(kind, IMAGES[:1, :2, :2], probability=1).mask_BHW.any()
    for images in (IMAGES[0], IMAGES[:, :1], IMAGES.int(), IMAGES[:, None]):
        with pytest.raises(ValueError, match=r"faults need float images \(B, H, W\)"):
            drawn(kind, images)


@pytest.mark.parametrize("kind", ["wide patch", "tall patches", "band"])
def test_nothing_is_clipped(kind: str) -> None:
    images_BHW = torch.randn(200, 31, 95, generator=seeded(5))
    faulty = drawn(kind, images_BHW).images_BHW
    assert (faulty.amax(dim=(1, 2)) > images_BHW.amax(dim=(1, 2))).sum() > 20
    assert kind == "band" or (faulty.amin(dim=(1, 2)) < images_BHW.amin(dim=(1, 2))).sum() > 20


def test_perlin_faults_are_the_blend_of_texture_and_image() -> None:
    faults = perlin(1)
    faults.sources = lambda images_BHW, **_: torch.full_like(images_BHW, 7.0)
    faulty = faults(IMAGES, generator=seeded(3))
    beta_B11 = 1 - faulty.severity_B[:, None, None]
    expected = (1 - beta_B11) * 7.0 + beta_B11 * IMAGES
    assert torch.equal(faulty.images_BHW, torch.where(faulty.mask_BHW, expected, IMAGES))
    assert 0 < faulty.severity_B.min() < 0.05
    assert 0.85 < faulty.severity_B.max() <= 0.9
    assert faulty.severity_B.mean() == pytest.approx(0.45, abs=3 * 0.9 / (12 * 400) ** 0.5)
    share_B = drawn("perlin of textures", IMAGES, probability=1).mask_BHW.float().mean(dim=(1, 2))
    assert 0 < share_B.min() < 0.01 < 0.2 < share_B.max() < 0.6


def source_of(image_HW: Tensor, patch_hw: Tensor) -> tuple[int, int]:
    """Return the one place where an image holds a patch."""
    height, width = patch_hw.shape
    windows = image_HW.unfold(0, height, 1).unfold(1, width, 1)
    error = (windows - patch_hw).abs().amax(dim=(2, 3))
    ((row, column),) = (error < 1e-3).nonzero().tolist()
    return row, column


def test_a_patch_is_cut_from_the_image_and_added_times_severity_elsewhere() -> None:
    images_BHW = IMAGES[:100, :, :60]
    faults = patches(patch_width_range="20-50", severity_max=2)
    faulty = faults(images_BHW, generator=seeded(3))
    for image, altered, mask, severity in zip(images_BHW, *faulty, strict=True):
        row, column, height, width = sides(mask)
        assert mask.sum() == height * width, "the target is a rectangle"
        target = slice(row, row + height), slice(column, column + width)
        source_row, source_column = source_of(image, (altered - image)[target] / severity)
        patch = image[source_row : source_row + height, source_column : source_column + width]
        assert torch.equal(altered[target], image[target] + severity * patch)
        overlap = max(0, height - abs(row - source_row)) * max(0, width - abs(column - source_column))
        assert overlap <= 0.3 * height * width


def test_overlapping_targets_of_one_image_add_up() -> None:
    ones = torch.ones(200, 12, 30)
    faults = patches(patch_width_range="8-12", patch_count=3)
    faulty = faults(ones, generator=seeded(3))
    times_BHW = (faulty.images_BHW - 1) / faulty.severity_B[:, None, None]
    assert set(times_BHW.round().unique().tolist()) == {0.0, 1.0, 2.0, 3.0}
    assert (times_BHW - times_BHW.round()).abs().max() < 1e-2
    assert torch.equal(times_BHW.round() > 0, faulty.mask_BHW)


@pytest.mark.parametrize("size", [(2, 2), (2, 9), (7, 3), (31, 95), (64, 64), (224, 224)])
@pytest.mark.parametrize("ratio", [(0.35, 0.67), (1.0, 1.0), (2.0, 4.0)])
@pytest.mark.parametrize("width", [(1, 3), (20, 80), (150, 500)])
def test_patches_lie_in_the_image_and_overlap_at_most_30_percent(
    size: tuple[int, int], ratio: tuple[float, float], width: tuple[int, int]
) -> None:
    uniform = torch.rand(500, PATCH_NUMBERS, generator=seeded(1))
    uniform[0], uniform[1] = 0, 1 - 2**-24
    place = place_patches(uniform, width=width, ratio=ratio, size=size)
    assert min(place.height.min(), place.width.min()) >= 1
    for row, column in (place[2:4], place[4:6]):
        assert min(row.min(), column.min()) >= 0
        assert (row + place.height <= size[0]).all()
        assert (column + place.width <= size[1]).all()
    rows = (place.height - (place.source_row - place.target_row).abs()).clamp(min=0)
    columns = (place.width - (place.source_column - place.target_column).abs()).clamp(min=0)
    assert (10 * rows * columns <= 3 * place.height * place.width).all()
    if ratio[1] < 1:
        assert (place.height <= place.width).all()


@pytest.mark.parametrize(("values", "wide"), [({}, True), ({"patch_ratio_range": "1.5-2.5"}, False)])
def test_patches_are_wide_or_tall_and_of_every_severity(values: dict[str, str], wide: bool) -> None:
    faults = patches(**values, severity_max=2)
    low, high = faults.ratio
    faulty = faults(IMAGES[:1, :1, :1].expand(400, 224, 224), generator=seeded(3))
    for mask in faulty.mask_BHW:
        _, _, height, width = sides(mask)
        assert (width > height) is wide
        assert 20 <= width <= 80
        assert low * width - 0.5 <= height <= high * width + 0.5
    severity_B = faulty.severity_B
    assert 0 < severity_B.min() < 0.1
    assert 1.9 < severity_B.max() <= 2
    assert severity_B.mean() == pytest.approx(1, abs=3 * 2 / (12 * 400) ** 0.5)


def test_a_band_is_its_severity_times_the_images_maximum_thin_long_and_sometimes_broken() -> None:
    faulty = horizontal_bands(IMAGES, seed=3, position=0)
    added, mask_BHW = faulty.images_BHW - IMAGES, faulty.mask_BHW
    amplitude_B = faulty.severity_B * IMAGES.amax(dim=(1, 2))
    assert (added - amplitude_B.view(-1, 1, 1) * mask_BHW).abs().max() <= 1e-6
    assert set(mask_BHW.any(dim=2).sum(dim=1).tolist()) - {0} == set(range(1, LARGEST_HEIGHT + 1))
    columns_BW = mask_BHW.any(dim=1)
    broken = [bool((row.nonzero().diff(dim=0) > 1).any()) for row in columns_BW]
    assert 0.3 < sum(broken) / len(broken) < 0.6
    assert columns_BW.sum(dim=1).float().mean() > 20
    again, *others = (horizontal_bands(IMAGES, seed=s, position=p) for s, p in ((3, 0), (4, 0), (3, 1)))
    assert torch.equal(faulty.images_BHW, again.images_BHW)
    assert not any(torch.equal(mask_BHW, other.mask_BHW) for other in others)


def test_a_source_fault_is_a_signature_rolled_scaled_and_relative_to_the_image() -> None:
    faults = sources(1.0)
    assert faults.signatures_KHW is not None
    faulty = faults(IMAGES, generator=seeded(5))
    excess_BHW = (faulty.images_BHW / IMAGES - 1) / faulty.severity_B[:, None, None]
    assert 0.3 <= faulty.severity_B.min() < 0.35
    assert 1.15 < faulty.severity_B.max() <= faults.severity_max == 1.2
    tall, piece = faults.signatures_KHW
    for excess_HW, mask_HW in zip(excess_BHW, faulty.mask_BHW, strict=True):
        whole = mask_HW.sum() == 4 * 95
        # The circular correlation with the signature is largest where it was rolled to.
        known = tall if whole else piece
        spectrum = torch.fft.fft2(excess_HW) * torch.fft.fft2(known).conj()
        place = divmod(int(torch.fft.ifft2(spectrum).real.argmax()), 95)
        torch.testing.assert_close(excess_HW, known.roll(place, (0, 1)), rtol=0, atol=2e-6)
    assert {int(mask.sum()) for mask in faulty.mask_BHW} == {4 * 95, 3 * 15}
    config = configs.SourceFaults(anomaly_probability=1.0, signature_scale="2-2.5")
    severity_B = SourceFaults(config, faults.signatures_KHW)(IMAGES, generator=seeded(5)).severity_B
    assert 2 <= severity_B.min() < severity_B.max() <= 2.5
    larger = faults(torch.ones(20, 62, 190), generator=seeded(5))
    assert {int(mask.sum()) for mask in larger.mask_BHW} == {16 * 95, 12 * 15}, "enlarged with the map"


def test_band_faults_are_bands_that_never_vanish_and_may_be_tall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "derive", lambda *_: 3)
    images_BHW = IMAGES[..., :4]
    old = horizontal_bands(images_BHW, seed=0, position=0)
    new = drawn("band", images_BHW, probability=1)
    there = old.mask_BHW.any(dim=2).any(dim=1)
    assert not there.all(), "short broken bands may lose every column"
    assert all(torch.equal(a[there], b[there]) for a, b in zip(old, new, strict=True))
    assert new.mask_BHW.any(dim=2).any(dim=1).all()
    faulty = drawn("tall band", IMAGES, probability=1)
    heights_B = faulty.mask_BHW.any(dim=2).sum(dim=1)
    assert (heights_B.min(), heights_B.max()) == (7, 21)
    assert drawn("tall band", IMAGES[:, :5], probability=1).mask_BHW.all(dim=1).any(dim=1).all(), "cut to fit"


# Perlin noise and what its masks are filled with

RANGES = torch.rand(60, 31, 95, generator=seeded(1)) * torch.arange(1, 61)[:, None, None] - 3
Source = Callable[..., Tensor]


def textures_of(source: Source, images_BHW: Tensor = RANGES, *, seed: int = 3) -> Tensor:
    return source(images_BHW, generator=seeded(seed))


def plain_noise(turns: Tensor, cells: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return Perlin noise corner by corner: each pixel's are above and left of it, and one further."""

    def fade(t: Tensor) -> Tensor:
        return 1 - (6 * t**5 - 15 * t**4 + 10 * t**3)

    y, x = ((torch.arange(side) + 0.5) / side * count for side, count in zip(size, cells, strict=True))
    y, x, found = y[:, None].expand(size), x.expand(size), torch.zeros(size)
    for down, right in product((0, 1), (0, 1)):
        i, j = y.floor().long() + down, x.floor().long() + right
        angle = 2 * math.pi * turns[i, j]
        slope = angle.cos() * (x - j) + angle.sin() * (y - i)
        found += fade((y - i).abs()) * fade((x - j).abs()) * slope
    return math.sqrt(2) * found


def test_perlin_noise_equals_the_sum_over_corners() -> None:
    turns = torch.rand(4, 9, 9, generator=seeded(1))
    cells, size = torch.tensor([[1, 1], [8, 8], [2, 8], [4, 1]]), (9, 14)
    found = perlin_noise(turns, cells_B2=cells, size=size)
    for image, turn, (rows, columns) in zip(found, turns, cells.tolist(), strict=True):
        # cells that end exactly at a pixel's centre would need one more corner of weight 0
        padded = torch.nn.functional.pad(turn, (0, 1, 0, 1))
        assert (image - plain_noise(padded, (rows, columns), size)).abs().max() < 1e-5


def test_masks_are_where_noise_reaches_a_half_or_else_the_top_quarter_of_its_range() -> None:
    turns = torch.rand(500, 33, 33, generator=seeded(1))
    cells = 2 ** torch.randint(0, 6, (500, 2), generator=seeded(2))
    noise = perlin_noise(turns, cells_B2=cells, size=(32, 32))
    assert noise.abs().max() <= 1
    assert (noise.amax(dim=(1, 2)) - noise.amin(dim=(1, 2))).min() > 0.05
    noise = torch.tensor([[[-1.0, 0.49, 0.5, 0.9]], [[-0.8, -0.1, 0.0, 0.4]], [[-0.3, -0.3, -0.3, -0.3]]])
    expected = [[[False, False, True, True]], [[False, False, False, True]], [[True, True, True, True]]]
    assert perlin_mask(noise).tolist() == expected


def test_other_images_are_a_permutation_that_leaves_none_in_place() -> None:
    for batch in (2, 3, 60):
        textures = textures_of(other_images, RANGES[:batch])
        given = [[torch.equal(texture, image) for image in RANGES[:batch]] for texture in textures]
        assert all(sum(row) == 1 for row in given)
        assert all(sum(column) == 1 for column in zip(*given, strict=True))
        assert not any(row[number] for number, row in enumerate(given))
    # An image alone is its own texture, rolled far.
    for seed in range(50):
        (texture,) = textures_of(other_images, RANGES[:1], seed=seed)
        assert sorted(texture.flatten().tolist()) == sorted(RANGES[0].flatten().tolist())
        (peak,), (home,) = ((image == image.max()).nonzero().tolist() for image in (texture, RANGES[0]))
        for side, (to, start) in zip((31, 95), zip(peak, home, strict=True), strict=True):
            assert math.ceil(side / 4) <= (to - start) % side <= math.ceil(3 * side / 4)


SOURCES = {"images": other_images, "drawn": drawn_textures, "folder": FolderSource(FOLDER)}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_textures_are_new_tensors_of_the_image_s_range_that_the_generator_decides(source: Source) -> None:
    before = RANGES.clone()
    first, again, other = (textures_of(source, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all(not torch.equal(a, b) for a, b in pairwise(first))
    for extreme in (torch.amin, torch.amax) if source is not other_images else ():
        assert (extreme(first, dim=(1, 2)) - extreme(RANGES, dim=(1, 2))).abs().max() < 1e-4
    first.zero_()
    assert torch.equal(RANGES, before)


def test_a_third_of_the_procedural_textures_are_stripes_of_two_values() -> None:
    textures = textures_of(drawn_textures, torch.rand(600, 24, 24, generator=seeded(1)))
    values = [len(texture.unique()) for texture in textures]
    assert min(values) == 2, "every texture has a contrast"
    assert 0.25 < sum(count == 2 for count in values) / len(values) < 0.42
    assert sorted(values)[len(values) // 2] > 500


@pytest.mark.parametrize("size", [(31, 95), (7, 200)])
def test_folder_textures_start_anywhere_and_wrap_around(size: tuple[int, int]) -> None:
    images = torch.rand(30, *size, generator=seeded(1))
    folder = torch.arange(2 * 4 * 5.0).reshape(2, 4, 5)
    starts = set()
    for image, texture in zip(images, textures_of(FolderSource(folder), images), strict=True):
        assert torch.equal(texture[4:], texture[:-4])
        assert torch.equal(texture[:, 5:], texture[:, :-5])
        unit = (texture - image.min()) / (image.max() - image.min())
        starts.add(round(unit[0, 0].item() * 19))
    assert len(starts) > 8
    assert textures_of(FolderSource(torch.ones(1, 4, 4)), images).isfinite().all(), "a flat texture"
