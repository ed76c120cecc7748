"""The families beside Dinomaly: PatchCore, DRAEM, DRAEM-SevNet, and scores without a model."""

from typing import Annotated, Literal

from pydantic import Field

from dinomaly_hd.config.base import Frozen, Line, NonNegative, Positive, PositiveCount, Probability, doc
from dinomaly_hd.config.dinomaly import DinomalyConfig, Model
from dinomaly_hd.config.texts import AUTO_LAYERS, NO_CONTEXT, Context, Layers, Range, WholeRange

OTHER_IMAGES, TEXTURES = "images", "textures"
FaultShare = Annotated[Probability, doc("share of images with a synthetic fault")]
HiddenWidth = Annotated[PositiveCount, doc("width of the head's hidden layer")]


class PatchCoreConfig(Model):
    """A memory bank of patch features."""

    encoded_by = ("layers",)

    model_type: Literal["patchcore"] = "patchcore"
    variant: Literal["patchcore"] = "patchcore"
    layers: Annotated[Layers, doc("auto, or those read: 2,3 (CNN stages) or 8,11 (ViT blocks)")] = AUTO_LAYERS
    coreset_sampling_ratio: Annotated[float, Field(gt=0, le=1), doc("of patches, kept in the bank")] = 0.1
    num_neighbors: Annotated[PositiveCount, doc("in the bank that re-weight a score, 1: none")] = 9
    context: Annotated[Context, doc("half-widths of means appended to a patch: 2 or 2,3; 0: none")] = (
        NO_CONTEXT
    )


class PerlinFaults(Frozen):
    """Perlin-shaped pieces of a texture."""

    fault_source: Literal["perlin"] = "perlin"
    anomaly_probability: FaultShare = 0.5
    anomaly_source_path: Annotated[Line, doc("images (of the batch), textures, or a folder")] = OTHER_IMAGES


class PatchFaults(Frozen):
    """Patches cut from the image and added elsewhere."""

    fault_source: Literal["patch"] = "patch"
    anomaly_probability: FaultShare = 0.5
    patch_width_range: Annotated[WholeRange, doc("pixels, LOW-HIGH")] = "20-80"
    patch_ratio_range: Annotated[Range, doc("height / width of a patch, LOW-HIGH; below 1 is wide")] = (
        "0.35-0.67"
    )
    patch_count: Annotated[PositiveCount, doc("patches of a faulty image")] = 1
    severity_max: Annotated[Positive, doc("largest factor on an added patch")] = 1.0


class BandFaults(Frozen):
    """Thin horizontal bands."""

    fault_source: Literal["band"] = "band"
    anomaly_probability: FaultShare = 0.5
    map_rows: Annotated[PositiveCount, doc("of a map as it is read; a band is 1 to 3 of them high")] = 31


class PooledHead(Frozen):
    """Global averages of the discriminator's activations."""

    severity_head_pooling_type: Literal["gap"] = "gap"
    severity_head_hidden_dim: HiddenWidth = 128


class SpatialHead(Frozen):
    """A convolution and a small grid of averages of each activation, weighted by spatial attention."""

    severity_head_pooling_type: Literal["spatial_aware"] = "spatial_aware"
    severity_head_hidden_dim: HiddenWidth = 128
    severity_head_spatial_size: Annotated[int, Field(ge=1, le=256), doc("side of the averaged grid")] = 4
    severity_head_use_spatial_attention: Annotated[bool, doc("weigh places before they are averaged")] = True


class SimpleAverage(Frozen):
    """Score = mean of the largest softmax and the severity."""

    score_combination: Literal["simple_average"] = "simple_average"


class WeightedAverage(Frozen):
    """Score = weighted mean."""

    score_combination: Literal["weighted_average"] = "weighted_average"
    severity_weight_for_combination: Annotated[Probability, doc("severity in the weighted mean")] = 0.5


class Maximum(Frozen):
    """Score = the larger of the two."""

    score_combination: Literal["maximum"] = "maximum"


Faults = Annotated[
    PerlinFaults | PatchFaults | BandFaults,
    Field(discriminator="fault_source", description="kind of synthetic faults"),
]
SeverityHead = Annotated[
    PooledHead | SpatialHead,
    Field(discriminator="severity_head_pooling_type", description="how activations are averaged"),
]
Combination = Annotated[
    SimpleAverage | WeightedAverage | Maximum,
    Field(
        discriminator="score_combination",
        description="of probability and severity",
    ),
]
Width = Annotated[
    float, Field(gt=0, le=16, description="factor on the width of both networks, 1 as published")
]


class DraemConfig(Model):
    """Reconstruct and discriminate."""

    width: Width = 1.0
    model_type: Literal["draem"] = "draem"
    variant: Literal["draem"] = "draem"
    faults: Faults = PerlinFaults()
    image_score: Annotated[
        Literal["max", "top_share"], doc("largest anomaly probability, or mean of the largest 1 %")
    ] = "max"


class SevNetConfig(Model):
    """DRAEM with a head that tells how severe the fault is."""

    width: Width = 1.0
    model_type: Literal["draem_sevnet"] = "draem_sevnet"
    variant: Literal["draem_sevnet"] = "draem_sevnet"
    faults: Faults = PatchFaults()
    severity_head_mode: Annotated[
        Literal["single_scale", "multi_scale"], doc("activations that the severity is read from")
    ] = "single_scale"
    head: SeverityHead = PooledHead()
    severity_weight: Annotated[NonNegative, doc("of the severity in the loss")] = 0.5
    severity_loss_type: Annotated[Literal["mse", "smooth_l1"], doc("of the severity")] = "mse"
    combination: Combination = SimpleAverage()


class TrivialConfig(Model):
    """A number taken from the image alone, with no model: what every detector must beat."""

    model_type: Literal["trivial"] = "trivial"
    variant: Literal["trivial"] = "trivial"
    trivial_score: Annotated[Literal["max", "mean", "std", "contrast"], doc("number that an image gives")] = (
        "max"
    )


ModelConfig = Annotated[
    DinomalyConfig | PatchCoreConfig | DraemConfig | SevNetConfig | TrivialConfig,
    Field(discriminator="model_type"),
]
