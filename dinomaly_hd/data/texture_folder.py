"""A user's folder of textures for synthetic faults, read as one stack."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dinomaly_hd.data.folder import image_names
from dinomaly_hd.data.images import DECODERS, decode_image, printable, read_file
from dinomaly_hd.errors import ImageError

MOST = 2000


class TextureStack(NamedTuple):
    """Textures (K, H, W), float32, and the SHA-256 of the files in their order."""

    textures_KHW: Tensor
    digest: str


def read_textures(
    folder: Path, *, size: tuple[int, int], tick: Callable[[], None] = lambda: None
) -> TextureStack:
    """Read every image below a folder, of any shape and number type, resized to ``size`` (rows, columns)."""
    names = image_names(folder) if os.path.isdir(folder) else []
    if not 0 < len(names) <= MOST:
        raise ImageError(
            f"anomaly_source_path={printable(str(folder))}: {len(names)} images ({', '.join(DECODERS)}), "
            f"expected a folder with 1 to {MOST}"
        )
    total, textures = hashlib.sha256(), []
    for name in names:
        data = read_file(folder / name, name=name)
        total.update(hashlib.sha256(data).digest())
        image_11HW = torch.from_numpy(decode_image(data, name=name).image)[None, None]
        textures.append(
            F.interpolate(image_11HW, size=size, mode="bilinear", align_corners=False, antialias=True)[0, 0]
        )
        tick()
    return TextureStack(torch.stack(textures), total.hexdigest())
