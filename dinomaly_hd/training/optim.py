"""StableAdamW and the warm-up cosine schedule of Dinomaly."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


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


def make_optimizer(name: str, groups: Iterable[Any], *, lr: float, weight_decay: float) -> Optimizer:
    """Return the optimizer ``name``, one of ``OPTIMIZERS``."""
    return OPTIMIZERS[name](groups, lr=lr, weight_decay=weight_decay)


class StableAdamW(Optimizer):
    """AdamW whose step shrinks where the gradient outruns its own second moment (update clipping).

    The root mean square of g / sqrt(v) over a tensor, divided by ``clip_threshold`` and at least 1,
    divides that tensor's learning rate (Wortsman et al. 2023, as in the original Dinomaly; golden g5).
    No value leaves the device during a step.

    Args:
        params: Parameters or groups.
        lr: Learning rate.
        betas: Decay of first and second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled, multiplied by lr.
        amsgrad: Whether the largest second moment so far divides.
        clip_threshold: RMS above which a tensor's step shrinks.
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
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "clip_threshold": clip_threshold,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            for name in ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])):
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        second = state["exp_avg_sq"]
        if group["amsgrad"]:
            second = torch.maximum(state["max_exp_avg_sq"], second, out=state["max_exp_avg_sq"])
        correction1, correction2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
        denominator = (second.sqrt() / math.sqrt(correction2)).add_(group["eps"])
        rms = (gradient / denominator).square().mean().sqrt()
        shrink = (rms / group["clip_threshold"]).clamp(min=1)
        parameter.sub_((state["exp_avg"] / denominator).mul_(group["lr"] / correction1 / shrink))


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "stable_adamw": StableAdamW,
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
}
