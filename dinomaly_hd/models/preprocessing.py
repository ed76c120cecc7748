"""From float maps to encoder input; the model owns it, so training and evaluation cannot differ."""

# B batch, H W pixels

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from dinomaly_hd.geometry import Box

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocessing(NamedTuple):
    """Resize (bilinear, antialias, aspect not kept), centre crop, normalise.

    Attributes:
        image_size: (height, width) after the resize, pixels.
        crop: (height, width) of the centre crop, or None to resize straight to ``image_size``.
        mean, std: Per channel, of values in 0..1; values above 1 are kept, never clipped.
    """

    image_size: tuple[int, int]
    crop: tuple[int, int] | None
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
