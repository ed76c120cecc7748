"""The one image reader: any file is either a finite float32 image or one ImageError with path and reason.

A guard reads what a file claims before pixels are touched: pages, channels, number type, sides, and where how
many bytes lie. tifffile (with imagecodecs) and Pillow then see no more of the file than was checked.
"""

import logging
import math
import os
import stat
import struct
import zlib
from collections.abc import Collection
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from dinomaly_hd.errors import DinomalyHDError, ImageError

MAX_SIDE = 4096
MAX_PIXELS = 2**22
MAX_COUNTED = 1000  # pages or PNG chunks that are followed before a file is refused
MAX_FILE_BYTES = 4 * MAX_PIXELS + 2**20  # the largest float32 image and a mebibyte of metadata
MAX_DECODED_BYTES = 8 * MAX_PIXELS  # of all strips or tiles, padding included
_WHOLE = ("uint8", "uint16", "uint32", "int8", "int16", "int32")
SCALES = {dtype: float(np.iinfo(dtype).max) for dtype in _WHOLE}  # the stored value that becomes 1.0
FORMAT_NAMES = {
    **{dtype: f"{dtype} TIFF" for dtype in ("float32", "float64", "float16", *_WHOLE)},
    "uint8": "8-bit PNG or TIFF",
    "uint16": "16-bit PNG or TIFF",
}

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it would complain about is refused here


class Form(NamedTuple):
    """What all images of a set have in common: (H, W) in pixels and the number type that files hold."""

    shape: tuple[int, int]
    dtype: str

    def __str__(self) -> str:
        return f"{self.shape[0]} x {self.shape[1]} {FORMAT_NAMES[self.dtype]}"


class Decoded(NamedTuple):
    """An image, float32 (H, W), and the form of its file."""

    image: npt.NDArray[np.float32]
    form: Form


def printable(name: str) -> str:
    """Return a file name with line breaks, control and undecodable characters escaped."""
    return name if name.isprintable() else repr(name)[1:-1]


def read_file(path: Path, *, name: str | None = None, limit: int = MAX_FILE_BYTES) -> bytes:
    """Return the bytes of a regular file of 1..``limit`` bytes; never waits on a pipe or device."""
    name = printable(name or str(path))
    try:
        with open(path, "rb", 0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
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


def read_image(path: Path, *, grey: bool = False) -> npt.NDArray[np.float32]:
    """Return one image as ``decode_image`` does; errors begin with the path."""
    return decode_image(read_file(path), name=str(path), grey=grey).image


def decode_image(data: bytes, *, name: str, grey: bool = False) -> Decoded:
    """Return an image as float32 (H, W), never clipped; the extension of ``name`` decides the format.

    Accepted are one page, one grey channel, sides up to 4096 and 2^22 pixels in all: TIFFs of finite floats,
    whose values stay, and TIFFs or PNGs of whole numbers, divided by their type's largest (spec hdmap 1,
    reliability 6-8). With ``grey`` also RGB, of which the luma is taken.
    """
    try:
        decode = DECODERS.get(Path(name).suffix.lower())
        if decode is None:
            raise ImageError(f"unknown extension, expected one of {', '.join(DECODERS)}")
        stored = decode(data, grey)
        with np.errstate(all="ignore"):  # what float32 cannot hold becomes infinite, and is refused
            luma = stored if stored.ndim == 2 else stored.astype(np.float64) @ _LUMA / _LUMA.sum()
            image = luma.astype(np.float32, copy=False)
        if stored.dtype.name in SCALES:
            image = image / np.float32(SCALES[stored.dtype.name])
        finite = np.isfinite(image)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            wrong = f"{image.size - np.count_nonzero(finite)} of {image.size} values are NaN or infinite"
            raise ImageError(f"{wrong}, the first at row {row}, column {column}")
    except ImageError as error:
        raise ImageError(f"{printable(name)}: {error}") from None
    except DinomalyHDError:  # a signal that arrives while decoding is not the image's fault
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ImageError(f"{printable(name)}: damaged or cut short ({reason})") from error
    return Decoded(image, Form((image.shape[0], image.shape[1]), stored.dtype.name))


def _check_size(height: int, width: int, *, pages: int) -> None:
    if pages != 1:
        count = f"{pages} pages" if pages < MAX_COUNTED else f"{MAX_COUNTED} pages or more"
        raise ImageError(f"{count}, expected 1")
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width <= MAX_PIXELS):
        raise ImageError(
            f"{height} x {width} pixels, expected sides of 1 to {MAX_SIDE} and at most {MAX_PIXELS} in all"
        )


_LUMA = np.array([299.0, 587.0, 114.0])  # ITU-R BT.601, as Pillow and OpenCV have it; whole, so grey stays
_GREY_HINT = "; grey=true turns RGB grey"

_LAYOUTS = {
    b"II*\0": tifffile.TIFF.CLASSIC_LE,
    b"MM\0*": tifffile.TIFF.CLASSIC_BE,
    b"II+\0": tifffile.TIFF.BIG_LE,
    b"MM\0+": tifffile.TIFF.BIG_BE,
}
# Sides, number type, coding, places of strips and tiles. Tags that say more do not matter to a grey image.
_TAGS = frozenset({256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 317, 322, 323, 324, 325, 339})
_PLANES = 284  # matters where there are several channels
_INTEGERS = frozenset({3, 4, 16})
_MOST_VALUES = 2**14  # of one tag: the places of 16 x 16 tiles
_KINDS = {1: "uint", 2: "int", 3: "float", 6: "complex"}
# At 1, which is also their default, larger values are brighter, bits in order, the image upright, channels
# together.
_PLAIN = {262: "photometric", 266: "fill order", 274: "orientation", _PLANES: "planar configuration"}
_RGB = 2  # the photometric of three channels
# By compression. LZMA is not among them: its header says how much memory decoding takes.
_PREDICTORS = {1: (1,), 5: (1, 2, 3), 8: (1, 2, 3), 32773: (1,), 32946: (1, 2, 3), 50000: (1, 2, 3)}
_WRITE_TIFF = "write it with tifffile.imwrite(path, image.astype('float32'))"


def _read_tiff(data: bytes, grey: bool) -> npt.NDArray[Any]:
    layout = _LAYOUTS.get(data[:4])
    if layout is None:
        raise ImageError(f"not a TIFF (begins with {data[:4]!r}): {_WRITE_TIFF}")
    size = layout.offsetsize
    (first,) = struct.unpack_from(layout.offsetformat, data, size)
    pages = _count_pages(data, layout, first)
    tags = _known_tags(data, layout, first, known=_TAGS | {_PLANES} if grey else _TAGS)
    # A file of one page and the known tags: no description, no maker's tag, no second page is looked at.
    start, own_page = struct.pack(layout.offsetformat, len(data)), struct.pack(layout.tagnoformat, len(tags))
    plain = b"".join([data[:size], start, data[2 * size :], own_page, *tags.values(), bytes(size)])
    with tifffile.TiffFile(BytesIO(plain)) as file:
        page = file.pages.first
        if len(page.tags) != len(tags) or not {256, 257} <= tags.keys():
            raise ImageError("TIFF without width or height, or with tags that lie outside of the file")
        if page.samplesperpixel not in ((1, 3) if grey else (1,)):
            hint = "" if grey or page.samplesperpixel != 3 else _GREY_HINT
            raise ImageError(f"{page.samplesperpixel} channels, expected 1 (grey){hint}")
        _check_size(page.imagelength, page.imagewidth, pages=pages)
        _check_coding(page)
        _check_places(page, file_bytes=len(data))
        return np.asarray(page.asarray(maxworkers=1))


def _count_pages(data: bytes, layout: Any, offset: int) -> int:
    seen: set[int] = set()
    while offset and len(seen) < MAX_COUNTED:
        if offset in seen:
            raise ImageError("TIFF pages point at each other in a loop")
        seen.add(offset)
        (tags,) = struct.unpack_from(layout.tagnoformat, data, offset)
        end = offset + layout.tagnosize + tags * layout.tagsize
        (offset,) = struct.unpack_from(layout.offsetformat, data, end)
    return len(seen)


def _known_tags(data: bytes, layout: Any, page: int, *, known: Collection[int]) -> dict[int, bytes]:
    """Return the tags of a page that matter, as they are stored; tifffile skips those that are damaged."""
    (count,) = struct.unpack_from(layout.tagnoformat, data, page)
    tags: dict[int, bytes] = {}
    for number in range(min(count, 2**16)):
        start = page + layout.tagnosize + number * layout.tagsize
        code, kind, values, _ = struct.unpack_from(layout.tagheaderformat, data, start)
        if code not in known:
            continue
        if code in tags or kind not in _INTEGERS or not 0 < values <= _MOST_VALUES:
            raise ImageError(f"TIFF tag {code} is malformed (type {kind}, {values} values, or given twice)")
        tags[code] = data[start : start + layout.tagsize]
    return tags


def _check_coding(page: Any) -> None:
    dtype = f"{_KINDS.get(page.sampleformat, 'unknown')}{page.bitspersample}"
    if dtype not in FORMAT_NAMES:
        others = ", ".join(name for name in FORMAT_NAMES if name != "float32")
        raise ImageError(f"{dtype} TIFF, expected float32 ({others}): {_WRITE_TIFF}")
    for code, name in _PLAIN.items():
        wanted = _RGB if code == 262 and page.samplesperpixel == 3 else 1
        if (value := page.tags.valueof(code, default=1)) != wanted:
            raise ImageError(f"TIFF {name} is {int(value)}, expected {wanted}: {_WRITE_TIFF}")
    if page.predictor not in _PREDICTORS.get(page.compression, ()):
        coding = f"compression is {int(page.compression)} with predictor {int(page.predictor)}"
        raise ImageError(f"TIFF {coding}, expected none, LZW, Deflate, PackBits or ZSTD: {_WRITE_TIFF}")


def _check_places(page: Any, *, file_bytes: int) -> None:
    """Refuse strips or tiles that do not hold the image, do not lie in the file, or decode to too much."""
    height, width, offsets, sizes = page.imagelength, page.imagewidth, page.dataoffsets, page.databytecounts
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
    count = math.ceil(height / rows) * math.ceil(width / columns)
    pixels = count * rows * columns if page.is_tiled else height * width
    decoded = pixels * page.dtype.itemsize * page.samplesperpixel
    whole = len(offsets) == len(sizes) == count and min(sizes) > 0
    if not whole or (page.compression == 1 and sum(sizes) != decoded):
        raise ImageError(f"TIFF strips or tiles do not hold {height} x {width} {page.dtype} values")
    if decoded > MAX_DECODED_BYTES:
        raise ImageError(f"TIFF decodes to {decoded} bytes, expected at most {MAX_DECODED_BYTES}")
    if min(offsets) < 8:
        raise ImageError(f"TIFF pixels begin at byte {min(offsets)}, inside the file's own header")
    if any(offset + size > file_bytes for offset, size in zip(offsets, sizes, strict=True)):
        raise ImageError(f"cut short: pixels end after the file's {file_bytes} bytes")


_PNG_START = b"\x89PNG\r\n\x1a\n"
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGB and alpha"}
_CHANNELS = {0: 1, 2: 3, 6: 4}  # of what may be read


def _read_png(data: bytes, grey: bool) -> npt.NDArray[Any]:
    if not data.startswith(_PNG_START):
        raise ImageError(f"not a PNG (begins with {data[:4]!r})")
    if data[8:16] != b"\0\0\0\rIHDR":
        raise ImageError("PNG without its header")
    width, height, bits, colour, *coding = struct.unpack_from(">IIBBBBB", data, 16)
    chunks = _png_chunks(data)
    frames = next((struct.unpack_from(">I", chunk, 8)[0] for what, chunk in chunks if what == b"acTL"), 1)
    _check_size(height, width, pages=frames)
    transparent = " with a transparent value" if any(what == b"tRNS" for what, _ in chunks) else ""
    # Pillow would cut RGB of 16 bits to 8.
    readable = bits in (8, 16) if colour == 0 else grey and bits == 8 and colour in _CHANNELS
    if not readable or transparent or coding != [0, 0, 0]:
        found = f"{bits}-bit {_COLOURS.get(colour, colour)} PNG{transparent}"
        coded = f", coded [0, 0, 0], not {coding}" if coding != [0, 0, 0] else ""
        hint = _GREY_HINT if colour in _CHANNELS and bits == 8 and not grey else ""
        raise ImageError(f"{found}, expected plain 8- or 16-bit grey{coded}{hint}")
    stream = b"".join(chunk[8:-4] for what, chunk in chunks if what == b"IDAT")
    expected = height * (1 + width * _CHANNELS[colour] * bits // 8)
    inflater = zlib.decompressobj()
    # Pillow shows rows that are missing as zeros and ignores what is too much; neither is an image.
    if len(inflater.decompress(stream, expected + 1)) != expected or not inflater.eof:
        raise ImageError(f"PNG data do not inflate to the {expected} bytes that its header announces")
    # No text, colour profile or animation is looked at.
    plain = [chunk for what, chunk in chunks if what in (b"IHDR", b"IDAT", b"IEND")]
    with Image.open(BytesIO(b"".join([_PNG_START, *plain])), formats=["PNG"]) as picture:
        pixels = np.asarray(picture)
    if colour == 6 and pixels[..., 3].min() < 255:
        raise ImageError("PNG with transparent pixels, which have no grey value")
    return pixels[..., :3] if pixels.ndim == 3 else pixels


def _png_chunks(data: bytes) -> list[tuple[bytes, memoryview]]:
    """Return (type, whole chunk) up to IEND; each checksum is verified."""
    chunks: list[tuple[bytes, memoryview]] = []
    position = len(_PNG_START)
    while not chunks or chunks[-1][0] != b"IEND":
        length, what = struct.unpack_from(">I4s", data, position)
        (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
        chunk = memoryview(data)[position : position + 12 + length]
        if checksum != zlib.crc32(chunk[4:-4]):
            raise ImageError(f"PNG checksum of chunk {what!r} is wrong")
        if what[:1].isupper() and what not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            raise ImageError(f"unknown critical PNG chunk {what!r}")
        if len(chunks) == MAX_COUNTED or (chunks and what == b"IHDR"):
            raise ImageError(f"PNG with a second header, or more than {MAX_COUNTED} chunks")
        chunks.append((what, chunk))
        position += 12 + length
    return chunks


DECODERS = {".tif": _read_tiff, ".tiff": _read_tiff, ".png": _read_png}
