"""From the groups' distances to one, to anomaly maps and image scores, with windows that other families use.

The groups' distance maps become one in the loss as they do at inference.
"""

# B batch, S groups (2), x tokens or pixels, h w token grid, H W pixels

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinomaly_hd.config.base import GROUPS, LEARNED, weights_of
from dinomaly_hd.config.dinomaly import GemDistance, MeanDistance, WeightedDistance
from dinomaly_hd.models.detector import Prediction, resized

Border = Literal["zero", "reflect"]
BLUR_SIZE, BLUR_SIGMA = 5, 4.0
TOP_SHARE = 0.01
LEAST_DISTANCE = 1e-6
LEAST_WEIGHT = 0.1
ENTROPY_SHARE = 0.01
WEIGHT_RATE = 10.0


class MeanPooling(nn.Module):
    """Pools (B, S, ...) to (B, ...), here by the mean over groups (Dinomaly's); the others derive from it."""

    rate_factor = 1.0  # on the scheduled learning rate of its own parameters

    def __init__(self, config: MeanDistance | None = None) -> None:
        del config
        super().__init__()

    def forward(self, distance_BSx: Tensor) -> Tensor:
        return distance_BSx.mean(dim=1)

    def weights(self, like: Tensor) -> Tensor:
        """Return what each group counts in a loss of groups, (S,), sum 1, on the device of ``like``."""
        return like.new_full((GROUPS,), 1 / GROUPS)

    def penalty(self) -> Tensor | float:
        """Return what is added to the loss."""
        return 0.0

    def state(self) -> dict[str, Tensor]:
        """Return scalars worth logging."""
        return {}


class GemPooling(MeanPooling):
    """The generalised mean (mean_s max(d_s, 1e-6)^P)^(1/P): the larger P, the nearer to the largest group."""

    def __init__(self, config: GemDistance) -> None:
        super().__init__()
        self.p = config.gem_p

    def forward(self, distance_BSx: Tensor) -> Tensor:
        # The largest is taken out first: a power of small distances would underflow.
        clamped = distance_BSx.clamp(min=LEAST_DISTANCE)
        largest = clamped.amax(dim=1, keepdim=True).detach()
        mean = (clamped / largest).pow(self.p).mean(dim=1)
        return largest.squeeze(1) * mean.pow(1 / self.p)


class WeightedPooling(MeanPooling):
    """sum_s w_s d_s with fixed weights, or w = softmax(theta) between a floor of .1 and .9, theta learned.

    The learned weights add -.01 times their entropy to the loss, against a collapse onto the group that is
    easiest to rebuild; theta has ten times the scheduled learning rate (spec/variants.md, Scale).
    """

    rate_factor = WEIGHT_RATE

    def __init__(self, config: WeightedDistance) -> None:
        super().__init__()
        self.learned = config.scale_weights == LEARNED
        if self.learned:
            self.theta = nn.Parameter(torch.zeros(GROUPS))
        else:
            self.register_buffer("fixed_S", torch.tensor(weights_of(config.scale_weights)), persistent=False)

    def forward(self, distance_BSx: Tensor) -> Tensor:
        shape = (1, GROUPS) + (1,) * (distance_BSx.dim() - 2)
        return (self.weights(distance_BSx).reshape(shape) * distance_BSx).sum(dim=1)

    def weights(self, like: Tensor) -> Tensor:
        if not self.learned:
            return self.get_buffer("fixed_S").to(like)
        share = 1 - GROUPS * LEAST_WEIGHT
        return (LEAST_WEIGHT + share * torch.softmax(self.theta, dim=0)).to(like)

    def penalty(self) -> Tensor | float:
        if not self.learned:
            return 0.0
        weight_S = self.weights(self.theta)
        return ENTROPY_SHARE * (weight_S * weight_S.log()).sum()

    def state(self) -> dict[str, Tensor]:
        if not self.learned:
            return {}
        weight_S = self.weights(self.theta).detach()
        return {f"scale_weight_{group}": weight for group, weight in enumerate(weight_S.unbind())}


def upsample(
    distance_BShw: Tensor,
    *,
    pool: Callable[[Tensor], Tensor],
    image_size: tuple[int, int],
    map_size: tuple[int, int],
) -> Tensor:
    """Return one map (B, H, W): groups bilinear to the image size (corners aligned), pooled, to the maps."""
    large_BSHW = F.interpolate(distance_BShw, size=image_size, mode="bilinear", align_corners=True)
    return resized(pool(large_BSHW), map_size)


def gaussian_kernel(size: int, sigma: float) -> Tensor:
    """Return a normalised size x size Gaussian window in float32, as the original's always is."""
    offset = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    square = offset[:, None].square() + offset[None, :].square()
    kernel = torch.exp(-square / (2 * sigma**2)) / (2 * math.pi * sigma**2)
    return kernel / kernel.sum()


def filtered(map_BHW: Tensor, kernel: Sequence[Sequence[float]], *, border: Border) -> Tensor:
    """Return maps of the same size, each pixel a sum of its neighbours weighted by a symmetric odd kernel."""
    rows, columns = len(kernel) // 2, len(kernel[0]) // 2
    mode = "reflect" if border == "reflect" else "constant"
    padded = F.pad(map_BHW.unsqueeze(1), (columns, columns, rows, rows), mode=mode).squeeze(1)
    # A sum of shifted maps: a CPU's convolution with one channel takes several times as long.
    smoothed = torch.zeros_like(map_BHW)
    for top, weights in enumerate(kernel):
        for left, weight in enumerate(weights):
            smoothed.add_(
                padded[:, top : top + map_BHW.shape[1], left : left + map_BHW.shape[2]], alpha=weight
            )
    return smoothed


BLUR = gaussian_kernel(BLUR_SIZE, BLUR_SIGMA).tolist()  # once: to a graph of torch.export a constant


def blur(map_BHW: Tensor, *, border: Border) -> Tensor:
    """Smooth with the original's 5 x 5 window of sigma 4; its zero padding darkens the border."""
    return filtered(map_BHW, BLUR, border=border)


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
