"""timm's networks by name: the images they get, what is known before their weights are, and with weights."""

# B batch, H W pixels

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, Self

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinomaly_hd.config.base import NO_CROP, size_of
from dinomaly_hd.config.run import EncoderConfig, ImageInput, RawInput
from dinomaly_hd.errors import ConfigError, EncoderError, nearest
from dinomaly_hd.geometry import Box
from dinomaly_hd.models.detector import LearnedSizes, resized
from dinomaly_hd.models.weights import ALIASES, CONVERTERS, EMBEDDED_ENCODER, Weights, read_state, timm_name
from dinomaly_hd.trivial import LEAST, has_logarithm, level

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
USUAL_LEVEL, USUAL_SPREAD = 0.25, 0.084  # of HDMAP's training pixels (spec/hdmap.md)
# Of the stages that Dinomaly takes of a CNN, and of its token grid, pixels.
CONV_STRIDES, CONV_GRID_STRIDE = (4, 8, 16), 8
ENCODERS_TRIED = f"use dinov2reg_vit_base_14 or {EMBEDDED_ENCODER}"
DINOV2_INTERPOLATION_OFFSET = 0.1


class Preprocessing(NamedTuple):
    """Resize (bilinear, antialias, aspect not kept), centre crop, normalise. Sizes are (height, width)."""

    image_size: tuple[int, int]  # after the resize
    crop: tuple[int, int] | None  # None: straight to ``image_size``
    # Per channel, of values in 0..1; values above 1 are kept, never clipped.
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of what the encoder gets, pixels."""
        return self.crop or self.image_size

    def __call__(self, images_BHW: Tensor) -> Tensor:
        """Return (B, 3, H', W'): the one channel repeated to three only here."""
        images = resized(images_BHW, self.image_size, antialias=True).unsqueeze(1)
        (height, width), (rows, columns) = self.image_size, self.input_size
        top, left = (height - rows) // 2, (width - columns) // 2
        images = images[:, :, top : top + rows, left : left + columns]
        mean = images.new_tensor(self.mean).view(1, 3, 1, 1)
        std = images.new_tensor(self.std).view(1, 3, 1, 1)
        return (images.expand(-1, 3, -1, -1) - mean) / std

    def visible(self, shape: tuple[int, int]) -> Box:
        """Return the box of a map of the given (rows, columns) that survives the crop."""
        (height, width), (rows, columns) = self.image_size, self.input_size
        top, left = (height - rows) // 2 / height, (width - columns) // 2 / width
        bottom, right = top + rows / height, left + columns / width
        return Box(top * shape[0], bottom * shape[0], left * shape[1], right * shape[1])


class PositionScaling(LearnedSizes):
    """Standardises each pixel's level by the normals at its place, then gives it a map's usual ones."""

    logarithm: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("logarithm", "mean", "std"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    def fit(self, images_NHW: Tensor) -> None:
        """Learn from training images; to be called before the encoder sees any."""
        positive = has_logarithm(images_NHW.numpy(force=True))
        self.logarithm = torch.tensor(positive, dtype=torch.float64, device=images_NHW.device)
        level_NHW = self._level(images_NHW)
        std_HW = level_NHW.std(dim=0, correction=0)
        self.mean, self.std = level_NHW.mean(dim=0), torch.where(std_HW > 0, std_HW, 1.0)

    def _level(self, images_BHW: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return self._level_in_graph(images_BHW.double())
        level_BHW = level(images_BHW.numpy(force=True), logarithm=bool(self.logarithm))
        return torch.from_numpy(level_BHW).to(images_BHW.device)

    def _level_in_graph(self, images_BHW: Tensor) -> Tensor:
        """Return what ``trivial.level`` does, without NumPy."""
        values_BHW = torch.where(self.logarithm > 0, images_BHW.clamp(min=LEAST).log(), images_BHW)
        sorted_BP = values_BHW.flatten(1).sort(dim=1).values
        middle = (sorted_BP.shape[1] - 1) // 2, sorted_BP.shape[1] // 2
        return values_BHW - (sorted_BP[:, middle[0]] + sorted_BP[:, middle[1]])[:, None, None] / 2

    def forward(self, images_BHW: Tensor) -> Tensor:
        standard_BHW = (self._level(images_BHW) - self.mean) / self.std
        return (USUAL_LEVEL + USUAL_SPREAD * standard_BHW).to(images_BHW.dtype)


def scaling_of(name: Literal["none", "position"]) -> nn.Module:
    """Return what a config's ``scaling`` does with images before their pre-processing."""
    return PositionScaling() if name == "position" else nn.Identity()


def preprocessing_of(config: EncoderConfig | ImageInput) -> Preprocessing:
    """Return the pre-processing a config asks for, with the statistics that its encoder was trained with."""
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


class Architecture(NamedTuple):
    """What is known of a network before its weights are loaded."""

    grid: tuple[int, int]  # (h, w) of the tokens that Dinomaly reads
    is_transformer: bool
    depth: int  # number of layers: a transformer's blocks or a CNN's stages, counted from 0
    strides: list[int]  # of a CNN's stages, pixels


@cache
def architecture(config: EncoderConfig) -> Architecture:
    """Return a network's architecture, without weights or memory; refuse sizes that do not fit it."""
    known = set(timm.list_models()) | set(ALIASES)
    name = timm_name(config.encoder)
    if name.split(".")[0] not in known:
        raise ConfigError(f"encoder={config.encoder}: not a known encoder.{nearest(config.encoder, known)}")
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(name, pretrained=False, num_classes=0)
    except RuntimeError as error:  # the name goes on with a tag that timm does not know
        raise ConfigError(f"encoder={config.encoder}: {error} Leave out what follows the dot") from error
    height, width = preprocessing_of(config).input_size
    if hasattr(model, "blocks") and hasattr(model, "num_prefix_tokens"):
        rows, columns = model.patch_embed.patch_size
        if height % rows or width % columns:
            raise ConfigError(
                f"{height}x{width} pixels: {config.encoder} needs multiples of {rows}x{columns}; "
                "choose image_size and crop so, or for 14x14 preset=full"
            )
        return Architecture((height // rows, width // columns), True, len(model.blocks), [])
    if height % CONV_GRID_STRIDE or width % CONV_GRID_STRIDE:
        raise ConfigError(f"{height}x{width} pixels: {config.encoder} needs multiples of {CONV_GRID_STRIDE}")
    try:
        with torch.device("meta"):
            features: Any = timm.create_model(name, features_only=True)
            strides = list(features.feature_info.reduction())
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"encoder={config.encoder}: neither a vision transformer nor a CNN with stages; {ENCODERS_TRIED}"
        ) from error
    grid = height // CONV_GRID_STRIDE, width // CONV_GRID_STRIDE
    if any(stride not in strides for stride in CONV_STRIDES):
        raise ConfigError(
            f"encoder={config.encoder}: has stages of strides {strides}, needs {list(CONV_STRIDES)}; "
            f"{ENCODERS_TRIED}"
        )
    return Architecture(grid, False, len(strides), strides)


def check_weights(config: EncoderConfig, *, weights: Weights) -> None:
    """Refuse a user's file that does not hold this encoder's weights; nothing is kept in memory."""
    if weights.source == "file":
        with torch.device("meta"):
            model = _unloaded(config)
        _load(model, config, weights=weights)


def network(config: EncoderConfig, *, weights: Weights, seed: int) -> Any:
    """Return the network with its weights; ``seed`` is that of random ones, where they were asked for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _unloaded(config)
    if weights.path is not None:
        _load(model, config, weights=weights)
    return model


def with_stages(model: nn.Module, config: EncoderConfig, *, stages: Sequence[int]) -> Any:
    """Return the CNN that gives these stages, with the weights of ``model``."""
    features: Any = timm.create_model(timm_name(config.encoder), features_only=True, out_indices=stages)
    # The feature extractor is the same network without its end: same tensors in the same order.
    pairs = zip(features.state_dict().items(), model.state_dict().values(), strict=False)
    features.load_state_dict({name: value for (name, _), value in pairs})
    # Channels last: convolutions on CPU and GPU run up to twice as fast (measured 47 -> 20 ms an image).
    return features.to(memory_format=torch.channels_last)


class FrozenNetwork(nn.Module):
    """Wraps a network that is never trained: no gradients, always in evaluation mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        del mode
        return super().train(False)


def _unloaded(config: EncoderConfig) -> Any:
    if not architecture(config).is_transformer:
        return timm.create_model(timm_name(config.encoder), pretrained=False)
    size = preprocessing_of(config).input_size
    return timm.create_model(timm_name(config.encoder), pretrained=False, num_classes=0, img_size=size)


def _load(model: Any, config: EncoderConfig, *, weights: Weights) -> None:
    assert weights.path is not None
    state, known = read_state(weights.path), architecture(config)
    try:
        state = CONVERTERS[weights.source](state, list(model.state_dict()))
        if known.is_transformer:
            state = {name: value for name, value in state.items() if not name.startswith("head.")}
            table, prefix = state["pos_embed"], model.pos_embed.shape[1] - math.prod(known.grid)
            patches = interpolate_positions(table[:, prefix:], grid=known.grid)
            state["pos_embed"] = torch.cat([table[:, :prefix], patches], dim=1)
        model.load_state_dict(state, strict=True, assign=next(model.parameters()).is_meta)
    except (RuntimeError, LookupError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise EncoderError(
            f"{weights.path}: these are not the weights of {config.encoder}: {reason}"
        ) from error


def interpolate_positions(table_1ND: Tensor, *, grid: tuple[int, int]) -> Tensor:
    """Resample a square position table (1, g*g, D) to (1, h*w, D) as DINOv2 does, bicubic."""
    side = round(table_1ND.shape[1] ** 0.5)
    if grid == (side, side):
        return table_1ND
    picture = table_1ND.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    # Not by the size but by (length + 0.1) / g, which moves the sampling points a little (golden g6c).
    scale = [(length + DINOV2_INTERPOLATION_OFFSET) / side for length in grid]
    resized = F.interpolate(picture, scale_factor=scale, mode="bicubic", antialias=False)
    return resized.permute(0, 2, 3, 1).flatten(1, 2)
