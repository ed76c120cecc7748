"""Every variant is a function that takes another variant and changes one thing."""

from collections.abc import Callable
from typing import Literal

from dinomaly_hd.config import (
    DataConfig,
    EncoderConfig,
    EvaluationConfig,
    ModelConfig,
    RunConfig,
    SegmentBottleneck,
    TopKLoss,
    TrainingConfig,
)


def baseline() -> ModelConfig:
    """Dinomaly as published: plain bottleneck, hard mining, class and register tokens kept."""
    return ModelConfig()


def topk() -> ModelConfig:
    """The baseline trained on the 2 % largest token distances."""
    return baseline().model_copy(update={"variant": "topk", "loss": TopKLoss()})


def horizontal() -> ModelConfig:
    """Horizontal segment dropout in the bottleneck; needs the bare token grid."""
    return baseline().model_copy(
        update={"variant": "horizontal", "bottleneck": SegmentBottleneck(), "class_token": "remove"}
    )


def horizontal_topk() -> ModelConfig:
    """Segment dropout together with the TopK loss (the authors' best, F)."""
    return horizontal().model_copy(update={"variant": "horizontal_topk", "loss": topk().loss})


VARIANTS: dict[str, Callable[[], ModelConfig]] = {
    "baseline": baseline,
    "topk": topk,
    "horizontal": horizontal,
    "horizontal_topk": horizontal_topk,
}

WITH_TOPK = {"horizontal": "horizontal_topk"}
"""Variants that ``use_topk=true`` turns into another one."""


def full(model: ModelConfig) -> RunConfig:
    """DINOv2 ViT-B with registers at 392 px, batch 16, 1000 steps: the authors' setting, for a GPU."""
    return RunConfig(preset="full", model=model)


def quick(model: ModelConfig) -> RunConfig:
    """The embedded encoder on simulated maps: a whole run in minutes on two CPU cores.

    248 x 96 pixels at stride 8 make 31 x 12 tokens: one token row per driving tooth, so that a band is not
    spread over rows. Sizes were compared on held-out normals with synthetic bands (`benchmarks/quality.py
    choose`), never on test data.
    """
    return RunConfig(
        preset="quick",
        model=model.model_copy(update={"decoder_depth": 2}),
        encoder=EncoderConfig(encoder="efficientnet_lite0", image_size="248x96", crop="none"),
        data=DataConfig(simulate_size="quick"),
        training=TrainingConfig(max_steps=400, batch_size=8, checkpoint_interval=50),
        evaluation=EvaluationConfig(eval_batch_size=8),
    )


PRESETS: dict[Literal["full", "quick"], Callable[[ModelConfig], RunConfig]] = {"full": full, "quick": quick}
