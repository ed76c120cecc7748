"""The parts of one Dinomaly and their values; which of them a variant uses, ``variants.py`` says."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dinomaly_hd.config.base import (
    Count,
    Frozen,
    NonNegative,
    Positive,
    PositiveCount,
    Probability,
    Search,
    doc,
)
from dinomaly_hd.config.texts import (
    AUTO_LAYERS,
    DEEPEST_DECODER,
    LAST_HALF,
    LEARNED,
    Blocks,
    Layers,
    Radius,
    Weights,
)

Element = Annotated[Probability, doc("element dropout of the bottleneck")]
DiscardFactor = Annotated[Probability, doc("share of gradient left to easy tokens")]
HalfWidth = Annotated[Count, Search(0, 2)]


class PlainBottleneck(Frozen):
    """MLP with element dropout."""

    bottleneck: Literal["plain"] = "plain"
    bottleneck_dropout: Element = 0.2


class Segments(Frozen):
    """Horizontal pieces of token rows that are dropped."""

    row_p: Annotated[Probability, Search(0.1, 0.5), doc("share of rows with a dropped segment [.15-.25]")] = (
        0.2
    )
    seg_len: Annotated[PositiveCount, Search(1, 6), doc("tokens of a segment, at most a row [2-3]")] = 2
    seg_drop_p: Annotated[
        Probability, Search(0.4, 1.0), doc("chance of its tokens to be dropped [.5-.7]")
    ] = 0.6


class SegmentBottleneck(Segments):
    """Horizontal segment dropout, then the MLP with element dropout ``elem_p``."""

    bottleneck: Literal["segment"] = "segment"
    elem_p: Annotated[Probability, Search(0.0, 0.3), doc("element dropout beside the segments [0-.15]")] = 0.1
    disable_segment: Annotated[bool, Search(0, 1), doc("true: no segments, only elem_p")] = False


class RowMaskingBottleneck(Frozen):
    """Whole rows replaced by a learned token, then the MLP with element dropout."""

    bottleneck: Literal["row_masking"] = "row_masking"
    row_p: Annotated[Probability, Search(0.1, 0.5), doc("share of masked token rows")] = 0.1
    bottleneck_dropout: Element = 0.2


class PlainAttention(Frozen):
    """Linear attention over all tokens."""

    attention: Literal["plain"] = "plain"


class RowDropoutAttention(Segments):
    """Segment dropout on the values inside decoder blocks."""

    attention: Literal["row_dropout"] = "row_dropout"
    decoder_blocks: Annotated[Blocks, doc("whose values drop: last-half, 4-7 or 1,3 (from 0)")] = LAST_HALF
    decoder_heads: Annotated[Probability, doc("share of a block's heads whose values drop")] = 0.5
    keys: Annotated[bool, doc("true: the features of the keys drop too")] = False
    decoder_warmup: Annotated[Count, doc("optimizer steps until row_p is reached in the decoder")] = 200


class RowBlindAttention(Frozen):
    """No query reads its own row nearby."""

    attention: Literal["row_blind"] = "row_blind"
    row_radius: Annotated[Radius, doc("columns to either side that a query cannot read, or full")] = "3"


class Discard(Frozen):
    """The schedule of the share of tokens that count as easy."""

    discard_final: Annotated[Probability, doc("share of easy tokens after warm-up")] = 0.9
    discard_warmup: Annotated[Count, doc("optimizer steps until discard_final")] = 1000


class HardMiningLoss(Discard):
    """The original's loss."""

    loss: Literal["hard_mining"] = "hard_mining"
    discard_factor: DiscardFactor = 0.1


class PooledMiningLoss(Discard):
    """The mean of the pooled distance."""

    loss: Literal["pooled_mining"] = "pooled_mining"
    gem_factor: Annotated[Probability, doc("share of gradient left to easy tokens of the pooled map")] = 0.3


class AdaptiveLoss(Discard):
    """Hard mining whose discard rate follows each map's angular power entropy."""

    loss: Literal["adaptive"] = "adaptive"
    discard_factor: DiscardFactor = 0.1
    ape_scale: Annotated[NonNegative, doc("how strongly the discard rate follows the entropy, 0: not")] = 4.0


class FocalLoss(Frozen):
    """Token distances weighted by their own size."""

    loss: Literal["focal"] = "focal"
    focal_gamma: Annotated[NonNegative, doc("exponent of the focal weights")] = 2.0


class TopKLoss(Frozen):
    """The tail of the token distances."""

    loss: Literal["topk"] = "topk"
    q_percent: Annotated[
        float,
        Field(gt=0, le=100),
        Search(0.5, 20.0, log=True),
        doc("final share of token distances in the loss, percent"),
    ] = 2.0
    q_warmup: Annotated[Count, doc("optimizer steps over which q falls from 100")] = 200
    topk_scope: Annotated[Literal["batch", "sample", "domain"], doc("what shares one tail")] = "batch"
    tail_context: Annotated[HalfWidth, doc("half-width of the row mean that chooses the tail, 0: off")] = 0


class MeanDistance(Frozen):
    """Groups count alike."""

    distance: Literal["mean"] = "mean"


class GemDistance(Frozen):
    """Generalised mean of the groups."""

    distance: Literal["gem"] = "gem"
    gem_p: Annotated[Positive, doc("exponent of the generalised mean over groups")] = 3.0


class WeightedDistance(Frozen):
    """Groups weighted, by learned weights or by given ones."""

    distance: Literal["weighted"] = "weighted"
    scale_weights: Annotated[Weights, doc("learned, or a weight for each group such as .35,.65")] = LEARNED


class NoAuxiliary(Frozen):
    """Reconstruction only."""

    auxiliary: Literal["none"] = "none"


class BandClassifier(Frozen):
    """Half of each batch gets a synthetic band, which a classifier on the bottleneck must tell."""

    auxiliary: Literal["bands"] = "bands"
    aux_weight: Annotated[NonNegative, doc("of the band classifier's cross-entropy in the loss")] = 0.1
    aux_score_weight: Annotated[NonNegative, doc("of its logit in the image score, 0: not used")] = 0.0


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


class Model(Frozen):
    """Base of a family's config."""

    encoded_by: ClassVar[tuple[str, ...]] = ()
    """What the encoder's output for an image depends on beside the encoder's own settings."""

    @property
    def encoding(self) -> str:
        """The values of ``encoded_by``, as part of the key of kept features."""
        return " ".join(str(getattr(self, name)) for name in self.encoded_by)


class DinomalyConfig(Model):
    """The parts of one Dinomaly; values of parts that a variant does not use do not exist in it."""

    encoded_by = ("class_token", "target_layers")

    model_type: Literal["dinomaly"] = "dinomaly"
    variant: str = "baseline"
    bottleneck: Bottleneck = PlainBottleneck()
    attention: Attention = PlainAttention()
    loss: Loss = HardMiningLoss()
    distance: Distance = MeanDistance()
    auxiliary: Auxiliary = NoAuxiliary()
    class_token: Annotated[Literal["keep", "remove"], doc("and register tokens; keep as published")] = "keep"
    decoder_depth: Annotated[int, Field(ge=2, le=DEEPEST_DECODER, multiple_of=2), doc("decoder blocks")] = 8
    row_context: Annotated[HalfWidth, doc("half-width of the row mean before scoring, 0: off")] = 0
    border: Annotated[Literal["zero", "reflect"], doc("of the map's blur; zero as published")] = "zero"
    target_layers: Annotated[Layers, doc("auto, or the blocks to rebuild: 2,3,4,5,6,7,8,9")] = AUTO_LAYERS
