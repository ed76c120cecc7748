"""One optimizer step of any detector: the Lightning module, StableAdamW, the warm-up cosine schedule."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import lightning
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from dinomaly_hd.batch import Batch
from dinomaly_hd.config.run import TrainingConfig
from dinomaly_hd.errors import NonFiniteError
from dinomaly_hd.models.detector import Detector, encode_in_groups

# Parameters that are updated at once, and two places for intermediate values of each.
Share = tuple[list[Tensor], ...]
# Gets metrics and their step; training knows nothing else of journals and MLflow.
Log = Callable[[Mapping[str, float], int], None]


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


class DetectorTask(lightning.LightningModule):
    """Trains a detector by optimizer steps; ``position`` is the next step and its only state."""

    def __init__(
        self,
        detector: Detector,
        *,
        training: TrainingConfig,
        steps_per_epoch: int,  # counts only with lr_schedule_interval=epoch
        log: Log,
        name_files: Callable[[int], str],  # of a step, for error messages
        position: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.detector, self.training_config = detector, training
        self.steps_per_epoch, self.log_step, self.name_files = steps_per_epoch, log, name_files
        self.position = position
        self.nonfinite, self.loss = 0, math.nan
        groups = detector.parameter_groups()
        self.trained = [parameter for group in groups for parameter in group.parameters]
        self.optimizer = OPTIMIZERS[training.optimizer](
            [{"params": group.parameters, "rate_factor": group.rate_factor} for group in groups],
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
        )

    def configure_optimizers(self) -> Optimizer:
        return self.optimizer

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step; per epoch only to repeat old runs (spec/dinomaly.md, Optimisation)."""
        config = self.training_config
        clock = step if config.lr_schedule_interval == "step" else step // self.steps_per_epoch
        return warm_cosine(
            clock,
            base=config.learning_rate,
            final=config.final_rate_share * config.learning_rate,
            warmup=config.warmup_steps,
            total=config.max_steps,
        )

    def training_step(self, batch: Batch, batch_index: int) -> None:
        del batch_index
        optimizer: Any = self.optimizers()
        rate = self.learning_rate(self.position)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        if batch.encoded is None:
            batch = self._encoded(batch)
        statistics = self._running_statistics()
        optimizer.zero_grad()  # before the forward pass, which then has the gradients' memory
        loss = self.detector.training_loss(batch, step=self.position)
        # Lightning's autocast spans the whole step. Backwards it would take products that were float32 in
        # bfloat16, and make differences of large terms noise.
        with torch.autocast(loss.total.device.type, enabled=False):
            self.manual_backward(loss.total)
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.training_config.gradient_clip or math.inf)
        values = {"loss": loss.total.detach(), "grad_norm": norm, **loss.parts}
        # One transfer from the device instead of one a value.
        numbers = dict(zip(values, torch.stack([v.float() for v in values.values()]).tolist(), strict=True))
        self.loss = numbers["loss"]
        if math.isfinite(numbers["loss"]) and math.isfinite(numbers["grad_norm"]):
            optimizer.step()
        else:
            self._refuse(numbers, rate)
            for kept, before in statistics:
                kept.copy_(before)
        report = {f"train/{name}": value for name, value in numbers.items()}
        self.log_step({**report, "train/lr": rate, "train/nonfinite": self.nonfinite}, self.position)
        self.position += 1

    def _running_statistics(self) -> list[tuple[Tensor, Tensor]]:
        """Return what a forward pass changes by itself, with copies, where a step may be skipped."""
        if self.training_config.on_nonfinite == "stop":
            return []
        layers = [layer for layer in self.detector.modules() if isinstance(layer, _BatchNorm)]
        return [(kept, kept.clone()) for layer in layers for kept in layer.buffers()]

    def _encoded(self, batch: Batch) -> Batch:
        if not self.detector.alters_images:
            return batch._replace(encoded=encode_in_groups(self.detector, batch.images_BHW))
        images_BHW = self.detector.alter(batch.images_BHW, step=self.position)
        return batch._replace(images_BHW=images_BHW, encoded=self.detector.encode(images_BHW))

    def _refuse(self, numbers: Mapping[str, float], rate: float) -> None:
        self.nonfinite += 1
        if self.training_config.on_nonfinite == "stop":
            raise NonFiniteError(
                f"step {self.position}: loss {numbers['loss']:g}, gradient norm {numbers['grad_norm']:g}, "
                f"lr {rate:g}; weights are those of the step before; "
                f"files: {self.name_files(self.position)}; "
                "lower learning_rate, or pass on_nonfinite=skip to skip such steps"
            )
