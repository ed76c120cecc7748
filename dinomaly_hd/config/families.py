"""The families beside Dinomaly: PatchCore, DRAEM, DRAEM-SevNet, and scores without a model."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dinomaly_hd.config.base import Frozen, Positive, PositiveCount, Probability
from dinomaly_hd.config.dinomaly import AUTO_LAYERS, DinomalyConfig, Layers, layers_of

NO_CONTEXT = "0"
OTHER_IMAGES, TEXTURES = "images", "textures"


def context_of(text: str) -> tuple[int, ...]:
    """Return the half-widths of "2" or "2,3"; "0" is none.

    >>> context_of("2,3"), context_of("0")
    ((2, 3), ())
    """
    return () if text == NO_CONTEXT else tuple(layers_of(text))


def range_of(text: str) -> tuple[float, float]:
    """Return the ends of "20-80".

    >>> range_of("0.35-0.67")
    (0.35, 0.67)
    """
    low, dash, high = text.partition("-")
    try:
        ends = float(low), float(high if dash else low)
    except ValueError:
        ends = (0.0, 0.0)
    if not 0 < ends[0] <= ends[1] < float("inf"):
        raise ValueError(f"{text!r} is no range: write LOW-HIGH above 0, such as 20-80")
    return ends


def _parse_context(text: str) -> str:
    try:
        good = text == NO_CONTEXT or 0 not in layers_of(text)
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"{text!r}: write half-widths of 1 or more such as 2,3, or {NO_CONTEXT} for none")
    return text


def _parse_range(text: str) -> str:
    range_of(text)
    return text


def _parse_whole_range(text: str) -> str:
    if any(end != int(end) for end in range_of(text)):
        raise ValueError(f"{text!r}: write whole pixels such as 20-80")
    return text


Context = Annotated[str, AfterValidator(_parse_context)]
Range = Annotated[str, AfterValidator(_parse_range)]
WholeRange = Annotated[str, AfterValidator(_parse_whole_range)]


class PatchCoreConfig(Frozen):
    """A memory bank of patch features; ``context`` appends means over horizontal neighbours."""

    model_type: Literal["patchcore"] = "patchcore"
    variant: Literal["patchcore"] = "patchcore"
    layers: Layers = AUTO_LAYERS
    coreset_sampling_ratio: Annotated[float, Field(gt=0, le=1)] = 0.1
    num_neighbors: PositiveCount = 9
    context: Context = NO_CONTEXT

    @property
    def encoding(self) -> str:
        """What the encoder's output for an image depends on beside the encoder's own settings."""
        return self.layers


class PerlinFaults(Frozen):
    """Perlin-shaped pieces of a texture: "images" (others of the batch), "textures", or a user's folder."""

    fault_source: Literal["perlin"] = "perlin"
    anomaly_probability: Probability = 0.5
    anomaly_source_path: Annotated[str, Field(min_length=1)] = OTHER_IMAGES


class PatchFaults(Frozen):
    """Patches cut from the image and added elsewhere; width in pixels, ratio height / width."""

    fault_source: Literal["patch"] = "patch"
    anomaly_probability: Probability = 0.5
    patch_width_range: WholeRange = "20-80"
    patch_ratio_range: Range = "0.35-0.67"
    patch_count: PositiveCount = 1
    severity_max: Positive = 1.0


class BandFaults(Frozen):
    """Thin horizontal bands, 1 to 3 of the map's rows high; it had ``map_rows`` before it was resized."""

    fault_source: Literal["band"] = "band"
    anomaly_probability: Probability = 0.5
    map_rows: PositiveCount = 31


class PooledHead(Frozen):
    """Global averages of the discriminator's activations."""

    severity_head_pooling_type: Literal["gap"] = "gap"
    severity_head_hidden_dim: PositiveCount = 128


class SpatialHead(Frozen):
    """A convolution and a small grid of averages of each activation, weighted by spatial attention."""

    severity_head_pooling_type: Literal["spatial_aware"] = "spatial_aware"
    severity_head_hidden_dim: PositiveCount = 128
    severity_head_spatial_size: PositiveCount = 4
    severity_head_use_spatial_attention: bool = True


class SimpleAverage(Frozen):
    """Score = mean of the largest softmax and the severity."""

    score_combination: Literal["simple_average"] = "simple_average"


class WeightedAverage(Frozen):
    """Score = weighted mean; the weight is the severity's."""

    score_combination: Literal["weighted_average"] = "weighted_average"
    severity_weight_for_combination: Probability = 0.5


class Maximum(Frozen):
    """Score = the larger of the two."""

    score_combination: Literal["maximum"] = "maximum"


Faults = Annotated[PerlinFaults | PatchFaults | BandFaults, Field(discriminator="fault_source")]
SeverityHead = Annotated[PooledHead | SpatialHead, Field(discriminator="severity_head_pooling_type")]
Combination = Annotated[SimpleAverage | WeightedAverage | Maximum, Field(discriminator="score_combination")]

PARTS: dict[str, dict[str, type[Frozen]]] = {
    "fault_source": {"perlin": PerlinFaults, "patch": PatchFaults, "band": BandFaults},
    "severity_head_pooling_type": {"gap": PooledHead, "spatial_aware": SpatialHead},
    "score_combination": {
        "simple_average": SimpleAverage,
        "weighted_average": WeightedAverage,
        "maximum": Maximum,
    },
}
"""Parts that are chosen by the value that names them."""


class _Draem(Frozen):
    width: Positive = 1.0

    @property
    def encoding(self) -> str:
        """What the pre-processed image depends on beside the input's size."""
        return ""


class DraemConfig(_Draem):
    """Reconstruct and discriminate; ``width`` scales both networks."""

    model_type: Literal["draem"] = "draem"
    variant: Literal["draem"] = "draem"
    faults: Faults = PerlinFaults()
    image_score: Literal["max", "top_share"] = "max"


class SevNetConfig(_Draem):
    """DRAEM with a head that tells how severe the fault is."""

    model_type: Literal["draem_sevnet"] = "draem_sevnet"
    variant: Literal["draem_sevnet"] = "draem_sevnet"
    faults: Faults = PatchFaults()
    severity_head_mode: Literal["single_scale", "multi_scale"] = "single_scale"
    head: SeverityHead = PooledHead()
    severity_weight: Annotated[float, Field(ge=0)] = 0.5
    severity_loss_type: Literal["mse", "smooth_l1"] = "mse"
    combination: Combination = SimpleAverage()


class TrivialConfig(Frozen):
    """A number taken from the image alone, with no model: what every detector must beat."""

    model_type: Literal["trivial"] = "trivial"
    variant: Literal["trivial"] = "trivial"
    trivial_score: Literal["max", "mean", "std", "contrast"] = "max"

    @property
    def encoding(self) -> str:
        """Nothing: the image itself is read."""
        return ""


ModelConfig = Annotated[
    DinomalyConfig | PatchCoreConfig | DraemConfig | SevNetConfig | TrivialConfig,
    Field(discriminator="model_type"),
]
