"""What one training step gets to see."""

# B batch, H W pixels

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Samples of one optimizer step.

    Attributes:
        images_BHW: Raw maps, float32.
        domain_B: Number of each sample's domain, int64.
        encoded: The frozen half's output, leading dimension B; None where it is still to be computed.
    """

    images_BHW: Tensor
    domain_B: Tensor
    encoded: Tensor | None
