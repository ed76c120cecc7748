"""From an encoder's name and sizes to the frozen network with its weights."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from dinomaly_hd.config import AUTO_LAYERS, NO_CROP, EncoderConfig, ImageInput, RawInput, layers_of, size_of
from dinomaly_hd.errors import ConfigError, EncoderError, nearest
from dinomaly_hd.geometry import Box
from dinomaly_hd.models.encoders import (
    ConvEncoder,
    Encoder,
    ViTEncoder,
    interpolate_positions,
    target_blocks,
)
from dinomaly_hd.models.patch_features import (
    STAGES,
    ConvPatchFeatures,
    PatchFeatures,
    ViTPatchFeatures,
    default_blocks,
)
from dinomaly_hd.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from dinomaly_hd.models.weights import ALIASES, CONVERTERS, EMBEDDED_ENCODER, Weights, read_state, timm_name

CONV_STRIDES = (4, 8, 16)
CONV_GROUPS = ((0, 1), (1, 2))
CONV_GRID_STRIDE = 8
CONV_WIDTHS, CONV_HEAD_WIDTH = (192, 768), 32
ENCODERS_TRIED = f"use dinov2reg_vit_base_14 or {EMBEDDED_ENCODER}"


class ConvPlan(NamedTuple):
    """Which of a CNN's stages are used, and the width that they are projected to."""

    stages: list[int]
    width: int


class EncoderShape(NamedTuple):
    """What is known of an encoder before its weights are loaded."""

    grid: tuple[int, int]
    is_transformer: bool


def preprocessing_of(config: EncoderConfig | ImageInput) -> Preprocessing:
    """Return the pre-processing a config asks for.

    Raises:
        ConfigError: The crop is larger than the image.
    """
    image, crop = size_of(config.image_size), None if config.crop == NO_CROP else size_of(config.crop)
    if crop is not None and (crop[0] > image[0] or crop[1] > image[1]):
        raise ConfigError(f"crop={config.crop} is larger than image_size={config.image_size}")
    if isinstance(config, ImageInput):
        return Preprocessing(image, crop, (0.0,) * 3, (1.0,) * 3)
    cfg = timm.get_pretrained_cfg(timm_name(config.encoder), allow_unregistered=True)
    mean, std = (cfg.mean, cfg.std) if cfg is not None else (IMAGENET_MEAN, IMAGENET_STD)
    return Preprocessing(image, crop, mean, std)


def visible_box(config: EncoderConfig | ImageInput | RawInput, *, shape: tuple[int, int]) -> Box:
    """Return the box of a map of (rows, columns) that the model sees."""
    if isinstance(config, EncoderConfig | ImageInput):
        return preprocessing_of(config).visible(shape)
    return Box(0, shape[0], 0, shape[1])


@cache
def check_encoder(config: EncoderConfig, *, layers: str = AUTO_LAYERS) -> EncoderShape:
    """Return an encoder's shape from its architecture alone (no weights, no memory).

    Raises:
        ConfigError: Unknown or unfit encoder, a size that its patches do not divide, or blocks ``layers``
            that it does not have.
    """
    model = _architecture(config)
    height, width = preprocessing_of(config).input_size
    if hasattr(model, "blocks") and hasattr(model, "num_prefix_tokens"):
        _target_blocks(len(model.blocks), layers=layers)
        rows, columns = model.patch_embed.patch_size
        if height % rows or width % columns:
            raise ConfigError(
                f"{height}x{width} pixels: {config.encoder} needs multiples of {rows}x{columns}"
            )
        return EncoderShape((height // rows, width // columns), True)
    if layers != AUTO_LAYERS:
        raise ConfigError(f"target_layers={layers}: {config.encoder} is a CNN; leave target_layers out")
    if height % CONV_GRID_STRIDE or width % CONV_GRID_STRIDE:
        raise ConfigError(f"{height}x{width} pixels: {config.encoder} needs multiples of {CONV_GRID_STRIDE}")
    _conv_plan(config)
    return EncoderShape((height // CONV_GRID_STRIDE, width // CONV_GRID_STRIDE), False)


def check_layers(config: EncoderConfig, layers: str) -> tuple[int, ...]:
    """Return the layers that patch features are made of, from the architecture alone.

    Args:
        config: Name and sizes.
        layers: A transformer's blocks or a CNN's stages, from 0, such as "8,11"; or "auto".

    Raises:
        ConfigError: As ``check_encoder``, or a layer that is not there; names those that are.
    """
    if check_encoder(config).is_transformer:
        depth = len(_architecture(config).blocks)
        kind, default = "blocks", default_blocks(depth)
    else:
        strides = _stages(config).reduction()
        depth, default = len(strides), STAGES
        kind = f"stages, of strides {', '.join(map(str, strides))}"
    try:
        chosen = default if layers == AUTO_LAYERS else tuple(layers_of(layers))
    except ValueError as error:
        raise ConfigError(f"layers={error}; {config.encoder} has 0..{depth - 1} ({kind})") from error
    if max(chosen) >= depth:
        raise ConfigError(f"layers={layers}: {config.encoder} has only 0..{depth - 1} ({kind})")
    return chosen


def check_weights(config: EncoderConfig, *, weights: Weights) -> None:
    """Refuse a user's file that does not hold this encoder's weights; nothing is kept in memory.

    Raises:
        EncoderError: The file is damaged, or its tensors are another network's.
    """
    if weights.source == "file":
        shape = check_encoder(config)
        with torch.device("meta"):
            model = _network(config, shape)
        _load(model, config, weights=weights, shape=shape)


def _target_blocks(depth: int, *, layers: str) -> list[int]:
    """Return the blocks that ``layers`` names; an even number, since two groups of them are rebuilt."""
    if layers == AUTO_LAYERS:
        return target_blocks(depth)
    blocks = layers_of(layers)
    if blocks[-1] >= depth or len(blocks) % 2:
        raise ConfigError(f"target_layers={layers}: expected an even number of blocks, from 0..{depth - 1}")
    return blocks


def build_encoder(
    config: EncoderConfig, *, weights: Weights, keep_prefix: bool, layers: str = AUTO_LAYERS, seed: int
) -> Encoder:
    """Return the frozen encoder with its weights.

    Args:
        config: Name and sizes.
        weights: From ``weights.locate``.
        keep_prefix: Whether class and register tokens go on to the decoder.
        layers: Blocks of a transformer whose outputs are taken, or "auto".
        seed: Of random weights, where they were asked for.

    Raises:
        EncoderError: The weights are not this encoder's.
    """
    shape, preprocessing = check_encoder(config), preprocessing_of(config)
    model = _loaded(config, shape, weights=weights, seed=seed)
    if shape.is_transformer:
        blocks = _target_blocks(len(model.blocks), layers=layers)
        return ViTEncoder(model, preprocessing=preprocessing, blocks=blocks, keep_prefix=keep_prefix)
    return _conv_encoder(model, config, preprocessing=preprocessing, grid=shape.grid)


def build_patch_features(config: EncoderConfig, *, layers: str, weights: Weights, seed: int) -> PatchFeatures:
    """Return the frozen network of a memory bank with its weights.

    Args:
        config: Name and sizes.
        layers: As ``check_layers`` takes them.
        weights: From ``weights.locate``.
        seed: Of random weights, where they were asked for.

    Raises:
        ConfigError: As ``check_layers``.
        EncoderError: The weights are not this encoder's.
    """
    shape, chosen = check_encoder(config), check_layers(config, layers)
    model = _loaded(config, shape, weights=weights, seed=seed)
    if shape.is_transformer:
        return ViTPatchFeatures(model, layers=chosen)
    return ConvPatchFeatures(_feature_network(model, config, stages=chosen), layers=chosen)


def _architecture(config: EncoderConfig) -> Any:
    """Return the network without weights or memory."""
    known = set(timm.list_models()) | set(ALIASES)
    if timm_name(config.encoder).split(".")[0] not in known:
        raise ConfigError(f"encoder={config.encoder}: not a known encoder.{nearest(config.encoder, known)}")
    try:
        with torch.device("meta"):
            return timm.create_model(timm_name(config.encoder), pretrained=False, num_classes=0)
    except RuntimeError as error:  # the name goes on with a tag that timm does not know
        raise ConfigError(f"encoder={config.encoder}: {error} Leave out what follows the dot") from error


def _loaded(config: EncoderConfig, shape: EncoderShape, *, weights: Weights, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _network(config, shape)
    if weights.path is not None:
        _load(model, config, weights=weights, shape=shape)
    return model


def _network(config: EncoderConfig, shape: EncoderShape) -> Any:
    if not shape.is_transformer:
        return timm.create_model(timm_name(config.encoder), pretrained=False)
    size = preprocessing_of(config).input_size
    return timm.create_model(timm_name(config.encoder), pretrained=False, num_classes=0, img_size=size)


def _load(model: Any, config: EncoderConfig, *, weights: Weights, shape: EncoderShape) -> None:
    assert weights.path is not None
    state = read_state(weights.path)
    names = list(model.state_dict())
    try:
        state = CONVERTERS[weights.source](state, names)
        if shape.is_transformer:
            state = {name: value for name, value in state.items() if not name.startswith("head.")}
            table, prefix = state["pos_embed"], model.pos_embed.shape[1] - math.prod(shape.grid)
            patches = interpolate_positions(table[:, prefix:], grid=shape.grid)
            state["pos_embed"] = torch.cat([table[:, :prefix], patches], dim=1)
        model.load_state_dict(state, strict=True, assign=next(model.parameters()).is_meta)
    except (RuntimeError, LookupError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise EncoderError(
            f"{weights.path}: these are not the weights of {config.encoder}: {reason}"
        ) from error


def _stages(config: EncoderConfig) -> Any:
    """Return timm's account of a CNN's stages: strides, channels, names."""
    try:
        with torch.device("meta"):
            return timm.create_model(timm_name(config.encoder), features_only=True).feature_info
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"encoder={config.encoder}: neither a vision transformer nor a CNN with stages; {ENCODERS_TRIED}"
        ) from error


def _feature_network(model: nn.Module, config: EncoderConfig, *, stages: Sequence[int]) -> Any:
    """Return the network that gives these stages, with the weights of ``model``."""
    features: Any = timm.create_model(timm_name(config.encoder), features_only=True, out_indices=stages)
    # The feature extractor is the same network without its end: same tensors in the same order.
    pairs = zip(features.state_dict().items(), model.state_dict().values(), strict=False)
    features.load_state_dict({name: value for (name, _), value in pairs})
    return features


def _conv_plan(config: EncoderConfig) -> ConvPlan:
    """Return the stages of the strides wanted, and a width that holds a group's channels, 192 to 768."""
    info = _stages(config)
    strides, channels = info.reduction(), info.channels()
    if any(stride not in strides for stride in CONV_STRIDES):
        raise ConfigError(
            f"encoder={config.encoder}: has stages of strides {strides}, needs {list(CONV_STRIDES)}; "
            f"{ENCODERS_TRIED}"
        )
    stages = [strides.index(stride) for stride in CONV_STRIDES]
    widest = max(sum(channels[stages[i]] for i in group) for group in CONV_GROUPS)
    least, most = CONV_WIDTHS
    return ConvPlan(stages, min(max(least, -(-widest // CONV_HEAD_WIDTH) * CONV_HEAD_WIDTH), most))


def _conv_encoder(
    model: nn.Module, config: EncoderConfig, *, preprocessing: Preprocessing, grid: tuple[int, int]
) -> ConvEncoder:
    plan = _conv_plan(config)
    return ConvEncoder(
        _feature_network(model, config, stages=plan.stages),
        preprocessing=preprocessing,
        groups=CONV_GROUPS,
        grid=grid,
        width=plan.width,
        heads=plan.width // CONV_HEAD_WIDTH,
    )
