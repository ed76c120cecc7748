"""The one image reader: any file is either a finite float32 image or one ImageError with path and reason."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from dinomaly_hd.data.formats import MAX_PIXELS, OPENERS, SCALES, ImageHeader, Opened, Refused
from dinomaly_hd.errors import DinomalyHDError, ImageError

MAX_FILE_BYTES = 4 * MAX_PIXELS + 2**20  # the largest float32 image and a mebibyte of metadata

Result = TypeVar("Result")


class Decoded(NamedTuple):
    """A header and its pixels, float32 (height, width), in the file's units (PNG: 0..1)."""

    header: ImageHeader
    image: npt.NDArray[np.float32]


def printable(name: str) -> str:
    """Return a file name with line breaks, control and undecodable characters escaped."""
    return name if name.isprintable() else repr(name)[1:-1]


def read_file(path: Path, *, name: str | None = None, limit: int = MAX_FILE_BYTES) -> bytes:
    """Return the bytes of a regular file of 1..``limit`` bytes; never waits on a pipe or device.

    Raises:
        ImageError: With ``name`` (default the path) and the reason.
    """
    name = printable(name or str(path))
    try:
        with open(path, "rb", buffering=0, opener=_open_at_once) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f"{name}: not a regular file")
            if not 0 < status.st_size <= limit:
                raise ImageError(f"{name}: {status.st_size} bytes, expected 1 to {limit}")
            data = stream.read(status.st_size + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name}: cannot be read: {reason}") from error
    if len(data) != status.st_size:
        raise ImageError(f"{name}: changed while it was read")
    return data


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_header(path: Path, *, name: str | None = None) -> ImageHeader:
    """Return the header of a TIFF or PNG whose form the reader knows, without decoding pixels.

    Raises:
        ImageError: With ``name`` (default the path) and the reason.
    """
    name = name or str(path)
    return _guarded(read_file(path, name=name), name, lambda opened: opened.header)


def read_image(path: Path, *, name: str | None = None) -> npt.NDArray[np.float32]:
    """Return one image as float32 (H, W): TIFF values as they are, never clipped; PNG in 0..1.

    Accepted are one page, one channel, float32 TIFF or 8- or 16-bit grey PNG, all values finite, sides up to
    4096 and 2^22 pixels in all (spec hdmap 1, reliability 6-8).

    Raises:
        ImageError: With ``name`` (default the path) and the reason, whatever the bytes are.
    """
    name = name or str(path)
    return decode_image(read_file(path, name=name), name=name).image


def decode_image(data: bytes, *, name: str) -> Decoded:
    """Decode an image from its bytes; ``name`` decides the format by its extension.

    Raises:
        ImageError: As ``read_image``.
    """
    return _guarded(data, name, _decode)


def _guarded(data: bytes, name: str, use: Callable[[Opened], Result]) -> Result:
    try:
        opener = OPENERS.get(Path(name).suffix.lower())
        if opener is None:
            raise Refused(f"unknown extension, expected one of {', '.join(OPENERS)}")
        return use(opener(data))
    except DinomalyHDError:  # a signal that arrives while decoding is not the image's fault
        raise
    except Refused as error:
        raise ImageError(f"{printable(name)}: {error}") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ImageError(f"{printable(name)}: damaged or cut short ({reason})") from error


def _decode(opened: Opened) -> Decoded:
    image = opened.pixels().astype(np.float32, copy=False)
    if opened.header.dtype in SCALES:
        image = image / np.float32(SCALES[opened.header.dtype])
    finite = np.isfinite(image)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        count = image.size - np.count_nonzero(finite)
        raise Refused(
            f"{count} of {image.size} values are NaN or infinite, the first at row {row}, column {column}"
        )
    return Decoded(opened.header, image)
