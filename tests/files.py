"""Image files and small data roots as tests and drills write them."""

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

SPLITS = ("train/good", "test/good", "test/fault")
IMAGES, SHAPE, SEED = 3, (31, 95), 15


def tiff(image: NDArray[Any], **options: Any) -> bytes:
    stream = BytesIO()
    tifffile.imwrite(stream, image, **options)
    return stream.getvalue()


def png(image: NDArray[Any] | Image.Image, **options: Any) -> bytes:
    stream = BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, "PNG", **options)
    return stream.getvalue()


def bare_tiff(*tags: tuple[int, int, int]) -> bytes:
    """Return the head of a TIFF with these tags, each its code, count and value."""
    entries = b"".join(struct.pack("<HHII", code, 4, count, value) for code, count, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def chunk(what: bytes, body: bytes) -> bytes:
    """Return a part of a PNG."""
    return struct.pack(">I", len(body)) + what + body + struct.pack(">I", zlib.crc32(what + body))


def png_of(height: int, width: int, stream: bytes, *, before: bytes = b"", colour: int = 0) -> bytes:
    """Return a PNG of 8 bits whose header promises these sides, whatever its stream; colour 2 is RGB."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def add_domain(root: Path, name: str) -> None:
    """Write a domain of random maps: four to train on, three good ones and three faults."""
    draw = np.random.default_rng(SEED)
    for split in SPLITS:
        place = root / name / split
        place.mkdir(parents=True)
        for number in range(IMAGES + (split == SPLITS[0])):
            add_image(place / f"{number}.tiff", draw)


def add_image(path: Path, draw: np.random.Generator) -> None:
    """Write one small map; the longer its name, the higher it scores, so that the longest is drawn."""
    path.write_bytes(tiff(draw.random(SHAPE, dtype=np.float32) * np.float32(1 + len(path.name))))
