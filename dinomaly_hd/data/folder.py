"""Any folder of images (or one file) as a Manifest, for scoring with a model that knows its input's form."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from dinomaly_hd.data.formats import FORMAT_NAMES, OPENERS, ImageHeader
from dinomaly_hd.data.hdmap import GROUND_TRUTH, ImageRecord, Manifest
from dinomaly_hd.data.images import decode_image, printable, read_file
from dinomaly_hd.data.tree import leads_out
from dinomaly_hd.errors import ImageError
from dinomaly_hd.names import has_hidden, misread

UNKNOWN = ""
"""Domain, split and condition of an image whose folder says nothing; its label 0 means nothing either."""


def load_folder(
    source: Path, *, shape: tuple[int, int], dtype: str, tick: Callable[[], None] = lambda: None
) -> Manifest:
    """Read and check every image of a folder once, in the order of their paths' bytes.

    Folders are searched recursively; hidden names and HDMAP's ``ground_truth`` masks are left out, and so is
    every file of another extension.

    Args:
        source: The folder, or one image.
        shape: (H, W) that every image must have, pixels.
        dtype: Stored number type that every image must have ("float32", "uint8", "uint16").
        tick: Called after each image.

    Raises:
        ImageError: Nothing to score, or one image is bad or of another form.
    """
    alone = os.path.isfile(source)  # False too for what is too long for a path
    root = source.parent if alone else source
    names = [source.name] if alone else image_names(source)
    if not names:
        raise ImageError(f"{printable(str(source))}: holds no images ({', '.join(OPENERS)})")
    records = []
    for name in names:
        records.append(ImageRecord(name, UNKNOWN, UNKNOWN, 0, UNKNOWN, _checked(root, name, shape, dtype)))
        tick()
    digest = hashlib.sha256("\n".join(f"{record.digest} {record.path}" for record in records).encode())
    return Manifest(
        root=root,
        domains=(),
        records=tuple(records),
        shape=shape,
        dtype=dtype,
        condition_rule="one condition",
        digest=digest.hexdigest(),
        warnings=(),
    )


def check_form(header: ImageHeader, *, name: str, shape: tuple[int, int], dtype: str) -> None:
    """Refuse an image of another form than a model's.

    Raises:
        ImageError: With both forms.
    """
    if (header.height, header.width, header.dtype) != (*shape, dtype):
        found = f"{header.height} x {header.width} {FORMAT_NAMES[header.dtype]}"
        expected = f"{shape[0]} x {shape[1]} {FORMAT_NAMES[dtype]}"
        raise ImageError(f"{printable(name)}: {found}, but the model was trained on {expected}")


def _checked(root: Path, name: str, shape: tuple[int, int], dtype: str) -> str:
    """Return an image's digest."""
    if reason := misread(name):
        raise ImageError(f"{printable(name)}: the path {reason}, or rename it")
    if has_hidden(name):
        raise ImageError(f"{printable(name)}: the path holds control or invisible characters; rename it")
    data = read_file(root / name, name=name)
    check_form(decode_image(data, name=name).header, name=name, shape=shape, dtype=dtype)
    return hashlib.sha256(data).hexdigest()


def image_names(folder: Path) -> list[str]:
    """Return the images below a folder, hidden names and ``ground_truth`` left out, in their bytes' order.

    Raises:
        ImageError: A folder cannot be read, or an image is a link that leads out of the folder.
    """
    resolved = folder.resolve()

    def refuse(error: OSError) -> None:
        raise ImageError(f"{printable(str(error.filename))}: cannot be read: {error.strerror}") from error

    names = []
    for place, subfolders, files in os.walk(folder, onerror=refuse):
        subfolders[:] = [name for name in subfolders if name[0] != "." and name != GROUND_TRUTH]
        relative = Path(place).relative_to(folder)
        images = [name for name in files if name[0] != "." and Path(name).suffix.lower() in OPENERS]
        for name in images:
            if leads_out(resolved, Path(place, name)):
                raise ImageError(
                    f"{printable(str(relative / name))}: a link leads out of {printable(str(folder))}"
                )
        names += [(relative / name).as_posix() for name in images]
    return sorted(names, key=os.fsencode)
