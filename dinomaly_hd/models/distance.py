"""How the distance maps of the groups become one: the same in the loss and at inference."""

# B batch, S groups (2); further dimensions (tokens or pixels) follow

from typing import Protocol

import torch
from torch import Tensor, nn

from dinomaly_hd.config import GROUPS

LEAST_DISTANCE = 1e-6
LEAST_WEIGHT = 0.1
ENTROPY_SHARE = 0.01
WEIGHT_RATE = 10.0


class Pooling(Protocol):
    """Pools (B, S, ...) to (B, ...); ``weights`` (S,) is what each group counts in a loss of groups."""

    rate_factor: float

    def __call__(self, distance_BSx: Tensor) -> Tensor: ...

    def weights(self, like: Tensor) -> Tensor:
        """Return the groups' weights (S,), sum 1, on the device of ``like``."""

    def penalty(self) -> dict[str, Tensor]:
        """Return what is added to the loss, by name; empty for fixed poolings."""

    def state(self) -> dict[str, Tensor]:
        """Return scalars worth logging."""


class MeanPooling(nn.Module):
    """The mean over groups (Dinomaly's)."""

    rate_factor = 1.0

    def forward(self, distance_BSx: Tensor) -> Tensor:
        return distance_BSx.mean(dim=1)

    def weights(self, like: Tensor) -> Tensor:
        return like.new_full((GROUPS,), 1 / GROUPS)

    def penalty(self) -> dict[str, Tensor]:
        return {}

    def state(self) -> dict[str, Tensor]:
        return {}


class GemPooling(MeanPooling):
    """The generalised mean (mean_s max(d_s, 1e-6)^P)^(1/P): the larger P, the nearer to the largest group.

    Args:
        p: P > 0.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

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

    Args:
        fixed: The weights, or None to learn them.
    """

    rate_factor = WEIGHT_RATE

    def __init__(self, fixed: list[float] | None) -> None:
        super().__init__()
        self.learned = fixed is None
        if fixed is None:
            self.theta = nn.Parameter(torch.zeros(GROUPS))
        else:
            self.register_buffer("fixed_S", torch.tensor(fixed), persistent=False)

    def forward(self, distance_BSx: Tensor) -> Tensor:
        shape = (1, GROUPS) + (1,) * (distance_BSx.dim() - 2)
        return (self.weights(distance_BSx).reshape(shape) * distance_BSx).sum(dim=1)

    def weights(self, like: Tensor) -> Tensor:
        if not self.learned:
            return self.get_buffer("fixed_S").to(like)
        share = 1 - GROUPS * LEAST_WEIGHT
        return (LEAST_WEIGHT + share * torch.softmax(self.theta, dim=0)).to(like)

    def penalty(self) -> dict[str, Tensor]:
        if not self.learned:
            return {}
        weight_S = self.weights(self.theta)
        return {"scale_entropy": ENTROPY_SHARE * (weight_S * weight_S.log()).sum()}

    def state(self) -> dict[str, Tensor]:
        if not self.learned:
            return {}
        weight_S = self.weights(self.theta).detach()
        return {f"scale_weight_{group}": weight for group, weight in enumerate(weight_S.unbind())}
