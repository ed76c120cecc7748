"""From the configs of the families beside Dinomaly to their detectors."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Generator, Tensor

from dinomaly_hd.config import (
    OTHER_IMAGES,
    TEXTURES,
    BandFaults,
    DraemConfig,
    EncoderConfig,
    ImageInput,
    PatchCoreConfig,
    PatchFaults,
    PerlinFaults,
    RunConfig,
    SevNetConfig,
    TrainingConfig,
    TrivialConfig,
    context_of,
    range_of,
    size_of,
)
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.models import draem, faults, sevnet
from dinomaly_hd.models.build_encoder import build_patch_features, check_layers, preprocessing_of
from dinomaly_hd.models.draem_networks import activation_channels, check_batch
from dinomaly_hd.models.patchcore.detector import PatchCore
from dinomaly_hd.models.textures import FolderSource, OtherImages, Sources, Textures
from dinomaly_hd.models.trivial import Trivial
from dinomaly_hd.models.weights import Weights
from dinomaly_hd.trivial import TRIVIAL

HEAD_DROPOUT = 0.1


def check_patchcore(run: RunConfig) -> None:
    """Refuse an encoder, size or layers that are not there."""
    assert isinstance(run.model, PatchCoreConfig)
    assert isinstance(run.encoder, EncoderConfig)
    check_layers(run.encoder, run.model.layers)


def build_patchcore(run: RunConfig, weights: Weights, textures_KHW: Tensor | None) -> PatchCore:
    """Return an empty PatchCore."""
    del textures_KHW
    config = run.model
    assert isinstance(config, PatchCoreConfig)
    assert isinstance(run.encoder, EncoderConfig)
    return PatchCore(
        encoder=build_patch_features(run.encoder, layers=config.layers, weights=weights, seed=run.seed),
        preprocessing=preprocessing_of(run.encoder),
        coreset_sampling_ratio=config.coreset_sampling_ratio,
        num_neighbors=config.num_neighbors,
        context=context_of(config.context),
        map_size=size_of(run.evaluation.map_size),
        seed=run.seed,
    )


def check_trivial(run: RunConfig) -> None:
    """Nothing can be wrong: the score's name was checked with the config."""
    del run


def build_trivial(run: RunConfig, weights: Weights, textures_KHW: Tensor | None) -> Trivial:
    """Return a score without a model."""
    del weights, textures_KHW
    assert isinstance(run.model, TrivialConfig)
    return Trivial(TRIVIAL[run.model.trivial_score], map_size=size_of(run.evaluation.map_size))


def check_draem(run: RunConfig) -> None:
    """Refuse an input smaller than the SSIM's window, or textures that are not there."""
    assert isinstance(run.model, DraemConfig | SevNetConfig)
    assert isinstance(run.encoder, ImageInput)
    assert isinstance(run.training, TrainingConfig)
    size = preprocessing_of(run.encoder).input_size
    draem.check_size(size)
    check_batch(run.training.batch_size, size=size)
    folder = texture_folder(run)
    if folder is not None and not os.path.isdir(folder):
        raise ConfigError(
            f"anomaly_source_path={folder}: no such folder; give one, or {OTHER_IMAGES} or {TEXTURES}"
        )


def texture_folder(run: RunConfig) -> Path | None:
    """Return the user's folder of textures, None where the run reads none."""
    faults = getattr(run.model, "faults", None)
    if not isinstance(faults, PerlinFaults) or faults.anomaly_source_path in (OTHER_IMAGES, TEXTURES):
        return None
    return Path(faults.anomaly_source_path).expanduser()


class Unread:
    """Stands for the textures of a model that was loaded to score, which draws no faults."""

    def __call__(self, images_BHW: Tensor, *, generator: Generator) -> Tensor:
        del images_BHW, generator
        raise AssertionError("this model was loaded without its textures: it can score, not train")


def _perlin(config: PerlinFaults, run: RunConfig, textures_KHW: Tensor | None) -> faults.Faults:
    del run
    known: dict[str, Sources] = {OTHER_IMAGES: OtherImages(), TEXTURES: Textures()}
    folder = Unread() if textures_KHW is None else FolderSource(textures_KHW=textures_KHW)
    sources = known.get(config.anomaly_source_path, folder)
    return faults.PerlinFaults(probability=config.anomaly_probability, sources=sources)


def _patches(config: PatchFaults, run: RunConfig, textures_KHW: Tensor | None) -> faults.Faults:
    del run, textures_KHW
    narrowest, widest = range_of(config.patch_width_range)
    return faults.PatchFaults(
        probability=config.anomaly_probability,
        width=(int(narrowest), int(widest)),
        ratio=range_of(config.patch_ratio_range),
        count=config.patch_count,
        severity_max=config.severity_max,
    )


def _band(config: BandFaults, run: RunConfig, textures_KHW: Tensor | None) -> faults.Faults:
    del textures_KHW
    assert isinstance(run.encoder, ImageInput)
    row = size_of(run.encoder.image_size)[0] / config.map_rows  # pixels
    lowest, highest = max(1, round(row)), max(1, round(faults.LARGEST_HEIGHT * row))
    return faults.BandFaults(probability=config.anomaly_probability, height=(lowest, highest))


FAULTS: dict[str, Callable[[Any, RunConfig, Tensor | None], faults.Faults]] = {
    "perlin": _perlin,
    "patch": _patches,
    "band": _band,
}
POOLINGS: dict[str, Callable[[Any], Callable[..., sevnet.Pooling]]] = {
    "gap": lambda _: sevnet.GlobalPooling,
    "spatial_aware": lambda config: partial(
        sevnet.SpatialPooling,
        size=config.severity_head_spatial_size,
        attention=config.severity_head_use_spatial_attention,
    ),
}
COMBINATIONS: dict[str, Callable[[Any], sevnet.Combination]] = {
    "simple_average": lambda _: sevnet.SIMPLE_AVERAGE,
    "weighted_average": lambda config: sevnet.WeightedAverage(config.severity_weight_for_combination),
    "maximum": lambda _: sevnet.MAXIMUM,
}


def build_draem(run: RunConfig, weights: Weights, textures_KHW: Tensor | None) -> draem.Draem:
    """Return an untrained DRAEM."""
    del weights
    config = run.model
    assert isinstance(config, DraemConfig)
    assert isinstance(run.encoder, ImageInput)
    return draem.Draem(
        preprocessing=preprocessing_of(run.encoder),
        faults=FAULTS[config.faults.fault_source](config.faults, run, textures_KHW),
        width=config.width,
        image_score=config.image_score,
        map_size=size_of(run.evaluation.map_size),
        seed=run.seed,
    )


def build_sevnet(run: RunConfig, weights: Weights, textures_KHW: Tensor | None) -> sevnet.SevNet:
    """Return an untrained DRAEM-SevNet."""
    del weights
    config = run.model
    assert isinstance(config, SevNetConfig)
    assert isinstance(run.encoder, ImageInput)
    largest = config.faults.severity_max if isinstance(config.faults, PatchFaults) else 1.0
    head = sevnet.SeverityHead(
        activation_channels(config.width),
        mode=config.severity_head_mode,
        pooling=POOLINGS[config.head.severity_head_pooling_type](config.head),
        hidden=config.head.severity_head_hidden_dim,
        dropout=HEAD_DROPOUT,
    )
    return sevnet.SevNet(
        preprocessing=preprocessing_of(run.encoder),
        faults=FAULTS[config.faults.fault_source](config.faults, run, textures_KHW),
        width=config.width,
        head=head,
        severity_loss=sevnet.SeverityLoss(
            kind=config.severity_loss_type, weight=config.severity_weight, severity_max=largest
        ),
        combination=COMBINATIONS[config.combination.score_combination](config.combination),
        map_size=size_of(run.evaluation.map_size),
        seed=run.seed,
    )
