"""Promises of the one image reader (reliability rows 6 to 8)."""

import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from dinomaly_hd.data import images
from dinomaly_hd.data.images import decode_image, read_image
from dinomaly_hd.errors import ImageError, Interrupted

MAP = np.random.default_rng(0).random((31, 95), dtype=np.float32) * 3


def tiff(image: np.ndarray, **options: object) -> bytes:
    stream = BytesIO()
    tifffile.imwrite(stream, image, **options)
    return stream.getvalue()


def png(image: Image.Image | np.ndarray, **options: object) -> bytes:
    stream = BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(stream, "PNG", **options)
    return stream.getvalue()


def chunk(what: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + what + body + struct.pack(">I", zlib.crc32(what + body))


def grey_png(height: int, width: int, stream: bytes, *, before: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def place_of(data: bytes, tag: int) -> int:
    """Return where a tag of a little-endian TIFF stands."""
    (first,) = struct.unpack_from("<I", data, 4)
    places = range(first + 2, first + 2 + 12 * data[first], 12)
    return next(at for at in places if struct.unpack_from("<H", data, at) == (tag,))


def edited(data: bytes, *tags_and_values: int) -> bytes:
    """Give tags of a little-endian TIFF, each one number, other values."""
    out = bytearray(data)
    for tag, value in zip(tags_and_values[::2], tags_and_values[1::2], strict=True):
        start = place_of(data, tag)
        struct.pack_into({3: "<H", 4: "<I"}[out[start + 2]], out, start + 8, value)
    return bytes(out)


def counted(data: bytes, tag: int, count: int) -> bytes:
    """Let a tag of a little-endian TIFF hold so many values."""
    start = place_of(data, tag) + 4
    return data[:start] + struct.pack("<I", count) + data[start + 4 :]


def twice(data: bytes) -> bytes:
    """Put a TIFF's width in the place of the program's name, too."""
    program, width = place_of(data, 305), place_of(data, 256)
    return data[:program] + data[width : width + 12] + data[program + 12 :]


def flipped(data: bytes) -> bytes:
    """Change one bit of the checksum that ends a Deflate stream, where the stream ends the file."""
    return data[:-1] + bytes([data[-1] ^ 1])


GREY8 = (MAP * 80).astype(np.uint8)
GREY16 = (MAP * 20000).astype(np.uint16)
GREY32 = (MAP * 1e9).astype(np.uint32)


# What is accepted, and its values --------------------------------------------------------------------------


def by_pillow(**options: object) -> bytes:
    """Return the map as libtiff writes it, which OpenCV does, too."""
    stream = BytesIO()
    Image.fromarray(MAP).save(stream, "TIFF", **options)
    return stream.getvalue()


EXACT: dict[str, bytes] = {
    "plain": tiff(MAP),
    "big-endian": tiff(MAP, byteorder=">"),
    "strips": tiff(MAP, rowsperstrip=7),
    "no metadata": tiff(MAP, metadata=None),
    "a long description": tiff(MAP, description="x" * 5000),
    "ImageJ": tiff(MAP, imagej=True),
    "BigTIFF": tiff(MAP, bigtiff=True),
    "big-endian BigTIFF of strips": tiff(MAP, bigtiff=True, byteorder=">", rowsperstrip=4),
    "Deflate": tiff(MAP, compression="zlib"),
    "Deflate of strips with predictor": tiff(MAP, compression="zlib", predictor=3, rowsperstrip=8),
    "LZW": tiff(MAP, compression="lzw"),
    "PackBits": tiff(MAP, compression="packbits"),
    "tiled": tiff(MAP, tile=(16, 16)),
    "tiled, LZW, big-endian": tiff(MAP, tile=(32, 16), compression="lzw", byteorder=">"),
    "larger tile than image": tiff(MAP, tile=(256, 256), compression="zlib"),
    "another writer": by_pillow(),
    "another writer's LZW": by_pillow(compression="tiff_lzw"),
    "OpenCV's default": by_pillow(compression="tiff_lzw", tiffinfo={317: 2}),
    "another writer's Deflate": by_pillow(compression="tiff_adobe_deflate", tiffinfo={317: 3}),
    "another writer's PackBits": by_pillow(compression="packbits"),
    "float64": tiff(MAP.astype(np.float64)),
    "float64, Deflate": tiff(MAP.astype(np.float64), compression="zlib", predictor=3),
}


@pytest.mark.parametrize("case", EXACT)
def test_tiff_values_are_the_files_and_never_clipped(case: str) -> None:
    decoded = decode_image(EXACT[case], name="a.TIF")
    assert decoded.image.dtype == np.float32
    assert decoded.form == ((31, 95), "float64" if "float64" in case else "float32")
    np.testing.assert_array_equal(decoded.image, MAP)
    assert decoded.image.max() > 2.9


def test_wide_half_and_double_values_survive_as_float32() -> None:
    wide = np.array([[-5.0, 1e30, 0.0, 1 / 3]])
    for dtype in (np.float32, np.float64):
        image = decode_image(tiff(wide.astype(dtype)), name="a.tiff").image
        np.testing.assert_array_equal(image, wide.astype(np.float32))
    half = np.float16([[-5.0, 1 / 3, 6e4]])
    np.testing.assert_array_equal(decode_image(tiff(half), name="a.tiff").image, half.astype(np.float32))


@pytest.mark.parametrize("image", [GREY8, GREY16, GREY32], ids=["8 bit", "16 bit", "32 bit"])
def test_whole_numbers_are_divided_by_the_largest_of_their_type(image: np.ndarray) -> None:
    scale = np.float32(np.iinfo(image.dtype).max)
    files = {"a.tiff": tiff(image), "lzw.tiff": tiff(image, compression="lzw", predictor=2)}
    if image is not GREY32:
        files["a.png"] = png(image)
    for name, data in files.items():
        decoded = decode_image(data, name=name)
        np.testing.assert_array_equal(decoded.image, image.astype(np.float32) / scale)
        assert decoded.form == ((31, 95), image.dtype.name)


# What is refused, in one line that says why ----------------------------------------------------------------

NAN = MAP.copy()
NAN[3, 4], NAN[5, 5] = np.nan, np.inf
ROWS = b"".join(b"\0" + bytes(95) for _ in range(31))

REFUSED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "3 pages": ("a.tiff", lambda: tiff(np.stack([MAP] * 3), photometric="minisblack"), "3 pages, expected 1"),
    "RGB TIFF": (
        "a.tiff",
        lambda: tiff(np.stack([MAP] * 3, -1), photometric="rgb"),
        "3 channels, expected 1",
    ),
    "complex TIFF": ("a.tiff", lambda: tiff(MAP.astype(np.complex64)), "complex64 TIFF, expected float32"),
    "64-bit TIFF": ("a.tiff", lambda: tiff(GREY16.astype(np.uint64)), "uint64 TIFF, expected float32"),
    "signed TIFF": ("a.tiff", lambda: tiff(GREY16.astype(np.int16)), "int16 TIFF, expected float32"),
    "1-bit TIFF": ("a.tiff", lambda: tiff(MAP > 1), "uint1 TIFF, expected float32"),
    "inverted TIFF": ("a.tiff", lambda: tiff(MAP, photometric="miniswhite"), "photometric is 0, expected 1"),
    "rotated TIFF": (
        "a.tiff",
        lambda: tiff(MAP, extratags=[(274, 3, 1, 6, True)]),
        "orientation is 6, expected 1",
    ),
    "lossy TIFF": (
        "a.tiff",
        lambda: tiff(GREY8, compression="jpeg"),
        "compression is 7 with predictor 1, expected none, LZW, Deflate or PackBits",
    ),
    "predictor that nobody applies": ("a.tiff", lambda: by_pillow(tiffinfo={317: 2}), "with predictor 2"),
    "beyond float32": (
        "a.tiff",
        lambda: tiff(np.where(MAP > 1, 1e300, 0)),
        "values are NaN or infinite, the first at row 0, co",
    ),
    "strips too short": (
        "a.tiff",
        lambda: edited(tiff(MAP), 279, 11776),
        "do not hold 31 x 95 float32 values",
    ),
    "compressed rows missing": (
        "a.tiff",
        lambda: edited(tiff(MAP[:30], compression="zlib"), 257, 31, 278, 31),
        "damaged or cut short",
    ),
    "LZW cut": (
        "a.tiff",
        lambda: edited(tiff(MAP, compression="lzw"), 279, 900),
        "damaged or cut short",
    ),
    "Deflate with a wrong checksum": (
        "a.tiff",
        lambda: flipped(tiff(MAP, compression="zlib", metadata=None)),
        "damaged or cut short",
    ),
    "tag given twice": (
        "a.tiff",
        lambda: twice(tiff(MAP)),
        "1 values, or given twice)",
    ),
    "tag outside of the file": ("a.tiff", lambda: tiff(MAP, rowsperstrip=7)[:9], "damaged or cut short"),
    "NaN and Inf": (
        "a.tiff",
        lambda: tiff(NAN),
        "2 of 2945 values are NaN or infinite, the first at row 3, co",
    ),
    "cut TIFF": ("a.tiff", lambda: tiff(MAP)[:-1], "cut short"),
    "TIFF whose pixels are its header": (
        "a.tiff",
        lambda: edited(tiff(MAP), 273, 0),
        "TIFF pixels begin at byte 0, inside the file's own header",
    ),
    "PNG called TIFF": ("a.tiff", lambda: png(GREY8), "not a TIFF"),
    "TIFF called PNG": ("a.png", lambda: tiff(MAP), "not a PNG"),
    "RGB PNG": ("a.png", lambda: png(Image.fromarray(GREY8).convert("RGB")), "8-bit RGB PNG"),
    "RGBA PNG": ("a.png", lambda: png(Image.fromarray(GREY8).convert("RGBA")), "8-bit RGB and alpha PNG"),
    "alpha PNG": ("a.png", lambda: png(Image.fromarray(GREY8).convert("LA")), "8-bit grey and alpha PNG"),
    "palette PNG": ("a.png", lambda: png(Image.fromarray(GREY8).convert("P")), "8-bit palette PNG"),
    "1-bit PNG": ("a.png", lambda: png(Image.fromarray(GREY8).convert("1")), "1-bit grey PNG"),
    "transparent PNG": (
        "a.png",
        lambda: png(Image.fromarray(GREY8), transparency=3),
        "with a transparent value",
    ),
    "animated PNG": (
        "a.png",
        lambda: png(Image.fromarray(GREY8), save_all=True, append_images=[Image.fromarray(GREY8 // 2)]),
        "2 pages, expected 1",
    ),
    "cut PNG": ("a.png", lambda: png(GREY8)[:-20], "cut short"),
    "PNG with rows missing": (
        "a.png",
        lambda: grey_png(31, 95, zlib.compress(ROWS[:960])),
        "do not inflate to",
    ),
    "PNG with rows too many": (
        "a.png",
        lambda: grey_png(31, 95, zlib.compress(ROWS * 2)),
        "do not inflate to",
    ),
    "wrong checksum": ("a.png", lambda: png(GREY8)[:-1] + b"\0", "checksum of chunk b'IEND' is wrong"),
    "empty file": ("a.tiff", lambda: b"", "0 bytes, expected 1 to"),
    "text": ("a.txt", lambda: b"hello", "unknown extension, expected one of .tif, .tiff, .png"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_path_and_reason(tmp_path: Path, case: str) -> None:
    name, write, reason = REFUSED[case]
    (tmp_path / name).write_bytes(write())
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / name, name=f"domain_C/{name}")
    message = str(caught.value)
    assert message.startswith(f"domain_C/{name}: ")
    assert reason in message
    assert "\n" not in message


def test_a_signalling_nan_is_refused_without_a_warning() -> None:
    image = MAP.copy()
    image.view(np.uint32)[2, 3] = 0x7F800001
    with pytest.raises(
        ImageError, match="1 of 2945 values are NaN or infinite, the first at row 2, column 3"
    ):
        decode_image(tiff(image), name="a.tiff")


def test_missing_folder_pipe_and_device_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tiff")
    (tmp_path / "folder.tiff").mkdir()
    for path in (tmp_path / "pipe.tiff", tmp_path / "folder.tiff", tmp_path / "none.tiff", Path("/dev/zero")):
        with pytest.raises(ImageError, match=path.name):
            read_image(path)


def test_hostile_names_are_printed_escaped(tmp_path: Path) -> None:
    path = tmp_path / "-rf\nImageError: all is well\x1b[2J.tiff"
    path.write_bytes(b"II*\0")
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(caught.value).isprintable()


def fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(_: bytes) -> None:
        raise error

    monkeypatch.setitem(images.DECODERS, ".tiff", broken)


def test_a_signal_during_decoding_is_not_blamed_on_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, Interrupted(15))
    with pytest.raises(Interrupted):
        decode_image(b"", name="a.tiff")


@pytest.mark.parametrize("failure", [MemoryError, RecursionError, TypeError, struct.error, OSError])
def test_every_kind_of_decoder_failure_is_one_image_error(
    monkeypatch: pytest.MonkeyPatch, failure: type[Exception]
) -> None:
    fails(monkeypatch, failure("boom"))
    with pytest.raises(ImageError, match=r"^a\.tiff: damaged or cut short .*boom"):
        decode_image(b"", name="a.tiff")


# Bombs -----------------------------------------------------------------------------------------------------


def endless_tiff() -> bytes:
    """A hundred pages, then a loop between the last two, where a general reader may follow for ever."""
    count = 102
    offsets = [8 + 6 * page for page in range(count)]
    following = [*offsets[1:], offsets[-2]]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(struct.pack("<HI", 0, offset) for offset in following)


@cache
def much() -> bytes:
    """256 MiB of zeros, deflated."""
    deflater = zlib.compressobj(1)
    return b"".join(deflater.compress(bytes(2**20)) for _ in range(256)) + deflater.flush()


def inflating_tiff(rows: int, columns: int) -> bytes:
    """A TIFF of 31 x 95 pixels in one tile, whose data inflate to 256 MiB."""
    tags = {256: 95, 257: 31, 258: 32, 259: 8, 322: columns, 323: rows, 324: 8, 325: 0, 339: 3}
    if rows == 31:
        tags = {256: 95, 257: 31, 258: 32, 259: 8, 273: 8, 278: 31, 279: 0, 339: 3}
    stream = much()
    tags[325 if 325 in tags else 279] = len(stream)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(stream))
        + stream
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


BOMBS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "huge TIFF": ("a.tiff", lambda: edited(tiff(MAP), 256, 65535, 257, 65535), "65535 x 65535 pixels"),
    "huge PNG": ("a.png", lambda: grey_png(60000, 60000, zlib.compress(ROWS)), "60000 x 60000 pixels"),
    "flat PNG": ("a.png", lambda: grey_png(1, 2**22, zlib.compress(ROWS)), "1 x 4194304 pixels"),
    "PNG of 256 MiB": ("a.png", lambda: grey_png(31, 95, much()), "do not inflate to the 2976 bytes"),
    "many pages": ("a.tiff", lambda: tiff(np.zeros((1200, 2, 2), np.float32)), "1000 pages or more"),
    "endless pages": ("a.tiff", endless_tiff, "in a loop"),
    "many strips": (
        "a.tiff",
        lambda: tiff(np.zeros((4096, 1024), np.float32), rowsperstrip=1)[:-1],
        "cut short",
    ),
    "256 MiB in a strip": ("a.tiff", lambda: inflating_tiff(31, 95), "damaged or cut short .DeflateError"),
    "1 GiB in a tile": ("a.tiff", lambda: inflating_tiff(2**14, 2**14), "decodes to 1073741824 bytes"),
    "a million strips": ("a.tiff", lambda: counted(tiff(MAP) + bytes(2**22), 273, 2**20), "273 is malformed"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_are_refused_in_64_mb(tmp_path: Path, case: str) -> None:
    name, write, reason = BOMBS[case]
    (tmp_path / name).write_bytes(write())
    tracemalloc.start()
    with pytest.raises(ImageError, match=reason):
        read_image(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6, f"{peak / 1e6:.1f} MB"


def test_ten_gigabytes_are_refused_by_their_size(tmp_path: Path) -> None:
    with open(tmp_path / "a.tiff", "wb") as stream:
        stream.truncate(10**10)
    with pytest.raises(ImageError, match="10000000000 bytes, expected 1 to"):
        read_image(tmp_path / "a.tiff")


def test_text_bombs_never_reach_the_decoder() -> None:
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20)))
    image = decode_image(grey_png(31, 95, zlib.compress(ROWS), before=text * 900), name="a.png").image
    np.testing.assert_array_equal(image, np.zeros((31, 95)))


# Fuzz ------------------------------------------------------------------------------------------------------


def mutated(data: bytes, draw: np.random.Generator) -> bytes:
    """Damage a file in one of five ways, mostly near its start, where the header is."""
    out = bytearray(data)
    for _ in range(draw.integers(1, 6)):
        reach = len(out) if draw.random() < 0.3 else min(len(out), 280)
        at = int(draw.integers(0, max(reach, 1)))
        kind = draw.integers(0, 5)
        if kind == 0:
            out[at : at + 1] = draw.bytes(1)
        elif kind == 1:
            out[at : at + 4] = struct.pack(
                "<I", int(draw.choice([0, 1, 2**16, 2**31 - 1, 2**32 - 1, len(out)]))
            )
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            out[at:at] = draw.bytes(int(draw.integers(1, 20)))
        else:
            out[at : at + 12] = out[max(at - 12, 0) : at]
    return bytes(out)


def with_right_checksums(data: bytes) -> bytes:
    """Repair a PNG's checksums, so that the damage reaches what lies behind them."""
    out, position = data[:8], 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        body = data[position + 8 : position + 8 + length]
        out += chunk(data[position + 4 : position + 8], body)
        position += 12 + length
    return out


def test_mutated_files_give_an_image_or_one_image_error() -> None:
    draw = np.random.default_rng(7)
    originals = [
        ("a.tiff", tiff(MAP)),
        ("a.tiff", tiff(MAP, byteorder=">", rowsperstrip=4)),
        ("a.tiff", tiff(MAP, compression="lzw", predictor=3, tile=(16, 32))),
        ("a.tiff", tiff(MAP, compression="zlib", bigtiff=True)),
        ("a.png", png(GREY8)),
        ("a.png", png(GREY16)),
    ]
    taken = 0
    for position in range(900):
        name, data = originals[position % len(originals)]
        data = mutated(data, draw)
        if name == "a.png" and draw.random() < 0.7:
            data = with_right_checksums(data)
        try:
            image = decode_image(data, name=name).image
        except ImageError as error:
            assert str(error).startswith(f"{name}: ")  # noqa: PT017
        else:
            assert image.dtype == np.float32
            assert np.isfinite(image).all()
            taken += 1
    assert 30 < taken < 750
