"""One optimizer step of any detector, as Lightning's module."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from dinomaly_hd.batch import Batch
from dinomaly_hd.config.run import TrainingConfig
from dinomaly_hd.errors import NonFiniteError
from dinomaly_hd.models.detector import Detector, encode_in_groups
from dinomaly_hd.training.optim import OPTIMIZERS, warm_cosine

# Gets metrics and their step; training knows nothing else of journals and MLflow.
Log = Callable[[Mapping[str, float], int], None]


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
