"""One training from start or from its newest checkpoint to its last step."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import Dataset

from dinomaly_hd.batch import Batch
from dinomaly_hd.config import RunConfig, TrainingConfig
from dinomaly_hd.data.module import StepDataModule
from dinomaly_hd.errors import LONGEST_REASON, CheckpointError, ConfigError, Interrupted
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.training import checkpoint as checkpoints
from dinomaly_hd.training.checkpoint import Checkpoint
from dinomaly_hd.training.guards import SignalGuard
from dinomaly_hd.training.early_stopping import Patience
from dinomaly_hd.training.task import DetectorTask, Reporter

ENCODER, FROZEN = "encoder.", "encoder.model."
NOTICES = (
    ".*is available but not used.*",
    ".*in eval mode at the start of training.*",
    ".*does not have many workers.*",
    ".*LeafSpec.*is deprecated.*",
    ".*litlogger.*",
)


class Validation(NamedTuple):
    """What early stopping watches, lower is better, and everything worth logging."""

    watched: float
    metrics: dict[str, float]


class TrainingData(NamedTuple):
    """What is trained on, how many samples (``size``), how many processes read them, and how to name them.

    ``validate`` examines the detector as it is, None where there is nothing to examine it on.
    """

    dataset: Dataset[Batch]
    size: int
    num_workers: int
    name_files: Callable[[int], str]
    validate: Callable[[], Validation] | None


class Trained(NamedTuple):
    """Steps done by this process and their wall time; where training stood at its end.

    ``tested_step`` is the step whose weights the detector has: the best validation's where early stopping
    watched (``best_value``, else None), else the last.
    """

    steps: int
    seconds: float
    last_step: int
    tested_step: int
    best_value: float | None


def resolve_device(gpu: str) -> torch.device:
    """Return the device of ``gpu`` = auto, cpu or an index.

    Raises:
        ConfigError: The index is not there.
    """
    if gpu == "cpu" or (gpu == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    index = 0 if gpu == "auto" else int(gpu)
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"gpu={gpu}: this machine has {torch.cuda.device_count()} CUDA devices; use gpu=cpu"
        )
    return torch.device("cuda", index)


def trained_state(detector: Detector) -> dict[str, Tensor]:
    """Return copies of all tensors but the frozen network's own weights."""
    state = detector.state_dict()
    return {
        name: value.detach().cpu().clone() for name, value in state.items() if not name.startswith(FROZEN)
    }


def encoder_state(detector: Detector) -> dict[str, Tensor]:
    """Return copies of what the encoder took from training images."""
    return {name: value for name, value in trained_state(detector).items() if name.startswith(ENCODER)}


def load_trained_state(detector: Detector, weights: dict[str, Tensor]) -> None:
    """Put back what ``trained_state`` returned."""
    try:
        missing, unexpected = detector.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # other shapes
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        raise CheckpointError(f"the checkpoint does not fit the model: {reason}") from error
    wrong = [*unexpected, *(name for name in missing if not name.startswith(FROZEN))]
    if wrong:
        raise CheckpointError(f"the checkpoint does not fit the model: {', '.join(wrong[:5])}")


class _Keeper(lightning.Callback):
    """After each step: save when due or asked by a signal, validate when due, move the progress line."""

    def __init__(
        self,
        save: Callable[[], None],
        *,
        data: TrainingData,
        patience: Patience,
        guard: SignalGuard,
        progress: Any,
    ) -> None:
        self.save, self.data, self.patience = save, data, patience
        self.guard, self.progress = guard, progress

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        del outputs, batch, batch_idx
        task: DetectorTask = pl_module
        config: TrainingConfig = task.training_config
        done, last = task.position, config.last_step
        if self.data.validate and config.val_check_interval and done % config.val_check_interval == 0:
            self.patience.due = True
            self.validate(task)
        self.progress(done, last)
        # Looked at once: a signal that comes while a checkpoint is written waits for the next step's.
        stopping = self.guard.received is not None
        trainer.should_stop = self.patience.exhausted
        if stopping or done % config.checkpoint_interval == 0 or done == last or self.patience.exhausted:
            self.save()
        if stopping:
            self.guard.check()

    def validate(self, task: DetectorTask) -> None:
        """Examine the detector; a signal that breaks it off leaves a checkpoint that makes up for it."""
        assert self.data.validate is not None
        try:
            found = self.data.validate()
        except Interrupted:
            self.save()
            raise
        task.reporter.metrics(found.metrics, step=task.position - 1)
        self.patience.observe(found.watched, step=task.position, weights=lambda: trained_state(task.detector))
        self.patience.due = False


def train(
    detector: Detector,
    *,
    run: RunConfig,
    data: TrainingData,
    resume: Checkpoint | None,
    data_digest: str,
    encoder_digest: str,
    folder: Path,
    reporter: Reporter,
    guard: SignalGuard,
    progress: Callable[[int, int], None],
) -> Trained:
    """Train to the run's last step, or until patience ends, and leave a checkpoint of it in ``folder``.

    Where early stopping watches, the detector then has the weights of the best validation.

    Raises:
        NonFiniteError: Loss or gradient became NaN or infinite (policy ``on_nonfinite=stop``).
        Interrupted: A signal came; a checkpoint of the last finished step is in ``folder``.
        OutputError: A checkpoint could not be written.
    """
    config = run.training
    assert isinstance(config, TrainingConfig), f"{run.model.model_type} is not trained by steps"
    start = resume.step if resume else 0
    task = DetectorTask(
        detector,
        training=config,
        steps_per_epoch=max(1, data.size // config.batch_size),
        reporter=reporter,
        name_files=data.name_files,
        position=start,
    )
    if resume:
        load_trained_state(detector, resume.weights)
        task.optimizer.load_state_dict(resume.optimizer)
        task.nonfinite = resume.nonfinite
    patience = Patience(config.early_stopping_patience)
    if resume:
        patience.load(resume.patience)

    def save() -> None:
        reporter.sync()
        state = Checkpoint(
            step=task.position,
            config=run.to_json(),
            data_digest=data_digest,
            encoder_digest=encoder_digest,
            nonfinite=task.nonfinite,
            weights=trained_state(detector),
            optimizer=task.optimizer.state_dict(),
            patience=patience.state(),
        )
        checkpoints.save(folder, state)

    began = time.monotonic()
    keeper = _Keeper(save, data=data, patience=patience, guard=guard, progress=progress)
    if patience.due:
        keeper.validate(task)
    if start < config.last_step and not patience.exhausted:
        detector.train()
        module = StepDataModule(
            data.dataset,
            count=data.size,
            batch_size=config.batch_size,
            seed=run.seed,
            start=start,
            stop=config.last_step,
            num_workers=data.num_workers,
        )
        try:
            with _quiet_lightning():
                trainer = _trainer(config, steps=config.last_step - start, keeper=keeper, folder=folder)
                trainer.fit(task, module)
        except SIGTERMException:  # the signal came between our check and Lightning's
            save()
            raise Interrupted(guard.received or 15) from None
    seconds, tested = time.monotonic() - began, task.position
    if patience.best_weights:
        load_trained_state(detector, patience.best_weights)
        tested = patience.best_step
    best = patience.best_value if patience.best_weights else None
    return Trained(task.position - start, seconds, task.position, tested, best)


def _trainer(
    config: TrainingConfig, *, steps: int, keeper: lightning.Callback, folder: Path
) -> lightning.Trainer:
    device = resolve_device(config.gpu)
    return lightning.Trainer(
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=1 if device.type == "cpu" else [device.index],
        precision="32-true" if config.precision == "32" else "bf16-mixed",
        max_steps=steps,
        max_epochs=1,
        callbacks=[keeper],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's notices off the user's screen: the encoder is meant to be in evaluation mode."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in NOTICES:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.setLevel(level)
