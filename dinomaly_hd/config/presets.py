"""Presets: a whole run for any model, ``full`` for a GPU and ``quick`` for two CPU cores."""

from collections.abc import Callable
from typing import Any, Literal

from dinomaly_hd.config.dinomaly import DinomalyConfig
from dinomaly_hd.config.families import (
    DraemConfig,
    ModelConfig,
    PatchCoreConfig,
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
from dinomaly_hd.config.variants import VARIANTS, baseline

FAMILIES: dict[str, Callable[[], ModelConfig]] = {
    "dinomaly": baseline,
    "patchcore": PatchCoreConfig,
    "draem": DraemConfig,
    "draem_sevnet": SevNetConfig,
    "trivial": TrivialConfig,
}
"""Model families by ``model_type``, each at its defaults."""

MODELS: dict[str, Callable[[], ModelConfig]] = {**VARIANTS, **FAMILIES}
"""Whatever has a name: every variant, and every family."""

QUICK_ENCODER = EncoderConfig(encoder="efficientnet_lite0", image_size="248x96", crop="none")
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
"""The published optimizer and the authors' length: constant rate, nothing clipped."""


def full_dinomaly(model: DinomalyConfig) -> RunConfig:
    """DINOv2 ViT-B with registers at 392 px, batch 16, 1000 steps: the authors' setting, for a GPU."""
    return RunConfig(preset="full", model=model)


def full_patchcore(model: PatchCoreConfig) -> RunConfig:
    """A wide ResNet-50 at 224 px, as published."""
    encoder = EncoderConfig(encoder="wide_resnet50_2", image_size="224", crop="none")
    return RunConfig(preset="full", model=model, encoder=encoder, training=NoTraining())


def full_draem(model: DraemConfig | SevNetConfig) -> RunConfig:
    """Full width at 224 px."""
    return RunConfig(preset="full", model=model, encoder=ImageInput(), training=DRAEM_TRAINING)


def full_trivial(model: TrivialConfig) -> RunConfig:
    """Nothing to set."""
    return RunConfig(preset="full", model=model, encoder=RawInput(), training=NoTraining())


def quick(run: RunConfig, **parts: Any) -> RunConfig:
    """Return a run on the small simulated set, with other parts."""
    return run.model_copy(update={"preset": "quick", "data": DataConfig(simulate_size="quick"), **parts})


def quick_dinomaly(model: DinomalyConfig) -> RunConfig:
    """The embedded encoder on simulated maps: a whole run in minutes on two CPU cores.

    248 x 96 pixels at stride 8 make 31 x 12 tokens: one token row per driving tooth, so that a band is not
    spread over rows. Sizes were compared on held-out normals with synthetic bands (`benchmarks/quality.py
    choose`), never on test data.
    """
    return quick(
        full_dinomaly(model.model_copy(update={"decoder_depth": 2})),
        encoder=QUICK_ENCODER,
        training=TrainingConfig(max_steps=400, batch_size=8, checkpoint_interval=50),
        evaluation=EvaluationConfig(eval_batch_size=8),
    )


def quick_patchcore(model: PatchCoreConfig) -> RunConfig:
    """The embedded encoder at the size that Dinomaly gets."""
    return quick(full_patchcore(model), encoder=QUICK_ENCODER, evaluation=EvaluationConfig(eval_batch_size=8))


def quick_draem(model: DraemConfig | SevNetConfig) -> RunConfig:
    """An eighth of the width on maps of 64 x 96 pixels, two rows for each driving tooth.

    Chosen on held-out normals with synthetic bands: AUROC 85.6 to 92.2 on the four domains after 400 steps,
    against 76.6 to 88.0 at a sixteenth, where many images share one score because the last features are all
    zero. So narrow a network takes a larger rate than the published one. No test data were used.
    """
    length = {"max_epochs": 0, "max_steps": 400, "batch_size": 8, "learning_rate": 1e-3}
    looks = {"checkpoint_interval": 50, "val_check_interval": 40, "early_stopping_patience": 5}
    return quick(
        full_draem(model.model_copy(update={"width": 0.125})),
        encoder=ImageInput(image_size="64x96"),
        training=DRAEM_TRAINING.model_copy(update={**length, **looks}),
        evaluation=EvaluationConfig(eval_batch_size=8),
    )


def quick_trivial(model: TrivialConfig) -> RunConfig:
    """The small simulated set."""
    return quick(full_trivial(model))


PRESETS: dict[Literal["full", "quick"], dict[str, Callable[[Any], RunConfig]]] = {
    "full": {
        "dinomaly": full_dinomaly,
        "patchcore": full_patchcore,
        "draem": full_draem,
        "draem_sevnet": full_draem,
        "trivial": full_trivial,
    },
    "quick": {
        "dinomaly": quick_dinomaly,
        "patchcore": quick_patchcore,
        "draem": quick_draem,
        "draem_sevnet": quick_draem,
        "trivial": quick_trivial,
    },
}


def preset_run(preset: Literal["full", "quick"], model: ModelConfig) -> RunConfig:
    """Return the run that a preset makes of a model."""
    return PRESETS[preset][model.model_type](model)
