"""StableAdamW and the warm-up cosine schedule."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

# Parameters that are updated at once, and two places for intermediate values of each.
Share = tuple[list[Tensor], ...]


def warm_cosine(
    step: int, *, base: float, final: float, warmup: int, total: int, start: float = 0.0
) -> float:
    """Return the learning rate of optimizer step ``step`` (from 0): linear start to base, cosine to final."""
    if step < warmup:
        return start + (base - start) * step / (warmup - 1) if warmup > 1 else start
    if step >= total:
        return final
    progress = (step - warmup) / (total - warmup)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * progress))


class StableAdamW(Optimizer):
    """AdamW whose step shrinks where the gradient outruns its own second moment (update clipping).

    Wortsman et al. 2023, as in the original Dinomaly (golden g5). No value leaves the device during a step.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-10,
        weight_decay: float = 1e-4,
        amsgrad: bool = True,
        clip_threshold: float = 1.0,
    ) -> None:
        given = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**given, "amsgrad": amsgrad, "clip_threshold": clip_threshold})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters on the device where they will be trained."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        # At once: in the midst of a first step moments would lie between what it frees, and on the CPU its
        # second step would find no room there.
        for parameter in group["params"]:
            moments = {name: torch.zeros_like(parameter.detach()) for name in _moments(group)}
            self.state[parameter] = {"step": 0, **moments}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for share in _shares([each for each in group["params"] if each.grad is not None]):
                self._update(share, group)
        return loss

    def _update(self, share: Share, group: dict[str, Any]) -> None:
        """Update parameters of one group, each operation on all of them at once."""
        parameters, denominators, ratios = share
        for parameter in parameters:
            self.state[parameter]["step"] += 1
        first, second, *largest = (
            [self.state[parameter][name] for parameter in parameters] for name in _moments(group)
        )
        steps = [self.state[parameter]["step"] for parameter in parameters]
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        beta1, beta2 = group["betas"]
        # Weight decay is decoupled, times the rate.
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_mul_(first, beta1)
        torch._foreach_add_(first, gradients, alpha=1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, value=1 - beta2)
        if largest:  # with amsgrad the largest second moment so far divides
            torch._foreach_maximum_(largest[0], second)
            second = largest[0]
        torch._foreach_copy_(denominators, second)
        torch._foreach_sqrt_(denominators)
        torch._foreach_div_(denominators, [math.sqrt(1 - beta2**step) for step in steps])
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_copy_(ratios, gradients)
        torch._foreach_div_(ratios, denominators)
        # The root mean square of g / sqrt(v) over a tensor, if above the threshold, divides its rate.
        shrinks = [
            (ratio.square_().mean().sqrt() / group["clip_threshold"]).clamp_(min=1) for ratio in ratios
        ]
        updates = ratios
        torch._foreach_copy_(updates, first)
        torch._foreach_div_(updates, denominators)
        for update, shrink, step in zip(updates, shrinks, steps, strict=True):
            update.mul_(group["lr"] / (1 - beta1**step) / shrink)
        torch._foreach_sub_(parameters, updates)


def _moments(group: dict[str, Any]) -> list[str]:
    return ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]


def _shares(parameters: list[Tensor]) -> Iterator[Share]:
    """Yield all of a GPU's parameters at once, one kernel an operation, and the CPU's one after the other."""
    elsewhere = [each for each in parameters if each.device.type != "cpu"]
    if elsewhere:
        yield elsewhere, *([torch.empty_like(each) for each in elsewhere] for _ in range(2))
    # On the CPU all use the same places, which stay in the processor's cache: new memory for each tensor took
    # three times as long.
    here = [each for each in parameters if each.device.type == "cpu"]
    for dtype in {each.dtype for each in here}:
        alike = [each for each in here if each.dtype == dtype]
        places = torch.empty(2, max(each.numel() for each in alike), dtype=dtype)
        for each in alike:
            yield [each], *([place[: each.numel()].view(each.shape)] for place in places)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "stable_adamw": StableAdamW,
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
}
