"""Promises of the one image reader; benchmarks/drills/images.py damages TIFFs (6) and tries bombs (7)."""

import contextlib
import os
import re
import struct
import zlib
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from dinomaly_hd.data import images
from dinomaly_hd.data.images import decode_image, read_image
from dinomaly_hd.errors import ImageError, Interrupted
from tests.files import chunk, png_of, tiff

MAP = np.random.default_rng(0).random((31, 95), dtype=np.float32) * 3
GREY8, GREY16, GREY32 = (MAP * 80).astype("u1"), (MAP * 20000).astype("u2"), (MAP * 1e9).astype("u4")
SIGNED = ((MAP - 1) * 10000).astype("i2")
RGB8 = np.stack([GREY8, GREY8 // 2, 255 - GREY8], -1)
NAN = MAP.copy()
NAN[3, 4], NAN[5, 5] = np.nan, np.inf
SIGNALLING = MAP.copy()
SIGNALLING.view(np.uint32)[2, 3] = 0x7F800001
NOT_FINITE = "1 of 2945 values are NaN or infinite, the first at row 2, column 3"
ROWS = b"".join(b"\0" + bytes(95) for _ in range(31))


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    """Return a picture as Pillow writes it, TIFFs with libtiff, as OpenCV does."""
    stream = BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def libtiff(**options: object) -> bytes:
    return saved(Image.fromarray(MAP), "TIFF", **options)


def png(mode: str | None = None, **options: object) -> bytes:
    picture = Image.fromarray(GREY8)
    return saved(picture if mode is None else picture.convert(mode), "PNG", **options)


def place_of(data: bytes, tag: int) -> int:
    """Return where a tag of a little-endian TIFF stands: code, type, number of values, value."""
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


def with_width_for(tag: int) -> bytes:
    data = tiff(MAP)
    there, width = place_of(data, tag), place_of(data, 256)
    return data[:there] + data[width : width + 12] + data[there + 12 :]


def many_strips() -> bytes:
    data = tiff(MAP) + bytes(2**22)
    start = place_of(data, 273) + 4
    return data[:start] + struct.pack("<I", 2**20) + data[start + 4 :]


# What is accepted, and its values --------------------------------------------------------------------------

EXACT = {
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
    "ZSTD": tiff(MAP, compression="zstd", predictor=3),
    "tiled": tiff(MAP, tile=(16, 16)),
    "tiled, LZW, big-endian": tiff(MAP, tile=(32, 16), compression="lzw", byteorder=">"),
    "larger tile than image": tiff(MAP, tile=(256, 256), compression="zlib"),
    "another writer": libtiff(),
    "another writer's LZW": libtiff(compression="tiff_lzw"),
    "OpenCV's default": libtiff(compression="tiff_lzw", tiffinfo={317: 2}),
    "another writer's Deflate": libtiff(compression="tiff_adobe_deflate", tiffinfo={317: 3}),
    "another writer's PackBits": libtiff(compression="packbits"),
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


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_negative_large_and_odd_values_survive_as_float32(dtype: type) -> None:
    wide = np.array([[-5.0, 6e4, 0.0, 1 / 3]], dtype)
    np.testing.assert_array_equal(decode_image(tiff(wide), name="a.tiff").image, wide.astype(np.float32))


@pytest.mark.parametrize("image", [GREY8, GREY16, GREY32, SIGNED], ids=["8 bit", "16", "32", "signed"])
def test_whole_numbers_are_divided_by_the_largest_of_their_type(image: np.ndarray) -> None:
    expected = image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
    files = {"a.tiff": tiff(image), "lzw.tiff": tiff(image, compression="lzw", predictor=2)}
    if image is GREY8 or image is GREY16:
        files["a.png"] = saved(Image.fromarray(image), "PNG")
    for name, data in files.items():
        decoded = decode_image(data, name=name)
        np.testing.assert_array_equal(decoded.image, expected)
        assert decoded.form == ((31, 95), image.dtype.name)


def test_rgb_is_turned_grey_where_asked_and_grey_stays_what_it_was() -> None:
    luma = (RGB8.astype(np.float64) @ [0.299, 0.587, 0.114] / 255).astype(np.float32)
    opaque = saved(Image.fromarray(RGB8).convert("RGBA"), "PNG")
    files = {"a.png": saved(Image.fromarray(RGB8), "PNG"), "b.png": opaque, "c.tiff": tiff(RGB8)}
    for name, data in files.items():
        decoded = decode_image(data, name=name, grey=True)
        np.testing.assert_allclose(decoded.image, luma, rtol=1e-6)
        assert decoded.form == ((31, 95), "uint8")
    alike = decode_image(tiff(np.stack([MAP] * 3, -1), photometric="rgb"), name="a.tiff", grey=True).image
    np.testing.assert_array_equal(alike, MAP)
    for data in EXACT.values():
        np.testing.assert_array_equal(decode_image(data, name="a.tiff", grey=True).image, MAP)
    lucid = Image.fromarray(RGB8).convert("RGBA")
    lucid.putpixel((3, 4), (1, 2, 3, 254))
    planes = tiff(np.moveaxis(RGB8, 2, 0), photometric="rgb", planarconfig="separate")
    for name, data, reason in (
        ("a.png", saved(lucid, "PNG"), "transparent pixels"),
        ("a.png", png("P"), "8-bit palette PNG"),
        ("a.tiff", planes, "planar configuration is 2, expected 1"),
        ("a.tiff", tiff(np.stack([GREY8] * 4, -1), photometric="rgb"), "4 channels, expected 1"),
    ):
        with pytest.raises(ImageError, match=reason):
            decode_image(data, name=name, grey=True)


def test_text_bombs_never_reach_the_decoder() -> None:
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20)))
    image = decode_image(png_of(31, 95, zlib.compress(ROWS), before=text * 900), name="a.png").image
    np.testing.assert_array_equal(image, np.zeros((31, 95)))


# What is refused, in one line that says why ----------------------------------------------------------------

BAD_TIFFS = {
    "3 pages": (tiff(np.stack([MAP] * 3), photometric="minisblack"), "3 pages, expected 1"),
    "1200 pages": (tiff(np.zeros((1200, 2, 2), np.float32)), "1000 pages or more"),
    "RGB": (tiff(np.stack([MAP] * 3, -1), photometric="rgb"), "3 channels, expected 1 (grey); grey=true"),
    "complex": (tiff(MAP.astype(np.complex64)), "complex64 TIFF, expected float32"),
    "64 bits": (tiff(GREY16.astype(np.uint64)), "uint64 TIFF, expected float32"),
    "1 bit": (tiff(MAP > 1), "uint1 TIFF, expected float32"),
    "inverted": (tiff(MAP, photometric="miniswhite"), "photometric is 0, expected 1"),
    "rotated": (tiff(MAP, extratags=[(274, 3, 1, 6, True)]), "orientation is 6, expected 1"),
    "JPEG": (tiff(GREY8, compression="jpeg"), "compression is 7 with predictor 1, expected none, LZW, De"),
    "predictor that nobody applies": (libtiff(tiffinfo={317: 2}), "compression is 1 with predictor 2"),
    "NaN and Inf": (tiff(NAN), "2 of 2945 values are NaN or infinite, the first at row 3, column 4"),
    "signalling NaN": (tiff(SIGNALLING), NOT_FINITE),
    "signalling NaN, LZW": (tiff(SIGNALLING, compression="lzw"), NOT_FINITE),
    "beyond float32": (tiff(np.where(MAP > 1, 1e300, 0)), "values are NaN or infinite, the first at row 0"),
    "huge": (edited(tiff(MAP), 256, 65535, 257, 65535), "65535 x 65535 pixels, expected sides of"),
    "cut": (tiff(MAP)[:-1], "cut short: pixels end after the file's"),
    "pixels in its header": (edited(tiff(MAP), 273, 0), "pixels begin at byte 0, inside the file's own"),
    "strips too short": (edited(tiff(MAP), 279, 11776), "do not hold 31 x 95 float32 values"),
    "rows missing": (edited(tiff(MAP[:30], compression="zlib"), 257, 31, 278, 31), "damaged or cut short"),
    "LZW cut": (edited(tiff(MAP, compression="lzw"), 279, 900), "damaged or cut short"),
    "wrong checksum": (tiff(MAP, compression="zlib", metadata=None)[:-1] + b"\1", "damaged or cut short"),
    "tag twice": (with_width_for(305), "tag 256 is malformed"),
    "no width": (tiff(MAP).replace(struct.pack("<H", 256), struct.pack("<H", 254), 1), "without width"),
    "a million strips": (many_strips(), "tag 273 is malformed (type 4, 1048576 values"),
    "PNG": (png(), "not a TIFF (begins with b'\\x89PNG')"),
}
BAD_PNGS = {
    "TIFF": (tiff(MAP), "not a PNG"),
    "RGB": (png("RGB"), "8-bit RGB PNG"),
    "RGBA": (png("RGBA"), "8-bit RGB and alpha PNG"),
    "alpha": (png("LA"), "8-bit grey and alpha PNG"),
    "palette": (png("P"), "8-bit palette PNG"),
    "1 bit": (png("1"), "1-bit grey PNG"),
    "transparent": (png(transparency=3), "with a transparent value"),
    "animated": (png(save_all=True, append_images=[Image.fromarray(GREY8 // 2)]), "2 pages, expected 1"),
    "flat": (png_of(1, 2**22, zlib.compress(ROWS)), "1 x 4194304 pixels, expected sides of"),
    "cut": (png()[:-20], "cut short"),
    "rows missing": (png_of(31, 95, zlib.compress(ROWS[:960])), "do not inflate to"),
    "rows too many": (png_of(31, 95, zlib.compress(ROWS * 2)), "do not inflate to"),
    "wrong checksum": (png()[:-1] + b"\0", "checksum of chunk b'IEND' is wrong"),
    "chunk of another standard": (png_of(31, 95, ROWS, before=chunk(b"CgBI", b"")), "unknown critical"),
    "1001 chunks": (png_of(31, 95, ROWS, before=chunk(b"tEXt", b"") * 1001), "more than 1000 chunks"),
}
REFUSED = {
    **{f"{case} TIFF": ("a.tiff", *bad) for case, bad in BAD_TIFFS.items()},
    **{f"{case} PNG": ("a.png", *bad) for case, bad in BAD_PNGS.items()},
    "empty file": ("a.tiff", b"", "0 bytes, expected 1 to"),
    "text": ("a.txt", b"hello", "unknown extension, expected one of .tif, .tiff, .png"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_path_and_reason(tmp_path: Path, case: str) -> None:
    name, data, reason = REFUSED[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(
        ImageError, match=rf"^{re.escape(str(tmp_path))}/{name}: [^\n]*{re.escape(reason)}[^\n]*$"
    ):
        read_image(tmp_path / name)


def test_missing_folder_pipe_and_device_are_refused_at_once_and_hostile_names_escaped(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tiff")
    (tmp_path / "folder.tiff").mkdir()
    hostile = "-rf\nImageError: all is well\x1b[2J.tiff"
    (tmp_path / hostile).write_bytes(b"II*\0")
    for name in ("pipe.tiff", "folder.tiff", "none.tiff", "/dev/zero", hostile):
        with pytest.raises(ImageError, match=Path(name).name[:3]) as caught:
            read_image(tmp_path / name)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("failure", [MemoryError, RecursionError, TypeError, struct.error, OSError])
def test_every_failure_of_a_decoder_is_one_image_error_and_a_signal_is_none(
    monkeypatch: pytest.MonkeyPatch, failure: type[Exception]
) -> None:
    monkeypatch.setitem(images.DECODERS, ".tiff", Mock(side_effect=[failure(15), Interrupted(15)]))
    with pytest.raises(ImageError, match=r"^a\.tiff: damaged or cut short .*15"):
        decode_image(b"", name="a.tiff")
    with pytest.raises(Interrupted):
        decode_image(b"", name="a.tiff")


def test_mutated_pngs_give_an_image_or_one_image_error() -> None:
    draw = np.random.default_rng(7)
    originals, taken = [png(), saved(Image.fromarray(GREY16), "PNG")], 0
    for number in range(300):
        out = bytearray(originals[number % 2])
        for _ in range(draw.integers(1, 4)):
            at = int(draw.integers(8, len(out) if draw.random() < 0.3 else 100))
            cut, size = int(draw.integers(0, 3)), int(draw.integers(0, 5))
            out[at : at + cut] = draw.bytes(size)
        data = with_right_checksums(bytes(out)) if draw.random() < 0.7 else bytes(out)
        with contextlib.suppress(ImageError):  # any other exception is what is looked for
            image = decode_image(data, name="a.png").image
            assert image.dtype == np.float32
            assert np.isfinite(image).all()
            taken += 1
    assert 3 < taken < 250


def with_right_checksums(data: bytes) -> bytes:
    """Repair a PNG's checksums, so that the damage reaches what lies behind them."""
    out, position = data[:8], 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        out += chunk(data[position + 4 : position + 8], data[position + 8 : position + 8 + length])
        position += 12 + length
    return out
