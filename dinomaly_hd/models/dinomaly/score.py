"""From token distances to anomaly maps and image scores; windows and tails that other families use too."""

# B batch, S groups, h w token grid, H W pixels

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dinomaly_hd.models.detector import Prediction

Border = Literal["zero", "reflect"]
BLUR_SIZE, BLUR_SIGMA = 5, 4.0
TOP_SHARE = 0.01


def upsample(
    distance_BShw: Tensor,
    *,
    pool: Callable[[Tensor], Tensor],
    image_size: tuple[int, int],
    map_size: tuple[int, int],
) -> Tensor:
    """Return one map (B, H, W): groups bilinear to the image size (corners aligned), pooled, to the maps."""
    large_BSHW = F.interpolate(distance_BShw, size=image_size, mode="bilinear", align_corners=True)
    pooled_B1HW = pool(large_BSHW).unsqueeze(1)
    return F.interpolate(pooled_B1HW, size=map_size, mode="bilinear", align_corners=False).squeeze(1)


def gaussian_kernel(size: int, sigma: float) -> Tensor:
    """Return a normalised size x size Gaussian window in float32, as the original's always is."""
    offset = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    square = offset[:, None].square() + offset[None, :].square()
    kernel = torch.exp(-square / (2 * sigma**2)) / (2 * math.pi * sigma**2)
    return kernel / kernel.sum()


def filtered(map_BHW: Tensor, kernel_hw: Tensor, *, border: Border) -> Tensor:
    """Return maps of the same size, each pixel a sum of its neighbours weighted by a symmetric odd kernel.

    A sum of shifted maps: a CPU's convolution with one channel takes several times as long.
    """
    rows, columns = kernel_hw.shape[0] // 2, kernel_hw.shape[1] // 2
    mode = "reflect" if border == "reflect" else "constant"
    padded = F.pad(map_BHW.unsqueeze(1), (columns, columns, rows, rows), mode=mode).squeeze(1)
    smoothed = torch.zeros_like(map_BHW)
    for top, weights in enumerate(kernel_hw.tolist()):
        for left, weight in enumerate(weights):
            smoothed.add_(
                padded[:, top : top + map_BHW.shape[1], left : left + map_BHW.shape[2]], alpha=weight
            )
    return smoothed


def blur(map_BHW: Tensor, *, border: Border) -> Tensor:
    """Smooth with the original's 5 x 5 window of sigma 4; its zero padding darkens the border."""
    return filtered(map_BHW, gaussian_kernel(BLUR_SIZE, BLUR_SIGMA), border=border)


def top_share_score(map_BHW: Tensor, *, share: float = TOP_SHARE) -> Tensor:
    """Return the mean of the largest ``share`` of pixels per image, at least one pixel, shape (B,)."""
    flat_BP = map_BHW.flatten(1)
    k = max(1, int(flat_BP.shape[1] * share))
    return torch.topk(flat_BP, k, dim=1).values.mean(dim=1)


def row_context_mean(distance_BShw: Tensor, *, k: int) -> Tensor:
    """Average each token with its k neighbours to the left and right, fewer at the ends of a row."""
    if k == 0:
        return distance_BShw
    *lead, width = distance_BShw.shape
    lines = distance_BShw.reshape(math.prod(lead), 1, width)
    return F.avg_pool1d(lines, 2 * k + 1, stride=1, padding=k, count_include_pad=False).reshape(*lead, width)


def predict(
    distance_BShw: Tensor,
    *,
    pool: Callable[[Tensor], Tensor],
    image_size: tuple[int, int],
    map_size: tuple[int, int],
    border: Border,
    row_context: int,
) -> Prediction:
    """Return raw maps (B, H, W) and scores (B,) from token distances (spec/dinomaly.md, Map and score)."""
    smoothed = row_context_mean(distance_BShw, k=row_context)
    map_BHW = upsample(smoothed, pool=pool, image_size=image_size, map_size=map_size)
    map_BHW = blur(map_BHW, border=border)
    return Prediction(map_BHW, top_share_score(map_BHW))
