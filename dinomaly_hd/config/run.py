"""What a run is. Built once at the edge, never changed."""

import hashlib
import json
from collections.abc import Collection
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationError

from dinomaly_hd.config.base import (
    Count,
    Frozen,
    Positive,
    PositiveCount,
    Probability,
    flatten,
    validation_line,
)
from dinomaly_hd.config.dinomaly import DinomalyConfig
from dinomaly_hd.config.families import ModelConfig
from dinomaly_hd.errors import ConfigError

SCHEMA_VERSION = 3
SIMULATED = "simulated"
NO_CROP: Literal["none"] = "none"
NO_ENCODER: Literal["none"] = "none"
ALL_DOMAINS = "all"
NO_START = "none"
HELD_OUT: Literal["held_out"] = "held_out"
SOURCE_TEST: Literal["source_test"] = "source_test"
WITHOUT_EFFECT = (
    "num_workers",
    "gpu",
    "cache",
    "checkpoint_interval",
    "data_root",
    "maps_per_group",
    "start_from",
)
"""Values that change no number of a run: who reads, where it runs, what is kept, how often it is saved.

What a fine-tuning starts from counts by its content, not by its name (``experiments.ready``).
"""
AFTER_TRAINING = (
    "row_context", "border", "aux_score_weight", "map_size", "eval_batch_size", "stop_step",
    "synthetic_copies",
)  # fmt: skip
"""Values that training does not see: runs that differ in these only can share a checkpoint."""


def _parse_size(text: str) -> str:
    """Return a size as it is said shortest, so that one size has one digest."""
    height, width = size_of(text)
    return str(height) if height == width else f"{height}x{width}"


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


def _parse_encoder(text: str) -> str:
    if text == NO_ENCODER:
        raise ValueError("this model needs an encoder")
    return text


Size = Annotated[str, AfterValidator(_parse_size)]
Crop = Annotated[str, AfterValidator(_parse_crop)]
Precision = Literal["32", "bf16"]
Gpu = Annotated[str, Field(pattern=r"^(auto|cpu|\d+)$")]
Cache = Literal["auto", "memory", "files", "off"]


class RawInput(Frozen):
    """No encoder: the maps as they are."""

    encoder: Literal["none"] = NO_ENCODER
    encoder_weights: Literal["none"] = NO_ENCODER


class ImageInput(RawInput):
    """No encoder: the resized maps. Sizes are pixels, "224" or "HEIGHTxWIDTH"."""

    image_size: Size = "224"
    crop: Crop = NO_CROP


class EncoderConfig(Frozen):
    """The frozen encoder and what goes into it. Sizes are pixels, "392" or "HEIGHTxWIDTH"."""

    encoder: Annotated[str, AfterValidator(_parse_encoder)] = "dinov2reg_vit_base_14"
    encoder_weights: str = "auto"
    image_size: Size = "448"
    crop: Crop = "392"


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
    """One training, counted in optimizer steps; ``max_epochs`` above 0 sets them by the number of images."""

    trained_by: Literal["steps"] = "steps"
    optimizer: Literal["stable_adamw", "adamw", "adam"] = "stable_adamw"
    max_epochs: Count = 0
    max_steps: PositiveCount = 1000
    stop_step: Count = 0
    start_from: Annotated[str, Field(min_length=1)] = NO_START
    batch_size: PositiveCount = 16
    learning_rate: Positive = 2e-3
    final_rate_share: Probability = 0.1
    warmup_steps: Count = 100
    lr_schedule_interval: Literal["step", "epoch"] = "step"
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    gradient_clip: Annotated[float, Field(ge=0)] = 0.1
    on_nonfinite: Literal["stop", "skip"] = "stop"
    checkpoint_interval: PositiveCount = 250
    val_check_interval: Count = 0
    early_stopping_patience: Count = 0
    validate_on: Literal["held_out", "source_test"] = HELD_OUT
    precision: Precision = "32"
    gpu: Gpu = "auto"
    cache: Cache = "auto"

    @property
    def last_step(self) -> int:
        """Optimizer steps that are done; the schedule is that of ``max_steps``."""
        return min(self.stop_step or self.max_steps, self.max_steps)


class NoTraining(Frozen):
    """No gradients: a memory bank is filled once, or nothing is learned at all."""

    trained_by: Literal["bank"] = "bank"
    precision: ClassVar[Precision] = "32"
    gpu: Gpu = "auto"
    cache: Cache = "auto"

    @property
    def max_steps(self) -> int:
        """None are done."""
        return 0

    last_step = max_steps

    @property
    def start_from(self) -> str:
        """There is no start."""
        return NO_START


class EvaluationConfig(Frozen):
    """How a trained model is examined; ``synthetic_copies`` of each held-out normal get a synthetic band."""

    eval_batch_size: PositiveCount = 32
    map_size: Size = "256"
    maps_per_group: Count = 10
    synthetic_copies: Count = 0


Input = Annotated[RawInput | ImageInput | EncoderConfig, Field(union_mode="left_to_right")]
Training = Annotated[TrainingConfig | NoTraining, Field(discriminator="trained_by")]


class RunConfig(Frozen):
    """One run: everything that decides its numbers, and nothing else."""

    preset: Literal["full", "quick"]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    model: ModelConfig = DinomalyConfig()
    encoder: Input = EncoderConfig()
    data: DataConfig = DataConfig()
    training: Training = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def bf16(self) -> bool:
        """Whether forward passes run under bfloat16 autocast."""
        return self.training.precision == "bf16"

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
