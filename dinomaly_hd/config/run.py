"""What a run is. Built once at the edge, never changed."""

import hashlib
import json
from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from dinomaly_hd.config.base import (
    Count,
    Frozen,
    Positive,
    PositiveCount,
    flatten,
    validation_line,
)
from dinomaly_hd.config.model import ModelConfig
from dinomaly_hd.errors import ConfigError

SCHEMA_VERSION = 2
SIMULATED = "simulated"
NO_CROP = "none"
ALL_DOMAINS = "all"
NO_START = "none"
WITHOUT_EFFECT = ("num_workers", "gpu", "checkpoint_interval", "data_root", "maps_per_group", "start_from")
"""Values that change no number of a run: who reads, where it runs, how often it is saved.

What a fine-tuning starts from counts by its content, not by its name (``experiments.ready``).
"""
AFTER_TRAINING = ("row_context", "border", "aux_score_weight", "map_size", "eval_batch_size", "stop_step")
"""Values that training does not see: runs that differ in these only can share a checkpoint."""


def _parse_size(text: str) -> str:
    size_of(text)
    return text


def _parse_crop(text: str) -> str:
    return text if text == NO_CROP else _parse_size(text)


def size_of(text: str) -> tuple[int, int]:
    """Return (height, width) of "392" or "248x96".

    >>> size_of("392"), size_of("248x96")
    ((392, 392), (248, 96))
    """
    sides = text.lower().split("x")
    if len(sides) in (1, 2) and all(side.isdecimal() and int(side) > 0 for side in sides):
        return int(sides[0]), int(sides[-1])
    raise ValueError(f"{text!r} is not a size: write pixels such as 392, or HEIGHTxWIDTH such as 248x96")


def names_in(text: str) -> tuple[str, ...]:
    """Return the names of a comma-separated list.

    >>> names_in("A, B")
    ('A', 'B')
    """
    return tuple(name.strip() for name in text.split(",") if name.strip())


Size = Annotated[str, AfterValidator(_parse_size)]
Crop = Annotated[str, AfterValidator(_parse_crop)]


class EncoderConfig(Frozen):
    """The frozen encoder and what goes into it. Sizes are pixels, "392" or "HEIGHTxWIDTH"."""

    encoder: str = "dinov2reg_vit_base_14"
    encoder_weights: str = "auto"
    image_size: Size = "448"
    crop: Crop = "392"

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of what the encoder gets."""
        return size_of(self.image_size if self.crop == NO_CROP else self.crop)


class DataConfig(Frozen):
    """Where the maps come from. ``data_root=simulated`` writes and uses the embedded data set."""

    data_root: str = SIMULATED
    simulate_size: Literal["tiny", "quick", "full"] = "full"
    simulate_seed: Count = 0
    domains: Annotated[str, Field(min_length=1)] = "A,B,C,D"
    train_domains: Annotated[str, Field(min_length=1)] = ALL_DOMAINS
    conditions: Literal["auto", "halves", "none"] = "auto"
    val_split_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    num_workers: Count = 0

    @property
    def domain_names(self) -> tuple[str, ...]:
        """The domains in the order given."""
        return names_in(self.domains)

    @property
    def train_domain_names(self) -> tuple[str, ...]:
        """Those of ``domains`` that are trained on."""
        return self.domain_names if self.train_domains == ALL_DOMAINS else names_in(self.train_domains)


class TrainingConfig(Frozen):
    """One training, counted in optimizer steps."""

    max_steps: PositiveCount = 1000
    stop_step: Count = 0
    start_from: Annotated[str, Field(min_length=1)] = NO_START
    batch_size: PositiveCount = 16
    learning_rate: Positive = 2e-3
    final_learning_rate: Annotated[float, Field(ge=0)] = 2e-4
    warmup_steps: Count = 100
    lr_schedule_interval: Literal["step", "epoch"] = "step"
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    gradient_clip: Positive = 0.1
    on_nonfinite: Literal["stop", "skip"] = "stop"
    checkpoint_interval: PositiveCount = 250
    val_check_interval: Count = 0
    precision: Literal["32", "bf16"] = "32"
    gpu: str = Field(default="auto", pattern=r"^(auto|cpu|\d+)$")
    cache: Literal["auto", "memory", "off"] = "auto"

    @property
    def last_step(self) -> int:
        """Optimizer steps that are done; the schedule is that of ``max_steps``."""
        return min(self.stop_step or self.max_steps, self.max_steps)


class EvaluationConfig(Frozen):
    """How a trained model is examined."""

    eval_batch_size: PositiveCount = 32
    map_size: Size = "256"
    maps_per_group: Count = 10


class RunConfig(Frozen):
    """One run: everything that decides its numbers, and nothing else."""

    preset: Literal["full", "quick"]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    model: ModelConfig = ModelConfig()
    encoder: EncoderConfig = EncoderConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def to_json(self) -> str:
        """Return the whole config as JSON."""
        return self.model_dump_json(indent=2)

    def digest(self, *, without: Collection[str] = ()) -> str:
        """Return 16 hex digits of all that may change a result, ``without`` some values."""
        ignored = {*WITHOUT_EFFECT, *without}
        content = {name: value for name, value in flatten(self).items() if name not in ignored}
        text = json.dumps({"schema": SCHEMA_VERSION, **content}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def from_json(text: str) -> RunConfig:
    """Read a config written by ``RunConfig.to_json``."""
    try:
        return RunConfig.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError("; ".join(validation_line(detail) for detail in error.errors())) from error
