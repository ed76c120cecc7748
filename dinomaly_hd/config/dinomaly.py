"""The parts of one Dinomaly and their values; which of them a variant uses, ``variants.py`` says."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dinomaly_hd.config.base import Count, Frozen, Positive, PositiveCount, Probability

LAST_HALF, FULL_ROW, LEARNED, AUTO_LAYERS = "last-half", "full", "learned", "auto"
GROUPS = 2
"""Groups of encoder layers that the decoder rebuilds."""
MOST_BLOCKS = 1000


def blocks_of(text: str, *, depth: int) -> list[int]:
    """Return the decoder blocks of "last-half", "4-7" or "1,3", counted from 0, of a decoder of ``depth``.

    >>> blocks_of("last-half", depth=8), blocks_of("0,2-3", depth=8)
    ([4, 5, 6, 7], [0, 2, 3])
    """
    if text == LAST_HALF:
        return list(range(depth // 2, depth))
    chosen: set[int] = set()
    for part in text.split(","):
        ends = part.strip().split("-")
        if len(ends) > 2 or not all(end.isdecimal() for end in ends) or int(ends[0]) > int(ends[-1]):
            raise ValueError(f"{text!r} names no decoder blocks: write {LAST_HALF}, 4-7 or 1,3")
        chosen |= set(range(int(ends[0]), int(ends[-1]) + 1))
    if max(chosen) >= depth:
        raise ValueError(f"{text!r}: the decoder has blocks 0..{depth - 1}")
    return sorted(chosen)


def weights_of(text: str) -> list[float]:
    """Return the group weights of ".35,.65", scaled to the sum 1.

    >>> weights_of("1,3")
    [0.25, 0.75]
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != GROUPS or not all(0 <= n < float("inf") for n in numbers) or sum(numbers) <= 0:
        raise ValueError(f"{text!r}: write {LEARNED}, or {GROUPS} weights of 0 or more such as .35,.65")
    return [number / sum(numbers) for number in numbers]


def _parse_blocks(text: str) -> str:
    if text != LAST_HALF:
        blocks_of(text, depth=MOST_BLOCKS)
    return text


def layers_of(text: str) -> list[int]:
    """Return the layer numbers of "2,3", or "2+3" inside a list, from 0, ascending.

    >>> layers_of("2,3"), layers_of("2+3")
    ([2, 3], [2, 3])
    """
    parts = text.replace("+", ",").split(",")
    numbers = [int(part) for part in parts if part.strip().isdecimal()]
    if len(numbers) != len(parts) or sorted(set(numbers)) != numbers:
        raise ValueError(f"{text!r} names no layers: write {AUTO_LAYERS}, or ascending numbers such as 2,3")
    return numbers


def _parse_layers(text: str) -> str:
    if text != AUTO_LAYERS:
        layers_of(text)
    return text


def _parse_radius(text: str) -> str:
    if text != FULL_ROW and not text.isdecimal():
        raise ValueError(f"{text!r} is not a radius: write columns, 0 or more, or {FULL_ROW}")
    return text


def _parse_weights(text: str) -> str:
    if text != LEARNED:
        weights_of(text)
    return text


Blocks = Annotated[str, AfterValidator(_parse_blocks)]
Layers = Annotated[str, AfterValidator(_parse_layers)]
Radius = Annotated[str, AfterValidator(_parse_radius)]
ScaleWeights = Annotated[str, AfterValidator(_parse_weights)]


class PlainBottleneck(Frozen):
    """MLP with element dropout."""

    bottleneck: Literal["plain"] = "plain"
    bottleneck_dropout: Probability = 0.2


class Segments(Frozen):
    """Horizontal pieces of token rows that are dropped."""

    row_p: Probability = 0.2
    seg_len: PositiveCount = 2
    seg_drop_p: Probability = 0.6


class SegmentBottleneck(Segments):
    """Horizontal segment dropout, then the MLP with element dropout ``elem_p``."""

    bottleneck: Literal["segment"] = "segment"
    elem_p: Probability = 0.1
    disable_segment: bool = False


class RowMaskingBottleneck(Frozen):
    """Whole rows replaced by a learned token, then the MLP with element dropout."""

    bottleneck: Literal["row_masking"] = "row_masking"
    row_p: Probability = 0.1
    bottleneck_dropout: Probability = 0.2


class PlainAttention(Frozen):
    """Linear attention over all tokens."""

    attention: Literal["plain"] = "plain"


class RowDropoutAttention(Segments):
    """Segment dropout on the values inside decoder blocks; ``keys``: on the keys' features too."""

    attention: Literal["row_dropout"] = "row_dropout"
    decoder_blocks: Blocks = LAST_HALF
    decoder_heads: Probability = 0.5
    keys: bool = False
    decoder_warmup: Count = 200


class RowBlindAttention(Frozen):
    """No query reads its own row within ``row_radius`` columns."""

    attention: Literal["row_blind"] = "row_blind"
    row_radius: Radius = "3"


class Discard(Frozen):
    """The schedule of the share of tokens that count as easy."""

    discard_final: Probability = 0.9
    discard_warmup: Count = 1000


class HardMiningLoss(Discard):
    """The original's loss."""

    loss: Literal["hard_mining"] = "hard_mining"
    discard_factor: Probability = 0.1


class PooledMiningLoss(Discard):
    """The mean of the pooled distance; easy tokens keep ``gem_factor`` of their gradient."""

    loss: Literal["pooled_mining"] = "pooled_mining"
    gem_factor: Probability = 0.3


class AdaptiveLoss(Discard):
    """Hard mining whose discard rate follows each map's angular power entropy."""

    loss: Literal["adaptive"] = "adaptive"
    discard_factor: Probability = 0.1
    ape_scale: Annotated[float, Field(ge=0)] = 4.0


class FocalLoss(Frozen):
    """Token distances weighted by their own size."""

    loss: Literal["focal"] = "focal"
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0


class TopKLoss(Frozen):
    """The tail of the token distances; ``tail_context`` smooths along rows what the tail is chosen by."""

    loss: Literal["topk"] = "topk"
    q_percent: Annotated[float, Field(gt=0, le=100)] = 2.0
    q_warmup: Count = 200
    topk_scope: Literal["batch", "sample", "domain"] = "batch"
    tail_context: Count = 0


class MeanDistance(Frozen):
    """Groups count alike."""

    distance: Literal["mean"] = "mean"


class GemDistance(Frozen):
    """Generalised mean of the groups."""

    distance: Literal["gem"] = "gem"
    gem_p: Positive = 3.0


class WeightedDistance(Frozen):
    """Groups weighted, by learned weights or by given ones such as ".35,.65"."""

    distance: Literal["weighted"] = "weighted"
    scale_weights: ScaleWeights = LEARNED


class NoAuxiliary(Frozen):
    """Reconstruction only."""

    auxiliary: Literal["none"] = "none"


class BandClassifier(Frozen):
    """Half of each batch gets a synthetic band, which a classifier on the bottleneck must tell."""

    auxiliary: Literal["bands"] = "bands"
    aux_weight: Annotated[float, Field(ge=0)] = 0.1
    aux_score_weight: Annotated[float, Field(ge=0)] = 0.0


class DinomalyConfig(Frozen):
    """The parts of one Dinomaly; values of parts that a variant does not use do not exist in it."""

    model_type: Literal["dinomaly"] = "dinomaly"
    variant: str = "baseline"
    bottleneck: Annotated[
        PlainBottleneck | SegmentBottleneck | RowMaskingBottleneck, Field(discriminator="bottleneck")
    ] = PlainBottleneck()
    attention: Annotated[
        PlainAttention | RowDropoutAttention | RowBlindAttention, Field(discriminator="attention")
    ] = PlainAttention()
    loss: Annotated[
        HardMiningLoss | PooledMiningLoss | AdaptiveLoss | FocalLoss | TopKLoss, Field(discriminator="loss")
    ] = HardMiningLoss()
    distance: Annotated[MeanDistance | GemDistance | WeightedDistance, Field(discriminator="distance")] = (
        MeanDistance()
    )
    auxiliary: Annotated[NoAuxiliary | BandClassifier, Field(discriminator="auxiliary")] = NoAuxiliary()
    class_token: Literal["keep", "remove"] = "keep"
    decoder_depth: Annotated[int, Field(ge=2, multiple_of=2)] = 8
    row_context: Count = 0
    border: Literal["zero", "reflect"] = "zero"
    target_layers: Layers = AUTO_LAYERS

    @property
    def encoding(self) -> str:
        """What the encoder's output for an image depends on beside the encoder's own settings."""
        return f"{self.class_token} {self.target_layers}"
