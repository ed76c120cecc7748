"""One training from start or from its newest checkpoint to its last step."""

import gc
import logging
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import Dataset

from dinomaly_hd.batch import Batch
from dinomaly_hd.config.run import RunConfig, TrainingConfig
from dinomaly_hd.data.features import StepBatches, step_loader
from dinomaly_hd.errors import ConfigError, Interrupted, OutOfMemory, SignalGuard, reason_of
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.progress import Progress
from dinomaly_hd.training.checkpoint import Checkpoint, load_trained_state, trained_state
from dinomaly_hd.training.task import DetectorTask, Log

NOTICES = (
    *(".*is available but not used.*", ".*in eval mode at the start of training.*"),
    *(".*does not have many workers.*", ".*LeafSpec.*is deprecated.*", ".*litlogger.*"),
)
"""Of Lightning, that are not the user's to mend: the encoder is meant to be in evaluation mode."""
REFUSALS = (
    *("DefaultCPUAllocator", "can't allocate memory"),
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
"""What PyTorch says in a plain RuntimeError when the host, or a library on the GPU, has no memory left."""


class Validation(NamedTuple):
    """How a detector did on what it does not train on."""

    watched: float  # by early stopping, lower is better
    metrics: dict[str, float]  # everything worth logging


class TrainingData(NamedTuple):
    """What is trained on, and what a training asks about it."""

    dataset: Dataset[Batch]
    size: int  # samples
    num_workers: int  # processes that read them
    data_digest: str  # by these two a checkpoint is known
    encoder_digest: str
    name_files: Callable[[int], str]  # of a step
    validate: Callable[[], Validation] | None  # examines the detector as it is, where there is data for it


class Hooks(NamedTuple):
    """Who is told and asked during a training."""

    log: Log
    save: Callable[[Checkpoint], object]
    guard: SignalGuard
    say: Callable[[str], None] | None = None  # a line now and then, where no bar is seen
    tell: Callable[[int, int, float], None] | None = None  # after each step: done, in all, seconds left


class Trained(NamedTuple):
    """What one process has trained, and whose weights the detector has at its end."""

    steps: int  # done by this process
    seconds: float  # of wall time
    last_step: int
    tested_step: int  # the best validation's where early stopping watched, else the last
    best_value: float | None  # of that validation


def resolve_device(gpu: str) -> torch.device:
    """Return the device of ``gpu`` = auto, cpu or an index; one that is not there is a ConfigError."""
    if gpu == "cpu" or (gpu == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    index = 0 if gpu == "auto" else int(gpu)
    count = torch.cuda.device_count()
    if index >= count:
        raise ConfigError(f"gpu={gpu}: this machine has {count} CUDA devices; use gpu=cpu")
    return torch.device("cuda", index)


@contextmanager
def named_when_exhausted(device: torch.device, *, hint: str) -> Iterator[None]:
    """Turn running out of GPU or host memory into one error with ``hint``; the memory is free again."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        named = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not (named or any(words in str(error) for words in REFUSALS)):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold what the failed work held
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory(f"out of memory on {device}: {reason_of(error)}; {hint}") from None


def way_out(batch_size: int | None) -> str:
    """Return what a run may try next; ``batch_size`` is that of training, None where there is none."""
    if batch_size is None or batch_size <= 1:
        return "try a smaller image_size and crop, or a device with more memory (gpu=cpu)"
    return f"try batch_size={batch_size // 2}"


@dataclass
class EarlyStopping:
    """Watches one value, lower is better, and keeps a copy of the weights that had the lowest."""

    patience: int  # validations in a row without a better value that end the training; 0 watches nothing
    best_value: float = float("inf")
    best_step: int = -1
    stale: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    due: bool = False  # the validation after the last step is still to be made: a signal broke it off

    @property
    def exhausted(self) -> bool:
        """Whether training should end."""
        return 0 < self.patience <= self.stale

    def observe(self, value: float, *, step: int, weights: Callable[[], dict[str, Tensor]]) -> None:
        """Take in the value after ``step`` steps; a NaN is never better."""
        if not self.patience:
            return
        if value < self.best_value:
            self.best_value, self.best_step, self.stale = value, step, 0
            self.best_weights = weights()
        else:
            self.stale += 1

    def state(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "patience"}


@dataclass(eq=False)
class _Keeper(lightning.Callback):
    """After each step: validate and save when due, or save when asked by a signal."""

    task: DetectorTask
    stopping: EarlyStopping
    examine: Callable[[], Validation] | None
    save: Callable[[], None]
    hooks: Hooks
    progress: Progress

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del pl_module, outputs, batch, batch_idx
        config = self.task.training_config
        done, last = self.task.position, config.last_step
        if self.examine and config.val_check_interval and done % config.val_check_interval == 0:
            self.stopping.due = True
            self.validate()
        self.progress(loss=self.task.loss)
        # Looked at once: a signal that comes while a checkpoint is written waits for the next step's.
        asked_to_stop = self.hooks.guard.received is not None
        trainer.should_stop = self.stopping.exhausted
        if asked_to_stop or done == last or done % config.checkpoint_interval == 0 or trainer.should_stop:
            self.save()
        if asked_to_stop:
            self.hooks.guard.check()

    def validate(self) -> None:
        """Examine the detector; a signal that breaks it off leaves a checkpoint that makes up for it."""
        task = self.task
        assert self.examine is not None
        try:
            found = self.examine()
        except Interrupted:
            self.save()
            raise
        task.log_step(found.metrics, task.position - 1)
        self.stopping.observe(found.watched, step=task.position, weights=lambda: trained_state(task.detector))
        self.stopping.due = False


def train(
    detector: Detector,
    *,
    run: RunConfig,
    data: TrainingData,
    hooks: Hooks,
    resume: Checkpoint | None,
) -> Trained:
    """Train to the run's last step, or until patience ends, and save a checkpoint of it.

    Where early stopping watches, the detector then has the weights of the best validation. A signal is
    Interrupted, once a checkpoint of the last finished step is saved.
    """
    config = run.training
    assert isinstance(config, TrainingConfig), f"{run.model.model_type} is not trained by steps"
    start = resume.step if resume else 0
    task = DetectorTask(
        detector,
        training=config,
        steps_per_epoch=max(1, data.size // config.batch_size),
        log=hooks.log,
        name_files=data.name_files,
        position=start,
    )
    stopping = EarlyStopping(config.early_stopping_patience, **(resume.patience if resume else {}))
    if resume:
        load_trained_state(detector, resume.weights)
        task.optimizer.load_state_dict(resume.optimizer)
        task.nonfinite = resume.nonfinite

    def save_now() -> None:
        state = Checkpoint(
            step=task.position,
            config=run.to_json(),
            data_digest=data.data_digest,
            encoder_digest=data.encoder_digest,
            nonfinite=task.nonfinite,
            weights=trained_state(detector),
            optimizer=task.optimizer.state_dict(),
            patience=stopping.state(),
        )
        hooks.save(state)

    began = time.monotonic()
    progress = Progress("training", config.last_step, unit="step", done=start, say=hooks.say, tell=hooks.tell)
    keeper = _Keeper(task, stopping, data.validate, save_now, hooks, progress)
    if stopping.due:
        keeper.validate()
    if start < config.last_step and not stopping.exhausted:
        detector.train()
        steps = StepBatches(
            count=data.size, batch_size=config.batch_size, seed=run.seed, start=start, stop=config.last_step
        )
        loader = step_loader(data.dataset, steps, num_workers=data.num_workers)
        try:
            with progress, warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="|".join(NOTICES))
                _trainer(config, steps=config.last_step - start, keeper=keeper).fit(task, loader)
        except SIGTERMException:  # the signal came between our check and Lightning's
            save_now()
            raise Interrupted(hooks.guard.received or signal.SIGTERM) from None
    seconds, tested, best = time.monotonic() - began, task.position, None
    if stopping.best_weights:
        load_trained_state(detector, stopping.best_weights)
        tested, best = stopping.best_step, stopping.best_value
    return Trained(task.position - start, seconds, task.position, tested, best)


def _trainer(config: TrainingConfig, *, steps: int, keeper: lightning.Callback) -> lightning.Trainer:
    device = resolve_device(config.gpu)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    return lightning.Trainer(
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=1 if device.type == "cpu" else [device.index],
        precision="32-true" if config.precision == "32" else "bf16-mixed",
        max_steps=steps,
        max_epochs=1,
        callbacks=[keeper],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
