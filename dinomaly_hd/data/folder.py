"""Any folder of images: a Manifest for a model that knows its form, or a stack of textures."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dinomaly_hd.data.hdmap import Manifest
from dinomaly_hd.data.images import DECODERS, Form, decode_image, printable, read_file
from dinomaly_hd.data.rows import ImageRecord
from dinomaly_hd.data.tree import GROUND_TRUTH
from dinomaly_hd.errors import ImageError
from dinomaly_hd.names import refusal_of

MOST_TEXTURES = 2000


def load_folder(
    source: Path,
    *,
    shape: tuple[int, int],
    dtype: str,
    grey: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> Manifest:
    """Read and check every image of a folder (or one image) once, in the order of their paths' bytes.

    Folders are searched recursively; hidden names and HDMAP's ``ground_truth`` masks are left out, and so is
    every file of another extension. ``shape`` (H, W) and ``dtype`` are the form that every image must have;
    ``tick`` is called after each.
    """
    alone = os.path.isfile(source)  # False too for what is too long for a path
    root = source.parent if alone else source
    names = [source.name] if alone else image_names(source)
    if not names:
        raise ImageError(f"{printable(str(source))}: holds no images ({', '.join(DECODERS)})")
    records = []
    for name in names:
        if reason := refusal_of(name):
            raise ImageError(f"{printable(name)}: {reason}")
        data = read_file(root / name, name=name)
        check_form(decode_image(data, name=name, grey=grey).form, name=name, shape=shape, dtype=dtype)
        # A folder says nothing of domain, split and label.
        records.append(ImageRecord(name, "", "", 0, digest=hashlib.sha256(data).hexdigest()))
        tick()
    return Manifest(
        root=root,
        domains=(),
        records=tuple(records),
        shape=shape,
        dtype=dtype,
        condition_rule="one condition",
        digest="",
        warnings=(),
        grey=grey,
    )


def check_form(form: Form, *, name: str, shape: tuple[int, int], dtype: str) -> None:
    """Refuse an image of another form than a model's, with both."""
    if form != (shape, dtype):
        raise ImageError(f"{printable(name)}: {form}, but the model was trained on {Form(shape, dtype)}")


def image_names(folder: Path) -> list[str]:
    """Return the images below a folder, hidden names and ``ground_truth`` left out, in their bytes' order.

    Links are followed, a folder that was seen already is not read again: loops end. Refuses a folder that
    cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise ImageError(f"{printable(str(error.filename))}: cannot be read: {error.strerror}") from error

    names: list[str] = []
    seen: set[tuple[int, int]] = set()
    for place, subfolders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if name[0] != "." and name != GROUND_TRUTH)
        images = [file for file in files if file[0] != "." and Path(file).suffix.lower() in DECODERS]
        names += [Path(place, file).relative_to(folder).as_posix() for file in images]
    return sorted(names, key=os.fsencode)


class TextureStack(NamedTuple):
    """Textures (K, H, W), float32, and the SHA-256 of the files in their order."""

    textures_KHW: Tensor
    digest: str


def read_textures(
    folder: Path, *, size: tuple[int, int], grey: bool = False, tick: Callable[[], None] = lambda: None
) -> TextureStack:
    """Read every image below a folder, of any shape and number type, resized to ``size`` (rows, columns)."""
    names = image_names(folder) if os.path.isdir(folder) else []
    if not 0 < len(names) <= MOST_TEXTURES:
        raise ImageError(
            f"anomaly_source_path={printable(str(folder))}: {len(names)} images ({', '.join(DECODERS)}), "
            f"expected a folder with 1 to {MOST_TEXTURES}"
        )
    total, textures = hashlib.sha256(), []
    for name in names:
        data = read_file(folder / name, name=name)
        total.update(hashlib.sha256(data).digest())
        image_11HW = torch.from_numpy(decode_image(data, name=name, grey=grey).image)[None, None]
        textures.append(
            F.interpolate(image_11HW, size=size, mode="bilinear", align_corners=False, antialias=True)[0, 0]
        )
        tick()
    return TextureStack(torch.stack(textures), total.hexdigest())
