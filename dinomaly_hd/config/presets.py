"""Presets, ``full`` for a GPU and ``quick`` for two CPU cores, and what may be set in their runs."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from dinomaly_hd.config.base import LARGEST_COUNT, Frozen, Search
from dinomaly_hd.config.families import (
    DraemConfig,
    ModelConfig,
    PatchCoreConfig,
    RowEvidenceConfig,
    SevNetConfig,
    TrivialConfig,
)
from dinomaly_hd.config.run import (
    DataConfig,
    EncoderConfig,
    EvaluationConfig,
    ImageInput,
    NoTraining,
    RawInput,
    RunConfig,
    TrainingConfig,
)
from dinomaly_hd.config.variants import VARIANTS, WITH_TOPK, baseline
from dinomaly_hd.errors import ConfigError, nearest

Fields = dict[str, FieldInfo]
AUTO = "auto"
USE_TOPK = FieldInfo(annotation=bool, default=False, description="the TopK loss too (config F)")
"""A switch that no config holds: it chooses another variant."""
Preset = Literal["full", "quick"]
PRESETS: tuple[Preset, ...] = get_args(Preset)

FAMILIES: dict[str, Callable[[], ModelConfig]] = {
    "dinomaly": baseline,
    "patchcore": PatchCoreConfig,
    "draem": DraemConfig,
    "draem_sevnet": SevNetConfig,
    "trivial": TrivialConfig,
    "row_evidence": RowEvidenceConfig,
}
"""Model families by ``model_type``, each at its defaults."""

MODELS: dict[str, Callable[[], ModelConfig]] = {**VARIANTS, **FAMILIES}
"""Whatever has a name: every variant, and every family."""

# The published optimizer and the authors' length: constant rate, nothing clipped.
DRAEM_TRAINING = TrainingConfig(
    optimizer="adam",
    learning_rate=1e-4,
    final_rate_share=1.0,
    warmup_steps=0,
    weight_decay=0.0,
    gradient_clip=0.0,
    max_epochs=50,
    early_stopping_patience=10,
)
FULL_DRAEM = {"encoder": ImageInput(), "training": DRAEM_TRAINING}
FULL: dict[str, dict[str, Any]] = {
    # The authors' setting: DINOv2 ViT-B with registers at 392 px, batch 16, 1000 steps.
    "dinomaly": {},
    # A wide ResNet-50 at 224 px, as published.
    "patchcore": {
        "encoder": EncoderConfig(encoder="wide_resnet50_2", image_size="224", crop="none"),
        "training": NoTraining(),
    },
    "draem": FULL_DRAEM,
    "draem_sevnet": FULL_DRAEM,
    "trivial": {"encoder": RawInput(), "training": NoTraining()},
    "row_evidence": {"encoder": RawInput(), "training": NoTraining()},
}

# 248 x 96 pixels at stride 8 make 31 x 12 tokens: one token row per driving tooth, so that a band is not
# spread over rows. Sizes were compared on held-out normals with synthetic bands (`benchmarks/quality.py
# choose`), never on test data.
QUICK_ENCODER = EncoderConfig(encoder="efficientnet_lite0", image_size="248x96", crop="none")
SMALL_BATCHES = EvaluationConfig(eval_batch_size=8)
# Maps of 64 x 96 pixels, two rows for each driving tooth, and an eighth of the width, chosen on held-out
# normals with synthetic bands: AUROC 85.6 to 92.2 on the four domains after 400 steps, against 76.6 to 88.0
# at a sixteenth, where many images share one score because the last features are all zero. So narrow a
# network takes a larger rate than the published one. No test data were used.
QUICK_LENGTH = {"max_epochs": 0, "max_steps": 400, "batch_size": 8, "learning_rate": 1e-3}
QUICK_LOOKS = {"checkpoint_interval": 50, "val_check_interval": 40, "early_stopping_patience": 5}
QUICK_DRAEM = {
    "encoder": ImageInput(image_size="64x96"),
    "training": DRAEM_TRAINING.model_copy(update={**QUICK_LENGTH, **QUICK_LOOKS}),
    "evaluation": SMALL_BATCHES,
}
QUICK: dict[str, dict[str, Any]] = {
    # The embedded encoder on simulated maps: a whole run in minutes on two CPU cores.
    "dinomaly": {
        "encoder": QUICK_ENCODER,
        "training": TrainingConfig(max_steps=400, batch_size=8, checkpoint_interval=50),
        "evaluation": SMALL_BATCHES,
    },
    "patchcore": {"encoder": QUICK_ENCODER, "evaluation": SMALL_BATCHES},
    "draem": QUICK_DRAEM,
    "draem_sevnet": QUICK_DRAEM,
    "trivial": {},
    "row_evidence": {},
}
"""What ``quick`` has differently, beside the small simulated set and ``QUICK_SIZES``."""
QUICK_SIZES: dict[str, dict[str, Any]] = {
    "dinomaly": {"decoder_depth": 2},
    "draem": {"width": 0.125},
    "draem_sevnet": {"width": 0.125},
}


def preset_run(preset: Preset, model: ModelConfig) -> RunConfig:
    """Return the run that a preset makes of a model."""
    family = model.model_type
    run = RunConfig(preset="full", model=model, **FULL[family])
    if preset == "full":
        return run
    small = model.model_copy(update=QUICK_SIZES.get(family, {}))
    data = DataConfig(simulate_size="quick")
    return run.model_copy(update={"preset": "quick", "model": small, "data": data, **QUICK[family]})


# ---- what may be set ----


def described(config: Frozen) -> Fields:
    """Return the field of every value of a config that a user may set, by the value's name.

    The field's default is the value that it has in this config.
    """
    found: Fields = {}
    for name, field in type(config).model_fields.items():
        part = getattr(config, name)
        if isinstance(part, Frozen):
            if kinds := kinds_of(field):
                words: Any = Literal[tuple(kinds)]
                found[str(field.discriminator)] = FieldInfo(annotation=words, description=field.description)
            found |= described(part)
        elif field.description:
            found[name] = copy(field)
            found[name].default = part
    return found


def kinds_of(field: FieldInfo) -> dict[str, type[Frozen]]:
    """Return what a user may choose a part from, by the value that names it; empty if there is no choice."""
    if field.discriminator is None or not field.description:
        return {}
    kinds = get_args(field.annotation)
    return {kind.model_fields[str(field.discriminator)].default: kind for kind in kinds}


def with_parts(model: ModelConfig, values: Mapping[str, Any]) -> ModelConfig:
    """Return a copy with the parts that values name, such as fault_source="band", each at its defaults."""
    chosen: dict[str, Frozen] = {}
    for name, field in type(model).model_fields.items():
        kinds, key = kinds_of(field), str(field.discriminator)
        if kinds and key in values:
            if values[key] not in kinds:
                raise ConfigError(f"{key}={values[key]!r}: unknown.{nearest(values[key], kinds)}")
            chosen[name] = kinds[values[key]]()
    return model.model_copy(update=chosen)


def with_every_part(name: str) -> Iterator[tuple[str, ModelConfig]]:
    """Yield a model by itself and with each part that can be chosen, by name: "draem with ..."."""
    model = MODELS[name]()
    yield name, model
    for field in type(model).model_fields.values():
        for kind in kinds_of(field):
            label = f"{field.discriminator}={kind}"
            yield f"{name} with {label}", with_parts(model, {str(field.discriminator): kind})


@cache
def parameters_by_part(name: str) -> dict[str, Fields]:
    """Return what may be set in the runs of a variant or a family, by itself and with each part."""
    switch = {"use_topk": USE_TOPK} if name in WITH_TOPK else {}
    models = with_every_part(name)
    return {label: {**switch, **described(preset_run("full", model))} for label, model in models}


def parameters(name: str) -> Fields:
    """Return what may be set in the runs of a variant or a family as it is by default."""
    return parameters_by_part(name)[name]


def any_of(names: Iterable[str], *, without: Iterable[str] = ()) -> Fields:
    """Return what may be set in the runs of at least one model, with whatever parts."""
    found: Fields = {}
    for name in names:
        for fields in parameters_by_part(name).values():
            found |= {key: field for key, field in fields.items() if key not in found}
    return {key: field for key, field in found.items() if key not in without}


@cache
def every_parameter() -> Fields:
    """Return what may be set in any run."""
    return any_of(MODELS)


def all_of(names: Iterable[str], *, without: Iterable[str] = ()) -> Fields:
    """Return what may be set in the runs of every model."""
    first, *others = map(parameters, names)
    shared = set(first).intersection(*others).difference(without)
    return {key: field for key, field in first.items() if key in shared}


def not_of(name: str, key: str) -> str:
    """Return the refusal of a value that a model, or an entry point, does not have."""
    takers: list[str] = []
    for model in MODELS:
        if model != "dinomaly":  # is the baseline
            found = [label for label, fields in parameters_by_part(model).items() if key in fields]
            takers += [model] if model in found else found
    if not takers:
        return f"{key}: unknown.{nearest(key, every_parameter())}"
    return f"{key} does not apply to {name} as it is set, only to {', '.join(takers)}; leave it out"


def search_ranges() -> dict[str, tuple[Any, Search]]:
    """Return what a study may search, by name: its type (bool, int or float), and the ends of the search."""
    return {
        name: (field.annotation, mark)
        for name, field in every_parameter().items()
        for mark in field.metadata
        if isinstance(mark, Search)
    }


def help_of(field: FieldInfo) -> str:
    """Return a flag's line in ``--help``: what it is, and what it may be, such as "from 0 to 1"."""
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    limits = [(word, getattr(mark, key, None)) for key, word in words.items() for mark in field.metadata]
    rule = " ".join(f"{word} {n:g}" for word, n in limits if n is not None and n < LARGEST_COUNT)
    if get_origin(field.annotation) is Literal:
        rule = ", ".join(map(str, get_args(field.annotation)))
    elif field.annotation is bool:
        rule = "true, false"
    return f"{field.description}: {rule}" if rule else str(field.description)
