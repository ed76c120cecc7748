"""Every variant is a function that takes another variant and changes one thing."""

import re
from collections.abc import Callable
from typing import Any

from dinomaly_hd.config import dinomaly as parts
from dinomaly_hd.config.dinomaly import DinomalyConfig


def change(model: DinomalyConfig, **other: Any) -> DinomalyConfig:
    """Return a model with other parts."""
    return model.model_copy(update=other)


def baseline() -> DinomalyConfig:
    """Dinomaly as published: plain bottleneck, hard mining, class and register tokens kept."""
    return DinomalyConfig()


def gem() -> DinomalyConfig:
    """Generalised mean over the groups, in loss and score, with a milder hard mining."""
    return change(baseline(), variant="gem", loss=parts.PooledMiningLoss(), distance=parts.GemDistance())


def focal() -> DinomalyConfig:
    """Token distances weighted by their own size instead of mined."""
    return change(baseline(), variant="focal", loss=parts.FocalLoss())


def topk() -> DinomalyConfig:
    """The baseline trained on the 2 % largest token distances."""
    return change(baseline(), variant="topk", loss=parts.TopKLoss())


def aux() -> DinomalyConfig:
    """The baseline that also learns to tell synthetic bands, from the bottleneck."""
    return change(baseline(), variant="aux", auxiliary=parts.BandClassifier())


def scale() -> DinomalyConfig:
    """Learned weights of the two groups, in loss and score."""
    return change(baseline(), variant="scale", distance=parts.WeightedDistance())


def adaptive() -> DinomalyConfig:
    """A discard rate for each image by the direction of its structure."""
    return change(baseline(), variant="adaptive", loss=parts.AdaptiveLoss())


def directional_topk() -> DinomalyConfig:
    """TopK whose tail is chosen on distances averaged along rows."""
    return change(topk(), variant="directional_topk", loss=parts.TopKLoss(tail_context=2))


def bare_grid(model: DinomalyConfig) -> DinomalyConfig:
    """Drop class and register tokens, as everything that reads the token grid needs."""
    return change(model, class_token="remove")


def horizontal() -> DinomalyConfig:
    """Horizontal segment dropout in the bottleneck."""
    return change(bare_grid(baseline()), variant="horizontal", bottleneck=parts.SegmentBottleneck())


def horizontal_topk() -> DinomalyConfig:
    """Segment dropout together with the TopK loss (the authors' best, F)."""
    return change(horizontal(), variant="horizontal_topk", loss=parts.TopKLoss())


def decoder_dropout() -> DinomalyConfig:
    """Segment dropout on the values inside the decoder's attention."""
    return change(bare_grid(baseline()), variant="decoder_dropout", attention=parts.RowDropoutAttention())


def row_mask() -> DinomalyConfig:
    """Decoder attention that cannot read its own row nearby."""
    return change(bare_grid(baseline()), variant="row_mask", attention=parts.RowBlindAttention())


def row_masking() -> DinomalyConfig:
    """Whole rows of the bottleneck replaced by a learned token."""
    return change(bare_grid(baseline()), variant="row_masking", bottleneck=parts.RowMaskingBottleneck())


VARIANTS: dict[str, Callable[[], DinomalyConfig]] = {
    function.__name__: function
    for function in (
        baseline,
        gem,
        focal,
        topk,
        aux,
        scale,
        horizontal,
        horizontal_topk,
        adaptive,
        decoder_dropout,
        row_mask,
        row_masking,
        directional_topk,
    )
}

WITH_TOPK = {"horizontal": "horizontal_topk"}
"""Variants that ``use_topk=true`` turns into another one."""


def segments(model: DinomalyConfig, **values: Any) -> DinomalyConfig:
    """Return a model with other segments, or with their element dropout alone."""
    return change(model, bottleneck=parts.SegmentBottleneck(**values))


ABLATION: dict[str, Callable[[], DinomalyConfig]] = {
    "A0": lambda: bare_grid(baseline()),
    "A": lambda: bare_grid(topk()),
    "B": lambda: segments(horizontal(), disable_segment=True),
    "C": lambda: segments(horizontal(), row_p=0.2, seg_len=2, seg_drop_p=0.6, elem_p=0),
    "D": horizontal,
    "E": lambda: segments(horizontal(), row_p=0.5, seg_len=4, seg_drop_p=0.8),
    "F": horizontal_topk,
    "G": lambda: segments(horizontal_topk(), row_p=0.3, seg_len=3, seg_drop_p=0.8),
    "F0": lambda: segments(horizontal_topk(), disable_segment=True),
    "K100": lambda: change(bare_grid(topk()), loss=parts.TopKLoss(q_percent=100)),
}
"""The ablation's configs (spec/variants.md, Ablation), class tokens removed in all."""

CONFIG = "cfg-"


def config_label(text: str) -> str:
    """Return how a config is shown, "cfg-A:q_percent=1": domains have letters too."""
    return re.sub(rf"^({'|'.join(ABLATION)})(?=[:,]|$)", rf"{CONFIG}\1", text)


ROW_CONTEXT = "row_context=2"
CONFIG_SETS: dict[str, tuple[str, ...]] = {
    "ablation": tuple(ABLATION),
    "directional": (
        *("A0", "D", "decoder_dropout", "row_mask", "row_masking", "directional_topk"),
        *(f"A0:{ROW_CONTEXT}", f"D:{ROW_CONTEXT}"),
    ),
    "variants": ("A0", *(name for name in VARIANTS if name != "baseline")),
}
"""Lists of configs under one name; the first of a list is what the others are compared with."""
