"""The image files HDMAP uses, as bytes: float32 TIFF and grey PNG, judged before a decoder sees them.

HDMAP's TIFFs are uncompressed strips, which need no decoder. They are parsed here, strictly, because a
general library skips damaged tags and can follow a crafted chain of pages without end. A PNG's chunks are
checked here and its pixels decoded by Pillow. Everything here takes bytes and raises ``Refused`` with a
reason, or whatever a damaged file provokes; ``images`` turns both into one ImageError.
"""

import struct
import zlib
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

MAX_SIDE = 4096
MAX_PIXELS = 2**22
MAX_COUNTED = 1000  # pages or PNG chunks that are followed before a file is refused

SCALES = {"uint8": 255.0, "uint16": 65535.0}  # PNG: the stored value that becomes 1.0
FORMAT_NAMES = {"float32": "float32 TIFF", "uint8": "8-bit PNG", "uint16": "16-bit PNG"}


class ImageHeader(NamedTuple):
    """What a file says about itself: sides in pixels, stored number type, pages, channels."""

    height: int
    width: int
    dtype: str
    pages: int
    channels: int


class Refused(Exception):
    """The reason a file is refused; the reader puts the path before it."""


class Opened(NamedTuple):
    """A checked header and the function that decodes the pixels in the stored number type, (H, W)."""

    header: ImageHeader
    pixels: Callable[[], npt.NDArray[Any]]


def _check_header(header: ImageHeader) -> None:
    height, width, pages, channels = header.height, header.width, header.pages, header.channels
    if pages != 1:
        count = f"{pages} pages" if pages < MAX_COUNTED else f"{MAX_COUNTED} pages or more"
        raise Refused(f"{count}, expected 1")
    if channels != 1:
        raise Refused(f"{channels} channels, expected 1 (grey)")
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width <= MAX_PIXELS):
        raise Refused(
            f"{height} x {width} pixels, expected sides of 1 to {MAX_SIDE} and at most {MAX_PIXELS} in all"
        )


_WRITE_TIFF = "write it with tifffile.imwrite(path, image.astype('float32'))"


class _Tag(IntEnum):
    WIDTH = 256
    HEIGHT = 257
    BITS = 258
    COMPRESSION = 259
    PHOTOMETRIC = 262
    FILL_ORDER = 266
    STRIP_OFFSETS = 273
    ORIENTATION = 274
    CHANNELS = 277
    ROWS_PER_STRIP = 278
    STRIP_BYTES = 279
    PREDICTOR = 317
    TILE_OFFSETS = 324
    SAMPLE_FORMAT = 339


# At 1, which is also their default, pixels are plain, upright and brighter for larger values.
_PLAIN = (_Tag.COMPRESSION, _Tag.PHOTOMETRIC, _Tag.FILL_ORDER, _Tag.ORIENTATION, _Tag.PREDICTOR)
_TIFF_START = 8  # byte order, version, place of the first page
_INTEGERS = {1: "B", 3: "H", 4: "I"}  # field type: struct code
_KINDS = {1: "uint", 2: "int", 3: "float"}
_Tags = dict[int, tuple[int, ...]]


def open_tiff(data: bytes) -> Opened:
    """Check a TIFF: classic, one page, one channel, float32, uncompressed strips that lie in the file."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        raise Refused(f"not a classic TIFF (begins with {data[:4]!r}): {_WRITE_TIFF}")
    (first,) = struct.unpack_from(f"{order}I", data, 4)
    pages = _tiff_pages(data, order, first)
    tags = _tiff_tags(data, order, first)
    for tag in (_Tag.WIDTH, _Tag.HEIGHT):
        if tag not in tags:
            raise Refused(f"TIFF without {_spoken(tag)}")
    kind = _KINDS.get(tags.get(_Tag.SAMPLE_FORMAT, (1,))[0], "unknown")
    channels = tags.get(_Tag.CHANNELS, (1,))[0]
    height, width = tags[_Tag.HEIGHT][0], tags[_Tag.WIDTH][0]
    header = ImageHeader(height, width, f"{kind}{tags.get(_Tag.BITS, (1,))[0]}", pages, channels)
    _check_header(header)
    if header.dtype != "float32":
        raise Refused(f"{header.dtype} TIFF, expected float32: scale it knowingly, then {_WRITE_TIFF}")
    for tag in _PLAIN:
        if tags.get(tag, (1,)) != (1,):
            raise Refused(f"TIFF {_spoken(tag)} is {tags[tag][0]}, expected 1: {_WRITE_TIFF}")
    if _Tag.TILE_OFFSETS in tags:
        raise Refused(f"tiled TIFF, expected strips: {_WRITE_TIFF}")
    strips = _tiff_strips(tags, height=height, width=width, file_bytes=len(data))
    return Opened(header, partial(_tiff_pixels, data, order, strips, (height, width)))


def _spoken(tag: _Tag) -> str:
    return tag.name.lower().replace("_", " ")


def _tiff_pages(data: bytes, order: str, first: int) -> int:
    seen: set[int] = set()
    offset = first
    while offset and len(seen) < MAX_COUNTED:
        if offset in seen:
            raise Refused("TIFF pages point at each other in a loop")
        seen.add(offset)
        (entries,) = struct.unpack_from(f"{order}H", data, offset)
        (offset,) = struct.unpack_from(f"{order}I", data, offset + 2 + 12 * entries)
    return len(seen)


def _tiff_tags(data: bytes, order: str, first: int) -> _Tags:
    (entries,) = struct.unpack_from(f"{order}H", data, first)
    known = frozenset(_Tag)
    tags: _Tags = {}
    for start in range(first + 2, first + 2 + 12 * entries, 12):
        tag, field, count = struct.unpack_from(f"{order}HHI", data, start)
        if tag not in known:
            continue
        if tag in tags or field not in _INTEGERS or not 0 < count <= MAX_SIDE:
            raise Refused(f"TIFF tag {tag} is malformed (type {field}, {count} values, or given twice)")
        code = f"{order}{count}{_INTEGERS[field]}"
        where = start + 8
        if struct.calcsize(code) > 4:
            (where,) = struct.unpack_from(f"{order}I", data, where)
        tags[tag] = struct.unpack_from(code, data, where)
    return tags


def _tiff_strips(tags: _Tags, *, height: int, width: int, file_bytes: int) -> list[tuple[int, int]]:
    """Return (offset, bytes) of each strip, after proof that they hold the image and lie in the file."""
    rows = min(tags.get(_Tag.ROWS_PER_STRIP, (height,))[0], height)
    offsets, sizes = tags.get(_Tag.STRIP_OFFSETS, ()), tags.get(_Tag.STRIP_BYTES, ())
    expected = [4 * width * min(rows, height - top) for top in range(0, height, rows)] if rows else []
    if not expected or list(sizes) != expected or len(offsets) != len(expected):
        raise Refused(f"TIFF strips do not hold {height} x {width} float32 values")
    strips = list(zip(offsets, sizes, strict=True))
    if min(offsets) < _TIFF_START:
        raise Refused(f"TIFF pixels begin at byte {min(offsets)}, inside the file's own header")
    if any(offset + size > file_bytes for offset, size in strips):
        raise Refused(f"cut short: pixels end after the file's {file_bytes} bytes")
    return strips


def _tiff_pixels(
    data: bytes, order: str, strips: list[tuple[int, int]], shape: tuple[int, int]
) -> npt.NDArray[Any]:
    parts = [np.frombuffer(data, f"{order}f4", size // 4, offset) for offset, size in strips]
    return np.concatenate(parts).reshape(shape)


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGB and alpha"}


def open_png(data: bytes) -> Opened:
    """Check a PNG: one picture, 8- or 16-bit grey, no transparency, not interlaced, checksums right."""
    if not data.startswith(_PNG_SIGNATURE):
        raise Refused(f"not a PNG (begins with {data[:4]!r})")
    chunks = _png_chunks(data)
    first, start = chunks[0][0], chunks[0][1]
    if first != b"IHDR" or len(start) != 13:
        raise Refused("PNG without its header")
    width, height, bits, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", start)
    pages = next((struct.unpack_from(">I", body)[0] for what, body in chunks if what == b"acTL"), 1)
    header = ImageHeader(height, width, f"uint{bits}", pages, 1)
    _check_header(header)
    names = [what for what, _ in chunks]
    if colour != 0 or bits not in (8, 16) or b"tRNS" in names:
        transparent = " with a transparent value" if b"tRNS" in names else ""
        raise Refused(
            f"{bits}-bit {_COLOURS.get(colour, colour)} PNG{transparent}, expected plain 8- or 16-bit grey"
        )
    if (compression, filtering, interlace) != (0, 0, 0):
        raise Refused("interlaced or unknown PNG coding, expected plain 8- or 16-bit grey")
    if names.count(b"IHDR") != 1 or names[-1] != b"IEND":
        raise Refused("PNG with a second header or without its end")
    stream = b"".join(body for what, body in chunks if what == b"IDAT")
    return Opened(header, partial(_png_pixels, start, stream, (height, width), bits))


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return (type, body) up to IEND; each checksum is verified."""
    chunks: list[tuple[bytes, bytes]] = []
    position = len(_PNG_SIGNATURE)
    while position < len(data) and (not chunks or chunks[-1][0] != b"IEND"):
        length, what = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
        if checksum != zlib.crc32(what + body):
            raise Refused(f"PNG checksum of chunk {what!r} is wrong")
        if len(chunks) == MAX_COUNTED:
            raise Refused(f"more than {MAX_COUNTED} PNG chunks")
        if what[:1].isupper() and what not in _CRITICAL:
            raise Refused(f"unknown critical PNG chunk {what!r}")
        chunks.append((what, body))
        position += 12 + length
    if not chunks:
        raise Refused("PNG without its header")
    return chunks


def _png_pixels(start: bytes, stream: bytes, shape: tuple[int, int], bits: int) -> npt.NDArray[Any]:
    expected = shape[0] * (1 + shape[1] * bits // 8)
    inflater = zlib.decompressobj()
    # Pillow shows rows that are missing as zeros and ignores what is too much; neither is an image.
    if len(inflater.decompress(stream, expected + 1)) != expected or not inflater.eof:
        raise Refused(f"PNG data do not inflate to the {expected} bytes that its header announces")
    # Only what was checked reaches Pillow: no text, colour profile or animation chunk does.
    plain = _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + what + body + struct.pack(">I", zlib.crc32(what + body))
        for what, body in ((b"IHDR", start), (b"IDAT", stream), (b"IEND", b""))
    )
    with Image.open(BytesIO(plain), formats=["PNG"]) as picture:
        return np.asarray(picture)


OPENERS: dict[str, Callable[[bytes], Opened]] = {".tif": open_tiff, ".tiff": open_tiff, ".png": open_png}
