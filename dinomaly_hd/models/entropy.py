"""Angular power entropy: how much of a map's structure points one way."""

# B batch, H W pixels, A angular sectors

import math

import torch
from torch import Tensor

SECTORS = 36


def angular_power_entropy(images_BHW: Tensor) -> Tensor:
    """Return the entropy of the power spectrum over directions, 0 (one direction) .. 1 (all alike), (B,).

    The power of the 2-D spectrum without its constant part is summed over 36 sectors of 5 degrees (a
    direction and its opposite are one); the entropy of the shares is divided by log 36. A map without any
    variation has 1. The definition is ours: the authors' documents name the quantity only.
    """
    height, width = images_BHW.shape[1:]
    centred = images_BHW.double() - images_BHW.double().mean(dim=(1, 2), keepdim=True)
    power_BP = torch.fft.fft2(centred).abs().square().flatten(1)
    row_P, column_P = (
        axis.flatten()
        for axis in torch.meshgrid(
            torch.fft.fftfreq(height, dtype=torch.float64, device=images_BHW.device),
            torch.fft.fftfreq(width, dtype=torch.float64, device=images_BHW.device),
            indexing="ij",
        )
    )
    angle_P = torch.atan2(row_P, column_P).remainder(math.pi)
    sector_P = (angle_P * (SECTORS / math.pi)).long().clamp(max=SECTORS - 1)
    sector_P = torch.where((row_P == 0) & (column_P == 0), -1, sector_P)
    share_BA = torch.stack([power_BP[:, sector_P == a].sum(dim=1) for a in range(SECTORS)], dim=1)
    total_B1 = share_BA.sum(dim=1, keepdim=True)
    share_BA = torch.where(total_B1 > 0, share_BA / total_B1.clamp(min=1e-300), 1 / SECTORS)
    entropy_B: Tensor = torch.special.entr(share_BA).sum(dim=1) / math.log(SECTORS)
    return entropy_B
