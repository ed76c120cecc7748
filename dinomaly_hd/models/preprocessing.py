"""From float maps to encoder input; the model owns it, so training and evaluation cannot differ."""

# B batch, H W pixels

from typing import Any, Literal, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinomaly_hd.config import NO_CROP, EncoderConfig, ImageInput, RawInput, size_of
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.geometry import Box
from dinomaly_hd.models.detector import take_shapes
from dinomaly_hd.models.weights import timm_name

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DARK, DARK_SHARE = 1e-3, 0.01  # the logarithm's least value; share of pixels at or below 0 from which none is
USUAL_LEVEL, USUAL_SPREAD = 0.25, 0.084  # of HDMAP's training pixels (spec/hdmap.md)


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
        images = F.interpolate(
            images_BHW.unsqueeze(1),
            size=self.image_size,
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
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


class PositionScaling(nn.Module):
    """Standardises each pixel by training normals at its place, then gives it a map's usual level and spread.

    Logarithms less the image's median, or values where more than 1 % of pixels are not above 0.
    """

    logarithm: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("logarithm", "mean", "std"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    def fit(self, images_NHW: Tensor) -> None:
        """Learn from training images; to be called before the encoder sees any."""
        share = (images_NHW <= 0).double().mean()
        self.logarithm = (share <= DARK_SHARE).double()
        level_NHW = self._level(images_NHW)
        std_HW = level_NHW.std(dim=0, correction=0)
        self.mean, self.std = level_NHW.mean(dim=0), torch.where(std_HW > 0, std_HW, 1.0)

    def _level(self, images_BHW: Tensor) -> Tensor:
        values_BHW = images_BHW.double()
        if self.logarithm:
            values_BHW = values_BHW.clamp(min=DARK).log()
        return values_BHW - values_BHW.flatten(1).quantile(0.5, dim=1)[:, None, None]

    def forward(self, images_BHW: Tensor) -> Tensor:
        standard_BHW = (self._level(images_BHW) - self.mean) / self.std
        return (USUAL_LEVEL + USUAL_SPREAD * standard_BHW).to(images_BHW.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        take_shapes(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


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
