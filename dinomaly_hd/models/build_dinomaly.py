"""From a Dinomaly's config to its parts: the only place where their names become modules."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dinomaly_hd.config import (
    FULL_ROW,
    LEARNED,
    AdaptiveLoss,
    BandClassifier,
    DinomalyConfig,
    EncoderConfig,
    FocalLoss,
    GemDistance,
    HardMiningLoss,
    MeanDistance,
    NoAuxiliary,
    PlainAttention,
    PlainBottleneck,
    PooledMiningLoss,
    RowBlindAttention,
    RowDropoutAttention,
    RowMaskingBottleneck,
    RunConfig,
    SegmentBottleneck,
    Segments,
    TopKLoss,
    WeightedDistance,
    blocks_of,
    size_of,
    weights_of,
)
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.models import auxiliary, distance, losses
from dinomaly_hd.models.attention import Mixing, PlainMixing
from dinomaly_hd.models.bottleneck import BottleneckMLP, NoisyMLP, RowMasking, SegmentDropout
from dinomaly_hd.models.build_encoder import build_encoder, check_encoder, preprocessing_of
from dinomaly_hd.models.dinomaly import Bottleneck, Decoder, Dinomaly
from dinomaly_hd.models.row_attention import RowBlindMixing, RowDropoutMixing
from dinomaly_hd.models.weights import Weights

Grid = tuple[int, int]


def _plain(config: PlainBottleneck, width: int, grid: Grid) -> Bottleneck:
    del grid
    return BottleneckMLP(width, hidden=4 * width, p=config.bottleneck_dropout)


def _segment(config: SegmentBottleneck, width: int, grid: Grid) -> Bottleneck:
    mlp = BottleneckMLP(width, hidden=4 * width, p=config.elem_p)
    return mlp if config.disable_segment else NoisyMLP(_segments(config, grid), mlp)


def _row_masking(config: RowMaskingBottleneck, width: int, grid: Grid) -> Bottleneck:
    mlp = BottleneckMLP(width, hidden=4 * width, p=config.bottleneck_dropout)
    return NoisyMLP(RowMasking(grid, width=width, row_p=config.row_p), mlp)


def _segments(config: Segments, grid: Grid) -> SegmentDropout:
    return SegmentDropout(grid, row_p=config.row_p, seg_len=config.seg_len, seg_drop_p=config.seg_drop_p)


def _plain_mixing(config: PlainAttention, depth: int, heads: int, grid: Grid) -> list[Mixing]:
    del config, heads, grid
    return [PlainMixing() for _ in range(depth)]


def _row_blind(config: RowBlindAttention, depth: int, heads: int, grid: Grid) -> list[Mixing]:
    del heads
    radius = None if config.row_radius == FULL_ROW else int(config.row_radius)
    return [RowBlindMixing(grid, radius=radius) for _ in range(depth)]


def _row_dropout(config: RowDropoutAttention, depth: int, heads: int, grid: Grid) -> list[Mixing]:
    try:
        chosen = blocks_of(config.decoder_blocks, depth=depth)
    except ValueError as error:
        raise ConfigError(f"decoder_blocks={error}") from error
    mixings: list[Mixing] = [PlainMixing() for _ in range(depth)]
    for block in chosen:
        mixings[block] = RowDropoutMixing(
            _segments(config, grid),
            heads=round(config.decoder_heads * heads),
            keys=config.keys,
            warmup=config.decoder_warmup,
            place=f"decoder block {block}",
        )
    return mixings


def _hard_mining(config: HardMiningLoss, grid: Grid) -> losses.ReconstructionLoss:
    del grid
    return losses.HardMining(**config.model_dump(exclude={"loss"}))


def _pooled_mining(config: PooledMiningLoss, grid: Grid) -> losses.ReconstructionLoss:
    del grid
    return losses.PooledMining(**config.model_dump(exclude={"loss"}))


def _adaptive(config: AdaptiveLoss, grid: Grid) -> losses.ReconstructionLoss:
    del grid
    return losses.AdaptiveMining(**config.model_dump(exclude={"loss"}))


def _focal(config: FocalLoss, grid: Grid) -> losses.ReconstructionLoss:
    del grid
    return losses.Focal(gamma=config.focal_gamma)


def _topk(config: TopKLoss, grid: Grid) -> losses.ReconstructionLoss:
    return losses.TopK(
        q_percent=config.q_percent,
        q_warmup=config.q_warmup,
        scope=config.topk_scope,
        tail_context=config.tail_context,
        grid=grid,
    )


def _mean(config: MeanDistance) -> distance.Pooling:
    del config
    return distance.MeanPooling()


def _gem(config: GemDistance) -> distance.Pooling:
    return distance.GemPooling(config.gem_p)


def _weighted(config: WeightedDistance) -> distance.Pooling:
    learned = config.scale_weights == LEARNED
    return distance.WeightedPooling(None if learned else weights_of(config.scale_weights))


def _no_auxiliary(config: NoAuxiliary, width: int, seed: int) -> None:
    del config, width, seed


def _bands(config: BandClassifier, width: int, seed: int) -> auxiliary.BandClassifier:
    return auxiliary.BandClassifier(
        width, weight=config.aux_weight, score_weight=config.aux_score_weight, seed=seed
    )


BOTTLENECKS: dict[str, Callable[[Any, int, Grid], Bottleneck]] = {
    "plain": _plain,
    "segment": _segment,
    "row_masking": _row_masking,
}
ATTENTIONS: dict[str, Callable[[Any, int, int, Grid], list[Mixing]]] = {
    "plain": _plain_mixing,
    "row_dropout": _row_dropout,
    "row_blind": _row_blind,
}
LOSSES: dict[str, Callable[[Any, Grid], losses.ReconstructionLoss]] = {
    "hard_mining": _hard_mining,
    "pooled_mining": _pooled_mining,
    "adaptive": _adaptive,
    "focal": _focal,
    "topk": _topk,
}
DISTANCES: dict[str, Callable[[Any], distance.Pooling]] = {"mean": _mean, "gem": _gem, "weighted": _weighted}
AUXILIARIES: dict[str, Callable[[Any, int, int], auxiliary.BandClassifier | None]] = {
    "none": _no_auxiliary,
    "bands": _bands,
}


def _reads_grid(config: DinomalyConfig) -> bool:
    """Return whether a part before the loss needs the bare token grid."""
    return not isinstance(config.bottleneck, PlainBottleneck) or not isinstance(
        config.attention, PlainAttention
    )


def _own(run: RunConfig) -> tuple[DinomalyConfig, EncoderConfig]:
    assert isinstance(run.model, DinomalyConfig)
    assert isinstance(run.encoder, EncoderConfig)
    return run.model, run.encoder


def check(run: RunConfig) -> None:
    """Refuse settings that do not fit the encoder and its token grid, before any weights are loaded.

    Raises:
        ConfigError: An encoder or size that does not fit, layers or decoder blocks that are not there, a
            segment wider than the grid, or directional parts over kept class tokens.
    """
    config, encoder = _own(run)
    grid, is_transformer = check_encoder(encoder, layers=config.target_layers)
    BOTTLENECKS[config.bottleneck.bottleneck](config.bottleneck, 1, grid)
    ATTENTIONS[config.attention.attention](config.attention, config.decoder_depth, 1, grid)
    if is_transformer and _reads_grid(config) and config.class_token == "keep":
        raise ConfigError(
            f"class_token=keep: {config.variant} reads the token grid and needs class_token=remove"
        )


def build(run: RunConfig, weights: Weights, textures_KHW: Tensor | None) -> Dinomaly:
    """Return the detector of a run, trained part at its common start."""
    del textures_KHW
    model, source = _own(run)
    encoder = build_encoder(
        source,
        weights=weights,
        keep_prefix=model.class_token == "keep",
        layers=model.target_layers,
        seed=run.seed,
    )
    mixings = ATTENTIONS[model.attention.attention](
        model.attention, model.decoder_depth, encoder.heads, encoder.grid
    )
    return Dinomaly(
        encoder=encoder,
        preprocessing=preprocessing_of(source),
        bottleneck=BOTTLENECKS[model.bottleneck.bottleneck](model.bottleneck, encoder.width, encoder.grid),
        decoder=Decoder(encoder.width, heads=encoder.heads, mixings=mixings),
        loss=LOSSES[model.loss.loss](model.loss, encoder.grid),
        pooling=DISTANCES[model.distance.distance](model.distance),
        auxiliary=AUXILIARIES[model.auxiliary.auxiliary](model.auxiliary, encoder.width, run.seed),
        map_size=size_of(run.evaluation.map_size),
        border=model.border,
        row_context=model.row_context,
        seed=run.seed,
        half=run.bf16,
    )
