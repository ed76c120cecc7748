"""The parts of one Dinomaly and their values; which of them a variant uses, ``variants.py`` says."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from dinomaly_hd.config.base import (
    AUTO_LAYERS,
    DEEPEST_DECODER,
    LAST_HALF,
    LEARNED,
    Blocks,
    Count,
    Frozen,
    Layers,
    Model,
    NonNegative,
    Positive,
    PositiveCount,
    Probability,
    Radius,
    Search,
    Weights,
    doc,
)

Element = Annotated[Probability, Field(description="element dropout of the bottleneck")]
DiscardFactor = Annotated[Probability, Field(description="share of gradient left to easy tokens")]
HalfWidth = Annotated[Count, Search(0, 2)]
PLAIN: Literal["none"] = "none"
PLUGIN_VARIABLE = "DINOMALY_HD_PLUGIN"
PLUGINS: dict[str, bytes] = {}
"""A user's files that this process has loaded, as ``DinomalyConfig.plugin`` names them, and their source."""
Scaling = Annotated[
    Literal["none", "position"],
    Field(description="of pixels before the encoder; position: by the training normals at the same place"),
]


class PlainBottleneck(Frozen):
    """MLP with element dropout."""

    bottleneck: Literal["plain"] = "plain"
    bottleneck_dropout: Element = 0.2


class Segments(Frozen):
    """Horizontal pieces of token rows that are dropped."""

    row_p: Annotated[Probability, Search(0.1, 0.5)] = doc(0.2, "share of rows that lose a segment [.15-.25]")
    seg_len: Annotated[PositiveCount, Search(1, 6)] = doc(2, "tokens of a segment, at most a row [2-3]")
    seg_drop_p: Annotated[Probability, Search(0.4, 1.0)] = doc(0.6, "chance of its tokens to drop [.5-.7]")


class SegmentBottleneck(Segments):
    """Horizontal segment dropout, then the MLP with element dropout ``elem_p``."""

    bottleneck: Literal["segment"] = "segment"
    elem_p: Annotated[Probability, Search(0.0, 0.3)] = doc(0.1, "element dropout beside the segments [0-.15]")
    disable_segment: Annotated[bool, Search(0, 1)] = doc(False, "true: no segments, only elem_p")


class RowMaskingBottleneck(Frozen):
    """Whole rows replaced by a learned token, then the MLP with element dropout."""

    bottleneck: Literal["row_masking"] = "row_masking"
    row_p: Annotated[Probability, Search(0.1, 0.5)] = doc(0.1, "share of masked token rows")
    bottleneck_dropout: Element = 0.2


class PlainAttention(Frozen):
    """Linear attention over all tokens."""

    attention: Literal["plain"] = "plain"


class RowDropoutAttention(Segments):
    """Segment dropout on the values inside decoder blocks."""

    attention: Literal["row_dropout"] = "row_dropout"
    decoder_blocks: Blocks = doc(LAST_HALF, "whose values drop: last-half, 4-7 or 1,3 (from 0)")
    decoder_heads: Probability = doc(0.5, "share of a block's heads whose values drop")
    keys: bool = doc(False, "true: the features of the keys drop too")
    decoder_warmup: Count = doc(200, "optimizer steps until row_p is reached in the decoder")


class RowBlindAttention(Frozen):
    """No query reads its own row nearby."""

    attention: Literal["row_blind"] = "row_blind"
    row_radius: Radius = doc("3", "columns to either side that a query cannot read, or full")


class Discard(Frozen):
    """The schedule of the share of tokens that count as easy."""

    discard_final: Probability = doc(0.9, "share of easy tokens after warm-up")
    discard_warmup: Count = doc(1000, "optimizer steps until discard_final")


class HardMiningLoss(Discard):
    """The original's loss."""

    loss: Literal["hard_mining"] = "hard_mining"
    discard_factor: DiscardFactor = 0.1


class PooledMiningLoss(Discard):
    """The mean of the pooled distance."""

    loss: Literal["pooled_mining"] = "pooled_mining"
    gem_factor: Probability = doc(0.3, "share of gradient left to easy tokens of the pooled map")


class AdaptiveLoss(Discard):
    """Hard mining whose discard rate follows each map's angular power entropy."""

    loss: Literal["adaptive"] = "adaptive"
    discard_factor: DiscardFactor = 0.1
    ape_scale: NonNegative = doc(4.0, "how strongly the discard rate follows the entropy, 0: not")


class FocalLoss(Frozen):
    """Token distances weighted by their own size."""

    loss: Literal["focal"] = "focal"
    focal_gamma: NonNegative = doc(2.0, "exponent of the focal weights")


class TopKLoss(Frozen):
    """The tail of the token distances."""

    loss: Literal["topk"] = "topk"
    q_percent: Annotated[float, Search(0.5, 20.0, log=True)] = doc(
        2.0, "final share of token distances in the loss, percent", gt=0, le=100
    )
    q_warmup: Count = doc(200, "optimizer steps over which q falls from 100")
    topk_scope: Literal["batch", "sample", "domain"] = doc("batch", "what shares one tail")
    tail_context: HalfWidth = doc(0, "half-width of the row mean that chooses the tail, 0: off")


class MeanDistance(Frozen):
    """Groups count alike."""

    distance: Literal["mean"] = "mean"


class GemDistance(Frozen):
    """Generalised mean of the groups."""

    distance: Literal["gem"] = "gem"
    gem_p: Positive = doc(3.0, "exponent of the generalised mean over groups")


class WeightedDistance(Frozen):
    """Groups weighted, by learned weights or by given ones."""

    distance: Literal["weighted"] = "weighted"
    scale_weights: Weights = doc(LEARNED, "learned, or a weight for each group such as .35,.65")


class NoAuxiliary(Frozen):
    """Reconstruction only."""

    auxiliary: Literal["none"] = "none"


class BandClassifier(Frozen):
    """Half of each batch gets a synthetic band, which a classifier on the bottleneck must tell."""

    auxiliary: Literal["bands"] = "bands"
    aux_weight: NonNegative = doc(0.1, "of the band classifier's cross-entropy in the loss")
    aux_score_weight: NonNegative = doc(0.0, "of its logit in the image score, 0: not used")


Bottleneck = Annotated[
    PlainBottleneck | SegmentBottleneck | RowMaskingBottleneck, Field(discriminator="bottleneck")
]
Attention = Annotated[
    PlainAttention | RowDropoutAttention | RowBlindAttention, Field(discriminator="attention")
]
Loss = Annotated[
    HardMiningLoss | PooledMiningLoss | AdaptiveLoss | FocalLoss | TopKLoss, Field(discriminator="loss")
]
Distance = Annotated[MeanDistance | GemDistance | WeightedDistance, Field(discriminator="distance")]
Auxiliary = Annotated[NoAuxiliary | BandClassifier, Field(discriminator="auxiliary")]


class DinomalyConfig(Model):
    """The parts of one Dinomaly; values of parts that a variant does not use do not exist in it."""

    encoded_by = ("class_token", "target_layers", "scaling")

    model_type: Literal["dinomaly"] = "dinomaly"
    variant: str = "baseline"
    plugin: str = ""  # "my_variant.py:DIGEST" of a user's own; else "", which is written nowhere
    bottleneck: Bottleneck = PlainBottleneck()
    attention: Attention = PlainAttention()
    loss: Loss = HardMiningLoss()
    distance: Distance = MeanDistance()
    auxiliary: Auxiliary = NoAuxiliary()
    class_token: Literal["keep", "remove"] = doc("keep", "and register tokens; keep as published")
    decoder_depth: int = doc(8, "decoder blocks", ge=2, le=DEEPEST_DECODER, multiple_of=2)
    row_context: HalfWidth = doc(0, "half-width of the row mean before scoring, 0: off")
    scaling: Scaling = PLAIN
    border: Literal["zero", "reflect"] = doc("zero", "of the map's blur; zero as published")
    target_layers: Layers = doc(AUTO_LAYERS, "auto, or the blocks to rebuild: 2,3,4,5,6,7,8,9")

    @model_serializer(mode="wrap")
    def _said(self, said: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in said(self).items() if (name, value) != ("plugin", "")}
