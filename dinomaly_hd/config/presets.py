"""Presets: a whole run for any model, ``full`` for a GPU and ``quick`` for two CPU cores."""

from collections.abc import Callable
from typing import Any, Literal, get_args

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
from dinomaly_hd.config.variants import VARIANTS, baseline

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
