"""How the distance maps of the groups become one: the same in the loss and at inference."""

# B batch, S groups (2); further dimensions (tokens or pixels) follow

import torch
from torch import Tensor, nn

from dinomaly_hd.config import GROUPS, LEARNED, GemDistance, MeanDistance, WeightedDistance, weights_of

LEAST_DISTANCE = 1e-6
LEAST_WEIGHT = 0.1
ENTROPY_SHARE = 0.01
WEIGHT_RATE = 10.0


class MeanPooling(nn.Module):
    """Pools (B, S, ...) to (B, ...), here by the mean over groups (Dinomaly's); the others derive from it."""

    rate_factor = 1.0
    """On the scheduled learning rate of its own parameters."""

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
