"""Drill 5: a loss, a gradient or an input that is not finite, in the midst of a training."""

import math
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.drills.tally import Tally
from dinomaly_hd.batch import Batch
from dinomaly_hd.config import RunConfig, with_values
from dinomaly_hd.config.presets import preset_run
from dinomaly_hd.config.variants import baseline
from dinomaly_hd.errors import Interrupted, NonFiniteError, SignalGuard
from dinomaly_hd.models.detector import Detector, Loss, Prediction
from dinomaly_hd.training import checkpoint as checkpoints
from dinomaly_hd.training import loop
from dinomaly_hd.training.checkpoint import Checkpoint

WIDTH, IMAGES, BATCH = 6, 10, 4
STEPS, KINDS = (1, 37, 3000), ("loss", "gradient", "input")
LEAD = 3
"""Steps between the checkpoint that a poisoned training goes on from and the poison."""


class Poison(NamedTuple):
    """What is not finite at which step: the loss (NaN), a gradient (infinite), or the input (NaN)."""

    kind: str
    step: int


class _Scale(Detector):
    """The smallest detector that has weights and running statistics: a linear map that learns its input."""

    def __init__(self, poison: Poison | None) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.constant_(self.linear.weight, 0.1)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.poison = poison

    def fit_encoder(self, batches: Any) -> None:
        del batches

    def encode(self, images_BHW: Tensor) -> Tensor:
        return images_BHW

    def training_loss(self, batch: Batch, *, step: int) -> Loss:
        assert batch.encoded is not None
        total = (self.norm(self.linear(batch.encoded)) - batch.encoded).square().mean()
        if self.poison == ("loss", step):
            total = total * math.nan
        if self.poison == ("gradient", step):  # the root's slope at zero; the loss itself stays as it is
            weight = self.linear.weight.sum()
            total = total + (weight - weight.detach()).sqrt()
        return Loss(total, {})

    def score(self, encoded: Tensor) -> Prediction:
        return Prediction(encoded[:, None], encoded.mean(dim=1))


class _Rows(Dataset[Batch]):
    """Encoded images; ``poisoned`` is the number of the batch that has a NaN in it, counted from 0."""

    def __init__(self, poisoned: int | None) -> None:
        self.rows = torch.randn(IMAGES, WIDTH, generator=torch.Generator().manual_seed(5))
        self.poisoned, self.batches = poisoned, 0

    def __getitems__(self, items: Sequence[int]) -> Batch:
        rows = self.rows[list(items)]
        if self.batches == self.poisoned:
            rows[0, 0] = math.nan
        self.batches += 1
        return Batch(rows, torch.zeros(len(rows), dtype=torch.int64), rows)


def _files(step: int) -> str:
    return f"files of step {step}"


def _config(policy: str) -> RunConfig:
    steps = {"max_steps": 2 * max(STEPS), "warmup_steps": 0, "checkpoint_interval": 500}
    more = {"batch_size": BATCH, "val_check_interval": 0, "on_nonfinite": policy, "gpu": "cpu"}
    return with_values(preset_run("quick", baseline()), {**steps, **more})


class _Ended(NamedTuple):
    """How a training ended: its detector's state, its newest checkpoint, the steps skipped, and the error."""

    state: dict[str, Tensor]
    checkpoint: Checkpoint | None
    skipped: float
    error: Exception | None


def _train(folder: Path, *, policy: str, poison: Poison | None, until: int) -> _Ended:
    resume = checkpoints.newest(folder).checkpoint
    inputs = poison.step - (resume.step if resume else 0) if poison and poison.kind == "input" else None
    detector, error, skipped = _Scale(poison), None, [0.0]
    data = loop.TrainingData(_Rows(inputs), IMAGES, 0, "data", "encoder", _files, None)
    with SignalGuard() as guard:

        def progress(done: int, _total: int) -> None:
            if done == until:
                guard.received = signal.SIGTERM

        def log(values: Mapping[str, float], _step: int) -> None:
            skipped.append(values["train/nonfinite"])

        hooks = loop.Hooks(log, partial(checkpoints.save, folder), guard, progress)
        try:
            loop.train(detector, run=_config(policy), data=data, hooks=hooks, resume=resume)
        except Exception as ended:  # which one is what the drill looks at
            error = ended
    state = checkpoints.trained_state(detector)
    return _Ended(state, checkpoints.newest(folder).checkpoint, skipped[-1], error)


def _changed(state: dict[str, Tensor], before: dict[str, Tensor]) -> str | None:
    changed = [name for name in before if not torch.equal(state[name], before[name])]
    return f"the poisoned step changed {', '.join(changed)}" if changed else None


def _stopped(ended: _Ended, healthy: dict[str, Tensor], poison: Poison) -> str | None:
    if not isinstance(ended.error, NonFiniteError):
        return f"ended with {ended.error!r}"
    figures = r"loss \S+, gradient norm (nan|inf), lr \S*[1-9]\S*;"
    if not re.search(rf"^step {poison.step}: {figures}.*{_files(poison.step)};", str(ended.error)):
        return f"does not name step, loss, lr and files: {ended.error}"
    if ended.checkpoint is not None and ended.checkpoint.step > poison.step:
        return f"a checkpoint of step {ended.checkpoint.step} was written"
    # Running statistics are not put back: they are gone with the process, and no checkpoint has them.
    trained = {name: healthy[name] for name, _ in _Scale(None).named_parameters()}
    return _changed(ended.state, trained)


def _skipped(ended: _Ended, healthy: dict[str, Tensor], poison: Poison) -> str | None:
    if not isinstance(ended.error, Interrupted) or ended.checkpoint is None:
        return f"skipping ended with {ended.error!r}"
    kept = ended.checkpoint
    if (kept.step, kept.nonfinite, ended.skipped) != (poison.step + 1, 1, 1):
        return f"step {kept.step}, {kept.nonfinite} steps skipped, {ended.skipped:g} reported"
    moments = [value for state in kept.optimizer["state"].values() for value in state.values()]
    if not all(bool(torch.isfinite(torch.as_tensor(value)).all()) for value in moments):
        return "the optimizer remembers what is not finite"
    return _changed(ended.state, healthy)


def poisoned_steps(folder: Path, full: bool) -> Tally:
    """Make loss, gradient or input not finite at early and late steps; both sizes are the same."""
    del full
    tally = Tally()
    for step in STEPS:
        lead, whole = folder / f"lead{step}", folder / f"healthy{step}"
        lead.mkdir()
        if step > LEAD:
            _train(lead, policy="stop", poison=None, until=step - LEAD)
        shutil.copytree(lead, whole)
        healthy = _train(whole, policy="stop", poison=None, until=step).state
        for poison in (Poison(kind, step) for kind in KINDS):
            ended = {}
            for policy in ("stop", "skip"):
                own = folder / f"{poison.kind}{step}" / policy
                shutil.copytree(lead, own)
                ended[policy] = _train(own, policy=policy, poison=poison, until=step + 1)
            fault = _stopped(ended["stop"], healthy, poison) or _skipped(ended["skip"], healthy, poison)
            tally.add(f"{poison.kind} at step {step}", fault)
    return tally
