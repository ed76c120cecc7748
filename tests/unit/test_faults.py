"""Synthetic faults: additive, never clipped, exact masks, a function of the generator alone."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from dinomaly_hd.errors import ConfigError
from dinomaly_hd.models.faults import (
    LARGEST_HEIGHT,
    BandFaults,
    Faults,
    Faulty,
    PatchFaults,
    PerlinFaults,
    horizontal_bands,
)
from dinomaly_hd.models.patches import NUMBERS, place_patches
from dinomaly_hd.models.textures import FolderSource, OtherImages, Sources, Textures
from tests.work import functions_called

IMAGES = torch.rand(400, 31, 95, generator=Generator().manual_seed(1)) + 0.5
SOURCES: dict[str, Sources] = {
    "other images": OtherImages(),
    "textures": Textures(),
    "folder": FolderSource(textures_KHW=torch.rand(3, 20, 120, generator=Generator().manual_seed(2))),
}
KINDS: dict[str, Callable[[float], Faults]] = {
    **{
        f"perlin of {name}": lambda share, sources=sources: PerlinFaults(probability=share, sources=sources)
        for name, sources in SOURCES.items()
    },
    "wide patch": lambda share: PatchFaults(probability=share),
    "tall patches": lambda share: PatchFaults(probability=share, ratio=(1.5, 4.0), width=(3, 10), count=3),
    "band": lambda share: BandFaults(probability=share),
    "tall band": lambda share: BandFaults(probability=share, height=(7, 21)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def drawn(kind: str, images_BHW: Tensor, *, seed: int = 3, probability: float = 0.5) -> Faulty:
    return KINDS[kind](probability)(images_BHW, generator=Generator().manual_seed(seed))


def sides(mask_HW: Tensor) -> tuple[int, int, int, int]:
    """Return first row, first column, height and width of the box around a mask."""
    rows, columns = mask_HW.any(dim=1).nonzero(), mask_HW.any(dim=0).nonzero()
    row, column = int(rows.min()), int(columns.min())
    return row, column, int(rows.max()) - row + 1, int(columns.max()) - column + 1


@every_kind
def test_images_differ_inside_the_mask_and_nowhere_else(kind: str) -> None:
    images_BHW = IMAGES.clone()
    faulty = drawn(kind, images_BHW)
    assert torch.equal(images_BHW, IMAGES), "the originals were written to"
    assert faulty.mask_BHW.dtype == torch.bool
    assert torch.equal(faulty.images_BHW[~faulty.mask_BHW], IMAGES[~faulty.mask_BHW])
    altered = (faulty.images_BHW != IMAGES)[faulty.mask_BHW]
    assert altered.float().mean() > 0.999
    assert torch.equal(faulty.mask_BHW.any(dim=2).any(dim=1), faulty.severity_B > 0)


@every_kind
def test_the_generator_alone_decides(kind: str) -> None:
    first, again, other = (drawn(kind, IMAGES, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.mask_BHW, other.mask_BHW)
    assert not torch.equal(first.severity_B, other.severity_B)


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
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_type_and_shape_are_kept(kind: str, dtype: torch.dtype) -> None:
    images_BHW = IMAGES[:20].to(dtype).mT
    faulty = drawn(kind, images_BHW)
    assert faulty.images_BHW.dtype == dtype
    assert faulty.severity_B.dtype == torch.float32
    assert faulty.images_BHW.shape == faulty.mask_BHW.shape == images_BHW.shape
    assert faulty.severity_B.shape == (20,)
    assert torch.equal(faulty.images_BHW[~faulty.mask_BHW], images_BHW[~faulty.mask_BHW])


@every_kind
def test_no_image_and_the_smallest_image_are_served(kind: str) -> None:
    assert drawn(kind, IMAGES[:0]).images_BHW.shape == (0, 31, 95)
    assert drawn(kind, IMAGES[:1, :2, :2], probability=1).mask_BHW.any()


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"perlin of other images", "band", "tall band"}))
def test_a_fault_does_not_depend_on_the_images_after_it(kind: str) -> None:
    all_of_them = drawn(kind, IMAGES[:40])
    few = drawn(kind, IMAGES[:5])
    others = drawn(kind, torch.cat([IMAGES[:5], IMAGES[100:135]]))
    for found in (few, others):
        assert all(torch.equal(a[:5], b[:5]) for a, b in zip(all_of_them, found, strict=True))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("perlin")])
def test_mixed_precision_around_it_changes_no_fault(kind: str) -> None:
    expected = drawn(kind, IMAGES[:10])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = drawn(kind, IMAGES[:10])
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("kind", ["wide patch", "tall patches", "band"])
def test_nothing_is_clipped(kind: str) -> None:
    images_BHW = torch.randn(200, 31, 95, generator=Generator().manual_seed(5))
    faulty = drawn(kind, images_BHW).images_BHW
    assert (faulty.amax(dim=(1, 2)) > images_BHW.amax(dim=(1, 2))).sum() > 20
    assert kind == "band" or (faulty.amin(dim=(1, 2)) < images_BHW.amin(dim=(1, 2))).sum() > 20


def bright(images_BHW: Tensor, *, generator: Generator) -> Tensor:
    del generator
    return torch.full_like(images_BHW, 7.0)


def test_perlin_faults_are_the_blend_of_texture_and_image() -> None:
    faulty = PerlinFaults(probability=1, sources=bright)(IMAGES, generator=Generator().manual_seed(3))
    beta_B11 = 1 - faulty.severity_B[:, None, None]
    expected = (1 - beta_B11) * 7.0 + beta_B11 * IMAGES
    assert torch.equal(faulty.images_BHW, torch.where(faulty.mask_BHW, expected, IMAGES))
    assert faulty.images_BHW.max() > 6
    assert 0 < faulty.severity_B.min() < 0.05
    assert 0.85 < faulty.severity_B.max() <= 0.9
    assert faulty.severity_B.mean() == pytest.approx(0.45, abs=3 * 0.9 / (12 * 400) ** 0.5)


def test_perlin_masks_are_of_every_size_and_never_empty() -> None:
    share_B = drawn("perlin of textures", IMAGES, probability=1).mask_BHW.float().mean(dim=(1, 2))
    assert share_B.min() > 0
    assert share_B.min() < 0.01 < 0.2 < share_B.max() < 0.6


def source_of(image_HW: Tensor, patch_hw: Tensor) -> tuple[int, int]:
    """Return the one place where an image holds a patch."""
    height, width = patch_hw.shape
    windows = image_HW.unfold(0, height, 1).unfold(1, width, 1)
    error = (windows - patch_hw).abs().amax(dim=(2, 3))
    ((row, column),) = (error < 1e-3).nonzero().tolist()
    return row, column


def test_a_patch_is_cut_from_the_image_and_added_times_severity_elsewhere() -> None:
    images_BHW = IMAGES[:100, :, :60]
    faults = PatchFaults(probability=1, width=(20, 50), severity_max=2)
    faulty = faults(images_BHW, generator=Generator().manual_seed(3))
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
    faults = PatchFaults(probability=1, width=(8, 12), count=3)
    faulty = faults(ones, generator=Generator().manual_seed(3))
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
    uniform = torch.rand(500, NUMBERS, generator=Generator().manual_seed(1))
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


@pytest.mark.parametrize(("ratio", "wide"), [(None, True), ((1.5, 2.5), False)])
def test_patches_are_wide_unless_asked_to_be_tall(ratio: tuple[float, float] | None, wide: bool) -> None:
    faults = PatchFaults(probability=1) if ratio is None else PatchFaults(probability=1, ratio=ratio)
    images_BHW = IMAGES[:1, :1, :1].expand(200, 224, 224)
    for mask in faults(images_BHW, generator=Generator().manual_seed(3)).mask_BHW:
        _, _, height, width = sides(mask)
        low, high = faults.ratio
        assert (width > height) is wide
        assert 20 <= width <= 80
        assert low * width - 0.5 <= height <= high * width + 0.5


def test_the_severity_of_a_patch_is_uniform_up_to_its_maximum() -> None:
    faults = PatchFaults(probability=1, severity_max=2)
    severity_B = faults(IMAGES, generator=Generator().manual_seed(3)).severity_B
    assert 0 < severity_B.min() < 0.1
    assert 1.9 < severity_B.max() <= 2
    assert severity_B.mean() == pytest.approx(1, abs=3 * 2 / (12 * 400) ** 0.5)


def test_a_band_is_added_where_the_mask_says_and_nowhere_else() -> None:
    faulty = horizontal_bands(IMAGES, seed=3, position=0)
    added = faulty.images_BHW - IMAGES
    assert not added[~faulty.mask_BHW].any()
    amplitude_B = faulty.severity_B * IMAGES.amax(dim=(1, 2))
    expected = amplitude_B.view(-1, 1, 1).expand_as(added)[faulty.mask_BHW]
    assert (added[faulty.mask_BHW] - expected).abs().max() <= 1e-6
    assert faulty.images_BHW.max() > IMAGES.max(), "clipped"


def test_bands_are_thin_long_and_sometimes_broken() -> None:
    mask_BHW = horizontal_bands(IMAGES, seed=3, position=0).mask_BHW
    heights_B = mask_BHW.any(dim=2).sum(dim=1)
    assert set(heights_B.tolist()) <= set(range(LARGEST_HEIGHT + 1))
    assert {1, 2, 3} <= set(heights_B.tolist())
    columns_BW = mask_BHW.any(dim=1)
    broken = [bool((row.nonzero().diff(dim=0) > 1).any()) for row in columns_BW]
    assert 0.3 < sum(broken) / len(broken) < 0.6
    assert columns_BW.sum(dim=1).float().mean() > 20


@pytest.mark.parametrize(("seed", "position"), [(4, 0), (3, 1)])
def test_the_same_place_in_a_run_has_the_same_faults(seed: int, position: int) -> None:
    first, again = (horizontal_bands(IMAGES, seed=3, position=0) for _ in range(2))
    assert torch.equal(first.images_BHW, again.images_BHW)
    assert not torch.equal(first.mask_BHW, horizontal_bands(IMAGES, seed=seed, position=position).mask_BHW)


def test_band_faults_are_the_horizontal_bands_but_never_vanish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinomaly_hd.models.faults.derive", lambda *_: 3)
    images_BHW = IMAGES[..., :4]
    old = horizontal_bands(images_BHW, seed=0, position=0)
    new = drawn("band", images_BHW, probability=1)
    there = old.mask_BHW.any(dim=2).any(dim=1)
    assert not there.all(), "short broken bands may lose every column"
    assert all(torch.equal(a[there], b[there]) for a, b in zip(old, new, strict=True))
    assert new.mask_BHW.any(dim=2).any(dim=1).all()


def test_bands_have_the_heights_asked_for() -> None:
    faulty = drawn("tall band", IMAGES, probability=1)
    heights_B = faulty.mask_BHW.any(dim=2).sum(dim=1)
    assert (heights_B.min(), heights_B.max()) == (7, 21)
    assert drawn("tall band", IMAGES[:, :5], probability=1).mask_BHW.all(dim=1).any(dim=1).all(), "cut to fit"


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "share above 1": (
        lambda: BandFaults(probability=1.5),
        "probability=1.5: use a share of the images, 0..1",
    ),
    "share below 0": (lambda: PatchFaults(probability=-0.1), "probability=-0.1"),
    "no number": (lambda: PerlinFaults(probability=float("nan"), sources=OtherImages()), "probability=nan"),
    "width reversed": (
        lambda: PatchFaults(width=(80, 20)),
        "width=80-20: use a smallest and a largest pixels",
    ),
    "width 0": (lambda: PatchFaults(width=(0, 20)), "width=0-20"),
    "ratio 0": (lambda: PatchFaults(ratio=(0.0, 0.5)), "ratio=0.0-0.5"),
    "no patch": (lambda: PatchFaults(count=0), "count=0: use 1 patch or more"),
    "no severity": (lambda: PatchFaults(severity_max=0), "severity_max=0: use a finite number above 0"),
    "any severity": (lambda: PatchFaults(severity_max=float("inf")), "severity_max=inf"),
    "no height": (lambda: BandFaults(height=(0, 3)), "height=0-3"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_argument_out_of_range_is_refused_by_name(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        make()
    assert "\n" not in str(caught.value)


@every_kind
@pytest.mark.parametrize(
    "images",
    [IMAGES[0], IMAGES[:, :1], IMAGES.int(), IMAGES[:, None]],
    ids=["one", "one row", "integers", "channels"],
)
def test_what_is_no_batch_of_maps_is_refused(kind: str, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"faults need float images \(B, H, W\)"):
        drawn(kind, images)


@pytest.fixture(scope="module")
def thousand_BHW() -> Tensor:
    return torch.rand(1000, 224, 224, generator=Generator().manual_seed(1))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"tall patches", "tall band"}))
def test_a_thousand_images_take_few_calls_an_image(kind: str, thousand_BHW: Tensor) -> None:
    assert functions_called(lambda: drawn(kind, thousand_BHW, probability=1)) < 20 * len(thousand_BHW)
