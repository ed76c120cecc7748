"""A training of the smallest detector there is, for tests and drills."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dinomaly_hd.batch import Batch
from dinomaly_hd.config.base import with_values
from dinomaly_hd.config.presets import preset_run
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.config.variants import baseline
from dinomaly_hd.errors import SignalGuard
from dinomaly_hd.models.detector import Detector, Loss, Prediction
from dinomaly_hd.training import checkpoint as checkpoints
from dinomaly_hd.training import loop

STEPS = 12
DATA = torch.randn(10, 6, generator=torch.Generator().manual_seed(1))


class Line(Detector):
    """The smallest detector: a linear map that learns its input; ``poisoned`` steps give a NaN loss."""

    def __init__(self, poisoned: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6, bias=False)
        nn.init.eye_(self.linear.weight)
        self.linear.weight.data.mul_(0.5)
        self.poisoned = poisoned

    def fit_encoder(self, batches: Any) -> None:
        del batches

    def encode(self, images_BHW: Tensor) -> Tensor:
        return images_BHW

    def training_loss(self, batch: Batch, *, step: int) -> Loss:
        error = self.validation_loss(batch.encoded).mean()
        return Loss(error * (math.nan if step in self.poisoned else 1), {"discard_rate": torch.zeros(())})

    def validation_loss(self, encoded: Tensor, *, position: int = 0) -> Tensor:
        del position
        return (self.linear(encoded) - encoded).square().mean(dim=1)

    def score(self, encoded: Tensor) -> Prediction:
        raise NotImplementedError


class Samples(Dataset[Batch]):
    """Rows of ``DATA``, encoded already or left to the step."""

    def __init__(self, *, encoded: bool = True) -> None:
        self.encoded = encoded

    def __getitems__(self, items: Sequence[int]) -> Batch:
        rows = DATA[list(items)]
        return Batch(rows, torch.zeros(len(rows), dtype=torch.int64), rows if self.encoded else None)


class Record:
    """A log that remembers."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        self.points.append((step, dict(values)))

    def series(self, name: str) -> list[float]:
        return [values[name] for _, values in self.points if name in values]


def config(**values: Any) -> RunConfig:
    given = {"max_steps": STEPS, "warmup_steps": 3, "batch_size": 4, "checkpoint_interval": 5, "gpu": "cpu"}
    return with_values(preset_run("quick", baseline()), {**given, **values})


def train(
    detector: Detector,
    run: RunConfig,
    folder: Path,
    *,
    until: int | None = None,
    samples: Samples | None = None,
    record: Record | None = None,
    validate: Callable[[], loop.Validation] | None = None,
) -> Record:
    """Train from the folder's newest checkpoint on, until a signal after ``until`` steps if it is given."""
    record = record or Record()
    found = checkpoints.newest(folder).checkpoint
    with SignalGuard() as guard:

        def tell(done: int, total: int, _seconds_left: float) -> None:
            assert done <= total
            if done == until:
                guard.received = 15

        data = loop.TrainingData(
            dataset=samples or Samples(),
            size=len(DATA),
            num_workers=0,
            data_digest="data",
            encoder_digest="encoder",
            name_files=lambda step: f"files of {step}",
            validate=validate,
        )
        hooks = loop.Hooks(record, lambda state: checkpoints.save(folder, state), guard, tell=tell)
        loop.train(detector, run=run, data=data, hooks=hooks, resume=found)
    return record
