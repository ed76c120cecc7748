"""From a run's config to its detector: a family, and a part of one, is a row of a table here."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinomaly_hd.config.base import blocks_of, size_of
from dinomaly_hd.config.dinomaly import DinomalyConfig
from dinomaly_hd.config.families import (
    OTHER_IMAGES,
    TEXTURES,
    DraemConfig,
    PatchCoreConfig,
    PerlinFaults,
    SevNetConfig,
    SourceFaults,
    TrivialConfig,
)
from dinomaly_hd.config.run import ALL_DOMAINS, EncoderConfig, ImageInput, RunConfig, TrainingConfig
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.models.detector import Detector, Prediction, resized
from dinomaly_hd.models.dinomaly import attention, bottleneck, decoder, losses, score
from dinomaly_hd.models.dinomaly.bottleneck import BottleneckMLP, NoisyMLP, RowMasking
from dinomaly_hd.models.dinomaly.detector import Dinomaly
from dinomaly_hd.models.draem import faults
from dinomaly_hd.models.draem.detector import Draem, SevNet
from dinomaly_hd.models.draem.networks import check_input
from dinomaly_hd.models.encoders import build_encoder, target_layers
from dinomaly_hd.models.networks import architecture, preprocessing_of
from dinomaly_hd.models.patchcore.detector import PatchCore
from dinomaly_hd.models.patchcore.features import build_patch_features, check_layers
from dinomaly_hd.models.row_evidence import RowEvidence
from dinomaly_hd.models.weights import Weights
from dinomaly_hd.trivial import TRIVIAL

Grid = tuple[int, int]

# Parts, by the names that configs have for them. Each takes its own config, the first argument.
BOTTLENECKS: dict[str, Callable[[Any, int, Grid], bottleneck.Bottleneck]] = {
    "plain": lambda config, width, _: BottleneckMLP(width, p=config.bottleneck_dropout),
    "segment": bottleneck.segment,
    "row_masking": lambda config, width, grid: NoisyMLP(
        RowMasking(grid, width, config), BottleneckMLP(width, p=config.bottleneck_dropout)
    ),
}
ATTENTIONS: dict[str, Callable[[Any, Grid, int, int], attention.PlainMixing]] = {
    "plain": lambda *_: attention.PlainMixing(),
    "row_dropout": attention.RowDropoutMixing,
    "row_blind": lambda config, grid, *_: attention.RowBlindMixing(config, grid),
}
LOSSES: dict[str, Callable[[Any, Grid], losses.ReconstructionLoss]] = {
    "hard_mining": losses.HardMining,
    "pooled_mining": losses.PooledMining,
    "adaptive": losses.AdaptiveMining,
    "focal": losses.Focal,
    "topk": losses.TopK,
}
DISTANCES: dict[str, Callable[[Any], score.MeanPooling]] = {
    "mean": score.MeanPooling,
    "gem": score.GemPooling,
    "weighted": score.WeightedPooling,
}
AUXILIARIES: dict[str, Callable[[Any, int, int], decoder.BandClassifier | None]] = {
    "none": lambda *_: None,
    "bands": decoder.BandClassifier,
}
FAULTS: dict[str, Callable[[Any, int, Tensor | None], faults.Faults]] = {
    "perlin": lambda config, _, textures_KHW: faults.PerlinFaults(config, textures_KHW),
    "patch": lambda config, *_: faults.PatchFaults(config),
    "band": lambda config, rows, _: faults.BandFaults(config, rows=rows),
    "source_domain": lambda config, _, signatures_KHW: faults.SourceFaults(config, signatures_KHW),
}


def _mixings(config: DinomalyConfig, *, grid: Grid, heads: int) -> list[attention.PlainMixing]:
    """Return how the tokens of each decoder block meet: plainly in blocks that the config does not name."""
    own, depth = config.attention, config.decoder_depth
    try:
        chosen = blocks_of(getattr(own, "decoder_blocks", f"0-{depth - 1}"), depth=depth)
    except ValueError as error:
        raise ConfigError(f"decoder_blocks={error}") from error
    mixing = ATTENTIONS[own.attention]
    return [
        mixing(own, grid, heads, block) if block in chosen else attention.PlainMixing()
        for block in range(depth)
    ]


def _check_dinomaly(run: RunConfig, config: DinomalyConfig, source: EncoderConfig) -> None:
    del run
    known = architecture(source)
    target_layers(source, config.target_layers)
    # Parts refuse grids that they do not fit. Widths and heads do not matter for it.
    BOTTLENECKS[config.bottleneck.bottleneck](config.bottleneck, 1, known.grid)
    _mixings(config, grid=known.grid, heads=1)
    reads_grid = config.bottleneck.bottleneck != "plain" or config.attention.attention != "plain"
    if known.is_transformer and reads_grid and config.class_token == "keep":
        raise ConfigError(
            f"class_token=keep: {config.variant} reads the token grid and needs class_token=remove"
        )


def _dinomaly(
    run: RunConfig, config: DinomalyConfig, source: EncoderConfig, *, weights: Weights, **_: Any
) -> Dinomaly:
    keep_prefix = config.class_token == "keep"
    encoder = build_encoder(
        source, weights=weights, keep_prefix=keep_prefix, layers=config.target_layers, seed=run.seed
    )
    grid, width, heads = encoder.grid, encoder.width, encoder.heads
    return Dinomaly(
        run,
        encoder=encoder,
        preprocessing=preprocessing_of(source),
        bottleneck=BOTTLENECKS[config.bottleneck.bottleneck](config.bottleneck, width, grid),
        decoder=decoder.Decoder(width, heads=heads, mixings=_mixings(config, grid=grid, heads=heads)),
        loss=LOSSES[config.loss.loss](config.loss, grid),
        pooling=DISTANCES[config.distance.distance](config.distance),
        auxiliary=AUXILIARIES[config.auxiliary.auxiliary](config.auxiliary, width, run.seed),
    )


def _patchcore(
    run: RunConfig, config: PatchCoreConfig, source: EncoderConfig, *, weights: Weights, **_: Any
) -> PatchCore:
    return PatchCore(
        config,
        encoder=build_patch_features(source, layers=config.layers, weights=weights, seed=run.seed),
        preprocessing=preprocessing_of(source),
        map_size=size_of(run.evaluation.map_size),
        seed=run.seed,
    )


def _check_draem(run: RunConfig, config: DraemConfig | SevNetConfig, source: ImageInput) -> None:
    if isinstance(config.faults, SourceFaults) and run.data.train_domains == ALL_DOMAINS:
        raise ConfigError(
            "fault_source=source_domain: faults of one domain are learned for others; use multi_domain, or "
            "fault_source=band"
        )
    assert isinstance(run.training, TrainingConfig)
    check_input(preprocessing_of(source).input_size, batch_size=run.training.batch_size)
    folder = texture_folder(run)
    if folder is not None and not os.path.isdir(folder):
        raise ConfigError(
            f"anomaly_source_path={folder}: no such folder; give one, or {OTHER_IMAGES} or {TEXTURES}"
        )


def texture_folder(run: RunConfig) -> Path | None:
    """Return the user's folder of textures, None where the run reads none."""
    config = getattr(run.model, "faults", None)
    if not isinstance(config, PerlinFaults) or config.anomaly_source_path in (OTHER_IMAGES, TEXTURES):
        return None
    return Path(config.anomaly_source_path).expanduser()


def _draem(
    run: RunConfig,
    config: DraemConfig | SevNetConfig,
    source: ImageInput,
    *,
    fault_KHW: Tensor | None,
    **_: Any,
) -> Draem:
    rows, _columns = size_of(source.image_size)
    detector: Callable[..., Draem] = SevNet if isinstance(config, SevNetConfig) else Draem
    return detector(
        config,
        preprocessing=preprocessing_of(source),
        faults=FAULTS[config.faults.fault_source](config.faults, rows, fault_KHW),
        map_size=size_of(run.evaluation.map_size),
        seed=run.seed,
    )


class Trivial(Detector):
    """The score, float64, is a number of the raw map, and the anomaly map is that raw map."""

    def __init__(self, config: TrivialConfig, *, map_size: tuple[int, int]) -> None:
        super().__init__()
        self.number, self.map_size = TRIVIAL[config.trivial_score], map_size

    def encode(self, images_BHW: Tensor) -> Tensor:
        return images_BHW

    @torch.no_grad()
    def score(self, encoded: Tensor) -> Prediction:
        score_B = torch.from_numpy(self.number(encoded.float().cpu().numpy())).to(encoded.device)
        return Prediction(resized(encoded, self.map_size, antialias=True), score_B)


CHECKS: dict[str, Callable[..., object]] = {
    "dinomaly": _check_dinomaly,
    "patchcore": lambda _, config, source: check_layers(source, config.layers),
    "draem": _check_draem,
    "draem_sevnet": _check_draem,
    "trivial": lambda *_: None,
    "row_evidence": lambda *_: None,
}
BUILDERS: dict[str, Callable[..., Detector]] = {
    "dinomaly": _dinomaly,
    "patchcore": _patchcore,
    "draem": _draem,
    "draem_sevnet": _draem,
    "trivial": lambda run, config, *_, **__: Trivial(config, map_size=size_of(run.evaluation.map_size)),
    "row_evidence": lambda run, config, *_, **__: RowEvidence(
        config, map_size=size_of(run.evaluation.map_size), seed=run.seed
    ),
}


def check_model(run: RunConfig) -> None:
    """Refuse settings that do not fit each other, the encoder or the input, before any weights are loaded."""
    CHECKS[run.model.model_type](run, run.model, run.encoder)


def build_detector(run: RunConfig, *, weights: Weights, fault_KHW: Tensor | None = None) -> Detector:
    """Return the detector of a run; what is trained starts where the seed says.

    ``fault_KHW`` is what its synthetic faults are made of where that is read from files: a user's textures
    (``texture_folder``) or signatures of labelled faults. None where it only scores.
    """
    return BUILDERS[run.model.model_type](run, run.model, run.encoder, weights=weights, fault_KHW=fault_KHW)
