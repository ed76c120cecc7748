"""The families beside Dinomaly: PatchCore, DRAEM, DRAEM-SevNet, and scores without a model."""

from typing import Annotated, Literal

from pydantic import Field

from dinomaly_hd.config.base import (
    AUTO_LAYERS,
    FULL_ROW,
    NO_CONTEXT,
    Context,
    Frozen,
    Layers,
    Line,
    Model,
    NonNegative,
    Positive,
    PositiveCount,
    Probability,
    Radius,
    Range,
    Search,
    WholeRange,
    doc,
)
from dinomaly_hd.config.dinomaly import PLAIN, DinomalyConfig, Scaling

OTHER_IMAGES, TEXTURES = "images", "textures"
FaultShare = Annotated[Probability, Field(description="share of images with a synthetic fault")]
HiddenWidth = Annotated[PositiveCount, Field(description="width of the head's hidden layer")]


class PatchCoreConfig(Model):
    """A memory bank of patch features."""

    encoded_by = ("layers", "scaling")

    model_type: Literal["patchcore"] = "patchcore"
    variant: Literal["patchcore"] = "patchcore"
    layers: Layers = doc(AUTO_LAYERS, "auto, or those read: 2,3 (CNN stages) or 8,11 (ViT blocks)")
    coreset_sampling_ratio: float = doc(0.1, "of patches, kept in the bank", gt=0, le=1)
    num_neighbors: PositiveCount = doc(9, "in the bank that re-weight a score, 1: none")
    context: Context = doc(NO_CONTEXT, "half-widths of means appended to a patch: 2 or 2,3; 0: none")
    position_radius: Radius = doc(
        FULL_ROW, "tokens, how far from its own place a patch may have its neighbours; full: anywhere"
    )
    scaling: Scaling = PLAIN


class PerlinFaults(Frozen):
    """Perlin-shaped pieces of a texture."""

    fault_source: Literal["perlin"] = "perlin"
    anomaly_probability: FaultShare = 0.5
    anomaly_source_path: Line = doc(OTHER_IMAGES, "images (of the batch), textures, or a folder")


class PatchFaults(Frozen):
    """Patches cut from the image and added elsewhere."""

    fault_source: Literal["patch"] = "patch"
    anomaly_probability: FaultShare = 0.5
    patch_width_range: WholeRange = doc("20-80", "pixels, LOW-HIGH")
    patch_ratio_range: Range = doc("0.35-0.67", "height / width of a patch, LOW-HIGH; below 1 is wide")
    patch_count: PositiveCount = doc(1, "patches of a faulty image")
    severity_max: Positive = doc(1.0, "largest factor on an added patch")


class BandFaults(Frozen):
    """Thin horizontal bands."""

    fault_source: Literal["band"] = "band"
    anomaly_probability: FaultShare = 0.5
    map_rows: PositiveCount = doc(31, "of a map as it is read; a band is 1 to 3 of them high")


class SourceFaults(Frozen):
    """Signatures of the source domain's labelled faults, put onto healthy maps of all domains."""

    fault_source: Literal["source_domain"] = "source_domain"
    anomaly_probability: FaultShare = 0.5
    signature_scale: Range = doc("0.3-1.2", "factor on a pasted signature, LOW-HIGH")


class PooledHead(Frozen):
    """Global averages of the discriminator's activations."""

    severity_head_pooling_type: Literal["gap"] = "gap"
    severity_head_hidden_dim: HiddenWidth = 128


class SpatialHead(Frozen):
    """A convolution and a small grid of averages of each activation, weighted by spatial attention."""

    severity_head_pooling_type: Literal["spatial_aware"] = "spatial_aware"
    severity_head_hidden_dim: HiddenWidth = 128
    severity_head_spatial_size: int = doc(4, "side of the averaged grid", ge=1, le=256)
    severity_head_use_spatial_attention: bool = doc(True, "weigh places before they are averaged")


class SimpleAverage(Frozen):
    """Score = mean of the largest softmax and the severity."""

    score_combination: Literal["simple_average"] = "simple_average"


class WeightedAverage(Frozen):
    """Score = weighted mean."""

    score_combination: Literal["weighted_average"] = "weighted_average"
    severity_weight_for_combination: Probability = doc(0.5, "severity in the weighted mean")


class Maximum(Frozen):
    """Score = the larger of the two."""

    score_combination: Literal["maximum"] = "maximum"


Faults = Annotated[
    PerlinFaults | PatchFaults | BandFaults | SourceFaults,
    Field(discriminator="fault_source", description="kind of synthetic faults"),
]
SeverityHead = Annotated[
    PooledHead | SpatialHead,
    Field(discriminator="severity_head_pooling_type", description="how activations are averaged"),
]
Combination = Annotated[
    SimpleAverage | WeightedAverage | Maximum,
    Field(discriminator="score_combination", description="of probability and severity"),
]
Width = Annotated[float, Field(gt=0, le=16, description="factor on both networks' width, 1 as published")]


class DraemConfig(Model):
    """Reconstruct and discriminate."""

    width: Width = 1.0
    model_type: Literal["draem"] = "draem"
    variant: Literal["draem"] = "draem"
    faults: Faults = PerlinFaults()
    image_score: Literal["max", "top_share"] = doc("max", "largest probability, or mean of the largest 1 %")


class SevNetConfig(Model):
    """DRAEM with a head that tells how severe the fault is."""

    width: Width = 1.0
    model_type: Literal["draem_sevnet"] = "draem_sevnet"
    variant: Literal["draem_sevnet"] = "draem_sevnet"
    faults: Faults = PatchFaults()
    severity_head_mode: Literal["single_scale", "multi_scale"] = doc(
        "single_scale", "activations that the severity is read from"
    )
    head: SeverityHead = PooledHead()
    severity_weight: NonNegative = doc(0.5, "of the severity in the loss")
    severity_loss_type: Literal["mse", "smooth_l1"] = doc("mse", "of the severity")
    combination: Combination = SimpleAverage()


class TrivialConfig(Model):
    """A number taken from the image alone, with no model: what every detector must beat."""

    model_type: Literal["trivial"] = "trivial"
    variant: Literal["trivial"] = "trivial"
    trivial_score: Literal["max", "mean", "std", "contrast"] = doc("max", "number that an image gives")


class RowEvidenceConfig(Model):
    """How much likelier each row is with a band than without, learned from bands on training normals."""

    model_type: Literal["row_evidence"] = "row_evidence"
    variant: Literal["row_evidence"] = "row_evidence"
    evidence_bands: Literal["factor", "additive", "both"] = doc(
        "factor", "bands it learns from: a row times a factor, rows plus a share of the maximum, or by turns"
    )
    evidence_copies: Annotated[int, Search(2, 16)] = doc(
        8, "banded copies of each training normal", ge=1, le=64
    )
    evidence_penalty: Annotated[float, Search(1e-5, 1e-1, log=True)] = doc(
        1e-3, "L2 on the regression's weights, beside the mean loss", gt=0, le=1
    )


ModelConfig = Annotated[
    DinomalyConfig | PatchCoreConfig | DraemConfig | SevNetConfig | TrivialConfig | RowEvidenceConfig,
    Field(discriminator="model_type"),
]
