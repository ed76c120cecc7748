"""What one training step gets to see."""

# B batch, H W pixels

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Samples of one optimizer step."""

    images_BHW: Tensor  # raw maps, float32
    domain_B: Tensor  # number of each sample's domain, int64
    encoded: Tensor | None  # the frozen half's output (B, ...); None where it is still to be computed
