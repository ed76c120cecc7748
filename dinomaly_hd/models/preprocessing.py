"""From float maps to encoder input; the model owns it, so training and evaluation cannot differ."""

# B batch, H W pixels

from typing import NamedTuple

import timm
import torch.nn.functional as F
from torch import Tensor

from dinomaly_hd.config import NO_CROP, EncoderConfig, ImageInput, RawInput, size_of
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.geometry import Box
from dinomaly_hd.models.weights import timm_name

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
