"""What a run is. Built once at the edge, never changed."""

import hashlib
import json
import re
from collections.abc import Collection
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from dinomaly_hd.config.base import (
    NO_CROP,
    Count,
    Crop,
    Frozen,
    Gpu,
    Line,
    NonNegative,
    Positive,
    PositiveCount,
    Probability,
    Size,
    doc,
    flatten,
    names_in,
    validated,
)
from dinomaly_hd.config.dinomaly import PLUGIN_VARIABLE, PLUGINS, DinomalyConfig
from dinomaly_hd.config.families import ModelConfig
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.names import shown

SCHEMA_VERSION = 3
SIMULATED = "simulated"
NO_ENCODER: Literal["none"] = "none"
ALL_DOMAINS = "all"
FOUND_DOMAINS = "auto"
NO_START = "none"
HELD_OUT: Literal["held_out"] = "held_out"
SOURCE_TEST: Literal["source_test"] = "source_test"
WITHOUT_EFFECT = (
    *("num_workers", "gpu", "cache", "checkpoint_interval", "data_root", "maps_per_group", "start_from"),
)
"""Values that change no number of a run: who reads, where it runs, what is kept, how often it is saved.

What a fine-tuning starts from counts by its content, not by its name (``experiments.checks``).
"""
ADDED = (("scaling", "none"), ("position_radius", "full"), ("grey", False))
"""Values that say what was always so: without them, digests of runs from before they could be said hold."""
AFTER_TRAINING = (
    *("row_context", "border", "aux_score_weight", "map_size", "eval_batch_size", "stop_step"),
    "synthetic_copies",
)
"""Values that training does not see: runs that differ in these only can share a checkpoint."""


def _an_encoder(text: str) -> str:
    if text == NO_ENCODER:
        raise ValueError("this model needs an encoder")
    return text


Precision = Annotated[
    Literal["32", "bf16"],
    BeforeValidator(
        lambda value: "32" if value == 32 else value, json_schema_input_type=Literal["32", 32, "bf16"]
    ),
    Field(description="bf16 for GPUs: autocast; an encoder is run, and what it gives is kept, in float16"),
]
Device = Annotated[Gpu, Field(description="auto, cpu, or the index of a GPU")]
Cache = Annotated[
    Literal["auto", "memory", "files", "off"],
    Field(description="encode images once; auto: in memory, on CPUs files too; files: for later runs"),
]


class RawInput(Frozen):
    """No encoder: the maps as they are."""

    encoder: Literal["none"] = NO_ENCODER
    encoder_weights: Literal["none"] = NO_ENCODER


class ImageInput(RawInput):
    """No encoder: the resized maps."""

    image_size: Size = doc("224", "resize to N or HEIGHTxWIDTH pixels")
    crop: Crop = doc(NO_CROP, "centre crop to N or HEIGHTxWIDTH pixels, or none")


class EncoderConfig(Frozen):
    """The frozen encoder and what goes into it."""

    encoder: Annotated[Line, AfterValidator(_an_encoder)] = doc(
        "dinov2reg_vit_base_14", "dinov2reg_vit_{small,base,large}_14, efficientnet_lite0, or any timm name"
    )
    encoder_weights: Line = doc(
        "auto", "auto (hub, or embedded package), hub, random, or a .safetensors/.pth file"
    )
    image_size: Size = doc("448", "resize to N or HEIGHTxWIDTH pixels")
    crop: Crop = doc("392", "centre crop to N or HEIGHTxWIDTH pixels, or none")


class DataConfig(Frozen):
    """Where the maps come from. ``data_root=simulated`` writes and uses the embedded data set.

    ``domains=auto`` are those that the data root holds; of a root that was given it is the default, and a run
    has replaced it by their names before anything depends on it.
    """

    data_root: Line = doc(
        SIMULATED,
        "folder with domain_A/train/good ..., or with train/good ... itself, or a CSV file path,label,split "
        "(also domain,condition,mask), or simulated",
    )
    simulate_size: Literal["tiny", "quick", "full"] = doc(
        "full", "images train/good/fault a domain: tiny 8/4/4, quick 100/100/100, full 1000/1000/1000"
    )
    simulate_seed: Count = doc(0, "seed of the simulated data; the same seed and size give the same bytes")
    domains: Line = doc(
        "A,B,C,D", "comma-separated, e.g. A,B,C,D or folder names; a data_root without these four: all it has"
    )
    train_domains: Line = doc(
        ALL_DOMAINS, "all, or those of domains that are trained on; others are only tested"
    )
    conditions: Literal["auto", "halves", "none"] = doc(
        "auto", "cold and warm; halves: the first half of each test folder is cold"
    )
    val_split_ratio: float = doc(
        0.1, "share of train normals held out, for thresholds and val/loss", ge=0, lt=1
    )
    grey: bool = doc(False, "turn RGB pictures grey, else they are refused")
    num_workers: Count = doc(0, "processes that read images; changes no result")

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

    trained_by: Literal["steps"] = "steps"
    optimizer: Literal["stable_adamw", "adamw", "adam"] = doc("stable_adamw", "what steps")
    max_epochs: Count = doc(0, "0, or the passes over the training images that set max_steps")
    max_steps: PositiveCount = doc(1000, "optimizer steps")
    stop_step: Count = doc(
        0, "optimizer steps after which training ends; 0: max_steps, whose schedule it has"
    )
    start_from: Line = doc(
        NO_START,
        "none, or a finished run (folder or MLflow id), or a file of the original's or anomalib's, whose "
        "weights are the start",
    )
    batch_size: PositiveCount = doc(16, "images of a step")
    learning_rate: Positive = doc(2e-3, "after warm-up")
    final_rate_share: Probability = doc(0.1, "share of learning_rate that is left at the last step")
    warmup_steps: Count = doc(100, "optimizer steps of linear warm-up")
    lr_schedule_interval: Literal["step", "epoch"] = doc("step", "epoch only repeats runs of old code")
    weight_decay: NonNegative = doc(1e-4, "decoupled")
    gradient_clip: NonNegative = doc(0.1, "largest gradient norm, 0: not clipped")
    on_nonfinite: Literal["stop", "skip"] = doc("stop", "what is done if loss or gradient is NaN or infinite")
    checkpoint_interval: PositiveCount = doc(250, "optimizer steps between checkpoints")
    val_check_interval: Count = doc(
        0,
        "optimizer steps between val/loss on held-out normals; 0: never, or each epoch where "
        "early_stopping_patience is set",
    )
    early_stopping_patience: Count = doc(
        0, "validations without a better val/loss that end the training; its best weights are tested; 0: off"
    )
    validate_on: Literal["held_out", "source_test"] = doc(
        HELD_OUT, "held-out normals, or the older rule, which chooses by test labels"
    )
    precision: Precision = "32"
    gpu: Device = "auto"
    cache: Cache = "auto"

    @property
    def last_step(self) -> int:
        """Optimizer steps that are done; the schedule is that of ``max_steps``."""
        return min(self.stop_step or self.max_steps, self.max_steps)


class NoTraining(Frozen):
    """No gradients: a memory bank is filled once, or nothing is learned at all."""

    trained_by: Literal["bank"] = "bank"
    precision: ClassVar[Literal["32", "bf16"]] = "32"
    max_steps: ClassVar[int] = 0
    last_step: ClassVar[int] = 0
    start_from: ClassVar[str] = NO_START
    gpu: Device = "auto"
    cache: Cache = "auto"


class EvaluationConfig(Frozen):
    """How a trained model is examined."""

    eval_batch_size: PositiveCount = doc(32, "images encoded or scored at once")
    map_size: Size = doc("256", "anomaly maps, N or HEIGHTxWIDTH pixels")
    maps_per_group: Count = doc(
        10, "anomaly maps drawn a domain, label and rank (highest, threshold, lowest)"
    )
    synthetic_copies: Count = doc(
        0, "also tell so many banded copies of each held-out normal from it; 0: not"
    )


Input = Annotated[RawInput | ImageInput | EncoderConfig, Field(union_mode="left_to_right")]
Training = Annotated[TrainingConfig | NoTraining, Field(discriminator="trained_by")]


class RunConfig(Frozen):
    """One run: everything that decides its numbers, and nothing else."""

    preset: Annotated[
        Literal["full", "quick"],
        Field(description="sizes and steps; auto: full where CUDA is present, quick elsewhere"),
    ]
    seed: int = doc(42, "of initial weights, order, dropout and the held-out split", ge=0, lt=2**32)
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
        content = {
            name: value
            for name, value in flatten(self).items()
            if name not in ignored and (name, value) not in ADDED
        }
        text = json.dumps({"schema": SCHEMA_VERSION, **content}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def from_json(text: str) -> RunConfig:
    """Read a config written by ``RunConfig.to_json``; a plugin's only where that very file is loaded."""
    found = re.search(r'"plugin": ?"([^"]+)"', text)
    if found and found[1] not in PLUGINS:
        raise ConfigError(
            f"its variant is of plugin {shown(found[1])}, loaded: {', '.join(PLUGINS) or 'none'}; "
            f"name the file, --plugin FILE or {PLUGIN_VARIABLE}=FILE "
            "(the run's folder has a copy in plugin/: read it first)"
        )
    return validated(RunConfig, text)
