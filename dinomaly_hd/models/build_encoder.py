"""From an encoder's name and sizes to the frozen network with its weights."""

import math
from functools import cache
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from dinomaly_hd.config import NO_CROP, EncoderConfig, size_of
from dinomaly_hd.errors import ConfigError, EncoderError, nearest
from dinomaly_hd.models.encoders import (
    ConvEncoder,
    Encoder,
    ViTEncoder,
    interpolate_positions,
    target_blocks,
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


def preprocessing_of(config: EncoderConfig) -> Preprocessing:
    """Return the pre-processing a config asks for.

    Raises:
        ConfigError: The crop is larger than the image.
    """
    image, crop = size_of(config.image_size), None if config.crop == NO_CROP else size_of(config.crop)
    if crop is not None and (crop[0] > image[0] or crop[1] > image[1]):
        raise ConfigError(f"crop={config.crop} is larger than image_size={config.image_size}")
    cfg = timm.get_pretrained_cfg(timm_name(config.encoder), allow_unregistered=True)
    mean, std = (cfg.mean, cfg.std) if cfg is not None else (IMAGENET_MEAN, IMAGENET_STD)
    return Preprocessing(image, crop, mean, std)


@cache
def check_encoder(config: EncoderConfig) -> EncoderShape:
    """Return an encoder's shape from its architecture alone (no weights, no memory).

    Raises:
        ConfigError: Unknown or unfit encoder, or a size that its patches do not divide.
    """
    known = set(timm.list_models()) | set(ALIASES)
    if timm_name(config.encoder).split(".")[0] not in known:
        raise ConfigError(f"encoder={config.encoder}: not a known encoder.{nearest(config.encoder, known)}")
    try:
        height, width = preprocessing_of(config).input_size
        with torch.device("meta"):
            model: Any = timm.create_model(timm_name(config.encoder), pretrained=False, num_classes=0)
    except RuntimeError as error:  # the name goes on with a tag that timm does not know
        raise ConfigError(f"encoder={config.encoder}: {error} Leave out what follows the dot") from error
    if hasattr(model, "blocks") and hasattr(model, "num_prefix_tokens"):
        target_blocks(len(model.blocks))
        rows, columns = model.patch_embed.patch_size
        if height % rows or width % columns:
            raise ConfigError(
                f"{height}x{width} pixels: {config.encoder} needs multiples of {rows}x{columns}"
            )
        return EncoderShape((height // rows, width // columns), True)
    if height % CONV_GRID_STRIDE or width % CONV_GRID_STRIDE:
        raise ConfigError(f"{height}x{width} pixels: {config.encoder} needs multiples of {CONV_GRID_STRIDE}")
    _conv_plan(config)
    return EncoderShape((height // CONV_GRID_STRIDE, width // CONV_GRID_STRIDE), False)


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


def build_encoder(config: EncoderConfig, *, weights: Weights, keep_prefix: bool, seed: int) -> Encoder:
    """Return the frozen encoder with its weights.

    Args:
        config: Name and sizes.
        weights: From ``weights.locate``.
        keep_prefix: Whether class and register tokens go on to the decoder.
        seed: Of random weights, where they were asked for.

    Raises:
        EncoderError: The weights are not this encoder's.
    """
    shape, preprocessing = check_encoder(config), preprocessing_of(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _network(config, shape)
    if weights.path is not None:
        _load(model, config, weights=weights, shape=shape)
    if shape.is_transformer:
        return ViTEncoder(model, preprocessing=preprocessing, keep_prefix=keep_prefix)
    return _conv_encoder(model, config, preprocessing=preprocessing, grid=shape.grid)


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


def _conv_plan(config: EncoderConfig) -> ConvPlan:
    """Return the stages of the strides wanted, and a width that holds a group's channels, 192 to 768."""
    try:
        with torch.device("meta"):
            info: Any = timm.create_model(timm_name(config.encoder), features_only=True).feature_info
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"encoder={config.encoder}: neither a vision transformer nor a CNN with stages; {ENCODERS_TRIED}"
        ) from error
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
    features: Any = timm.create_model(timm_name(config.encoder), features_only=True, out_indices=plan.stages)
    # The feature extractor is the same network without its end: same tensors in the same order.
    pairs = zip(features.state_dict().items(), model.state_dict().values(), strict=False)
    features.load_state_dict({name: value for (name, _), value in pairs})
    return ConvEncoder(
        features,
        preprocessing=preprocessing,
        groups=CONV_GROUPS,
        grid=grid,
        width=plan.width,
        heads=plan.width // CONV_HEAD_WIDTH,
    )
