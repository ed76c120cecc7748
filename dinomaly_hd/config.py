"""What a run is: frozen, keyword-only, unknown keys refused. Built once at the edge, never changed."""

import hashlib
import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from dinomaly_hd.errors import ConfigError

SCHEMA_VERSION = 1
SIMULATED = "simulated"
NO_CROP = "none"
WITHOUT_EFFECT = ("num_workers", "gpu", "checkpoint_interval", "data_root", "maps_per_group")
"""Values that change no number of a run: who reads, where it runs, how often it is saved."""

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]


def _parse_size(text: str) -> str:
    size_of(text)
    return text


def _parse_crop(text: str) -> str:
    return text if text == NO_CROP else _parse_size(text)


Size = Annotated[str, AfterValidator(_parse_size)]
Crop = Annotated[str, AfterValidator(_parse_crop)]


def size_of(text: str) -> tuple[int, int]:
    """Return (height, width) of "392" or "248x96".

    >>> size_of("392"), size_of("248x96")
    ((392, 392), (248, 96))
    """
    sides = text.lower().split("x")
    if len(sides) in (1, 2) and all(side.isdecimal() and int(side) > 0 for side in sides):
        return int(sides[0]), int(sides[-1])
    raise ValueError(f"{text!r} is not a size: write pixels such as 392, or HEIGHTxWIDTH such as 248x96")


class Frozen(BaseModel):
    """Base of all configs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PlainBottleneck(Frozen):
    """MLP with element dropout."""

    bottleneck: Literal["plain"] = "plain"
    bottleneck_dropout: Probability = 0.2


class SegmentBottleneck(Frozen):
    """Horizontal segment dropout, then the MLP with element dropout ``elem_p``."""

    bottleneck: Literal["segment"] = "segment"
    row_p: Probability = 0.2
    seg_len: PositiveCount = 2
    seg_drop_p: Probability = 0.6
    elem_p: Probability = 0.1
    disable_segment: bool = False


class HardMiningLoss(Frozen):
    """The original's loss."""

    loss: Literal["hard_mining"] = "hard_mining"
    discard_final: Probability = 0.9
    discard_warmup: Count = 1000
    discard_factor: Probability = 0.1


class TopKLoss(Frozen):
    """The tail of the token distances."""

    loss: Literal["topk"] = "topk"
    q_percent: Annotated[float, Field(gt=0, le=100)] = 2.0
    q_warmup: Count = 200


class ModelConfig(Frozen):
    """The parts of one Dinomaly."""

    variant: str = "baseline"
    bottleneck: Annotated[PlainBottleneck | SegmentBottleneck, Field(discriminator="bottleneck")] = (
        PlainBottleneck()
    )
    loss: Annotated[HardMiningLoss | TopKLoss, Field(discriminator="loss")] = HardMiningLoss()
    class_token: Literal["keep", "remove"] = "keep"
    decoder_depth: Annotated[int, Field(ge=2, multiple_of=2)] = 8
    row_context: Count = 0
    border: Literal["zero", "reflect"] = "zero"


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
    conditions: Literal["auto", "halves", "none"] = "auto"
    val_split_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    num_workers: Count = 0

    @property
    def domain_names(self) -> tuple[str, ...]:
        """The domains in the order given."""
        return tuple(name.strip() for name in self.domains.split(",") if name.strip())


class TrainingConfig(Frozen):
    """One training, counted in optimizer steps."""

    max_steps: PositiveCount = 1000
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

    def digest(self) -> str:
        """Return 16 hex digits of all that may change a result (not of ``WITHOUT_EFFECT``)."""
        content = {name: value for name, value in flatten(self).items() if name not in WITHOUT_EFFECT}
        text = json.dumps({"schema": SCHEMA_VERSION, **content}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


Config = TypeVar("Config", bound=Frozen)


def flatten(config: Frozen) -> dict[str, Any]:
    """Return every value under its own name: {"seed": 42, ..., "row_p": 0.2, ...}."""
    flat: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        flat.update(flatten(value) if isinstance(value, Frozen) else {name: value})
    return flat


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """Return a copy with some values, given by their own names, replaced and checked.

    Raises:
        ConfigError: A value breaks its rule; one line names parameter, value and rule.
    """
    changed: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Frozen):
            changed[name] = with_values(value, values).model_dump()
        else:
            changed[name] = values.get(name, value)
    return validated(type(config), changed)


def validated(kind: type[Config], content: Any) -> Config:
    """Return ``kind`` made from plain data; the one place where pydantic's errors become ours."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError("; ".join(_line(detail) for detail in error.errors())) from error


def from_json(text: str) -> RunConfig:
    """Read a config written by ``RunConfig.to_json``."""
    try:
        return RunConfig.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError("; ".join(_line(detail) for detail in error.errors())) from error


def _line(detail: Any) -> str:
    place = detail["loc"][-1] if detail["loc"] else "config"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{place}={detail.get('input')!r}: {message[0].lower()}{message[1:]}"
