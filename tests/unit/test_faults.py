"""Synthetic bands: additive, never clipped, exact masks, a function of (seed, position)."""

import pytest
import torch

from dinomaly_hd.models.faults import LARGEST_HEIGHT, horizontal_bands

IMAGES = torch.rand(400, 31, 95, generator=torch.Generator().manual_seed(1)) + 0.5


def test_a_band_is_added_where_the_mask_says_and_nowhere_else() -> None:
    faulty = horizontal_bands(IMAGES, seed=3, position=0)
    added = faulty.images_BHW - IMAGES
    assert not added[~faulty.mask_BHW].any()
    amplitude_B = faulty.severity_B * IMAGES.amax(dim=(1, 2))
    expected = amplitude_B.view(-1, 1, 1).expand_as(added)[faulty.mask_BHW]
    torch.testing.assert_close(added[faulty.mask_BHW], expected, atol=1e-6, rtol=0)
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
