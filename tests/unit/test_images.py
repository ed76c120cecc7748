"""Promises of the one image reader (reliability rows 6 to 8)."""

import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from dinomaly_hd.data.images import decode_image, read_header, read_image
from dinomaly_hd.errors import ImageError
from tests.work import functions_called

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


def moved_to_its_start(data: bytes) -> bytes:
    """Let the strip of a TIFF begin where the file does."""
    at = data.index(struct.pack("<HHI", 273, 4, 1)) + 8
    return data[:at] + bytes(4) + data[at + 4 :]


GREY8 = (MAP * 80).astype(np.uint8)
GREY16 = (MAP * 20000).astype(np.uint16)


# What is accepted, and its values --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"byteorder": ">"}, {"rowsperstrip": 7}, {"metadata": None}, {"description": "x" * 5000}],
    ids=str,
)
def test_tiff_values_are_the_files_and_never_clipped(tmp_path: Path, options: dict[str, object]) -> None:
    tifffile.imwrite(tmp_path / "a.tiff", MAP, **options)
    image = read_image(tmp_path / "a.tiff")
    assert image.dtype == np.float32
    assert image.max() > 2.9
    np.testing.assert_array_equal(image, MAP)
    np.testing.assert_array_equal(image, tifffile.imread(tmp_path / "a.tiff"))


def test_tiff_of_another_writer_and_extension_is_read(tmp_path: Path) -> None:
    Image.fromarray(MAP).save(tmp_path / "a.TIF")
    np.testing.assert_array_equal(read_image(tmp_path / "a.TIF"), MAP)


def test_negative_and_large_values_survive() -> None:
    wide = np.array([[-5.0, 1e30, 0.0]], dtype=np.float32)
    np.testing.assert_array_equal(decode_image(tiff(wide), name="a.tiff").image, wide)


@pytest.mark.parametrize(("image", "scale"), [(GREY8, 255), (GREY16, 65535)], ids=["8 bit", "16 bit"])
def test_png_is_divided_by_its_depth(image: np.ndarray, scale: int) -> None:
    decoded = decode_image(png(image), name="a.png")
    np.testing.assert_array_equal(decoded.image, image.astype(np.float32) / np.float32(scale))
    assert decoded.header == (31, 95, image.dtype.name, 1, 1)


def test_header_is_read_without_the_pixels(tmp_path: Path) -> None:
    broken = MAP.copy()
    broken[0, 0] = np.nan
    tifffile.imwrite(tmp_path / "a.tiff", broken)
    assert read_header(tmp_path / "a.tiff") == (31, 95, "float32", 1, 1)


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
    "float64 TIFF": ("a.tiff", lambda: tiff(MAP.astype(np.float64)), "float64 TIFF, expected float32"),
    "float16 TIFF": ("a.tiff", lambda: tiff(MAP.astype(np.float16)), "float16 TIFF, expected float32"),
    "8-bit TIFF": ("a.tiff", lambda: tiff(GREY8), "uint8 TIFF, expected float32"),
    "16-bit TIFF": ("a.tiff", lambda: tiff(GREY16), "uint16 TIFF, expected float32"),
    "signed TIFF": ("a.tiff", lambda: tiff(GREY16.astype(np.int16)), "int16 TIFF, expected float32"),
    "1-bit TIFF": ("a.tiff", lambda: tiff(MAP > 1), "uint1 TIFF, expected float32"),
    "inverted TIFF": ("a.tiff", lambda: tiff(MAP, photometric="miniswhite"), "photometric is 0, expected 1"),
    "rotated TIFF": (
        "a.tiff",
        lambda: tiff(MAP, extratags=[(274, 3, 1, 6, True)]),
        "orientation is 6, expected 1",
    ),
    "compressed TIFF": ("a.tiff", lambda: tiff(MAP, compression="zlib"), "compression is 8, expected 1"),
    "tiled TIFF": ("a.tiff", lambda: tiff(MAP, tile=(16, 16)), "tiled TIFF"),
    "BigTIFF": ("a.tiff", lambda: tiff(MAP, bigtiff=True), "not a classic TIFF"),
    "NaN and Inf": (
        "a.tiff",
        lambda: tiff(NAN),
        "2 of 2945 values are NaN or infinite, the first at row 3, co",
    ),
    "cut TIFF": ("a.tiff", lambda: tiff(MAP)[:-1], "cut short"),
    "TIFF whose pixels are its header": (
        "a.tiff",
        lambda: moved_to_its_start(tiff(MAP)),
        "TIFF pixels begin at byte 0, inside the file's own header",
    ),
    "PNG called TIFF": ("a.tiff", lambda: png(GREY8), "not a classic TIFF"),
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


def test_a_signal_during_decoding_is_not_blamed_on_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    from dinomaly_hd.data import images
    from dinomaly_hd.errors import Interrupted

    def interrupted(_: bytes) -> None:
        raise Interrupted(15)

    monkeypatch.setitem(images.OPENERS, ".tiff", interrupted)
    with pytest.raises(Interrupted):
        decode_image(b"", name="a.tiff")


@pytest.mark.parametrize("failure", [MemoryError, RecursionError, TypeError, struct.error, OSError])
def test_every_kind_of_decoder_failure_is_one_image_error(
    monkeypatch: pytest.MonkeyPatch, failure: type[Exception]
) -> None:
    from dinomaly_hd.data import images

    def broken(_: bytes) -> None:
        raise failure("boom")

    monkeypatch.setitem(images.OPENERS, ".tiff", broken)
    with pytest.raises(ImageError, match=r"^a\.tiff: damaged or cut short .*boom"):
        decode_image(b"", name="a.tiff")


# Bombs -----------------------------------------------------------------------------------------------------


def huge_tiff() -> bytes:
    data = bytearray(tiff(MAP))
    for tag in (256, 257):
        at = data.index(struct.pack("<HHI", tag, 4, 1)) + 8
        data[at : at + 4] = struct.pack("<I", 2**31)
    return bytes(data)


def endless_tiff() -> bytes:
    """A hundred pages, then a loop between the last two, where a general reader may follow for ever."""
    count = 102
    offsets = [8 + 6 * page for page in range(count)]
    following = [*offsets[1:], offsets[-2]]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(struct.pack("<HI", 0, offset) for offset in following)


def inflating_png() -> bytes:
    deflater = zlib.compressobj(1)
    stream = b"".join(deflater.compress(bytes(2**20)) for _ in range(256)) + deflater.flush()
    return grey_png(31, 95, stream)


BOMBS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "huge TIFF": ("a.tiff", huge_tiff, "2147483648 x 2147483648 pixels"),
    "huge PNG": ("a.png", lambda: grey_png(60000, 60000, zlib.compress(ROWS)), "60000 x 60000 pixels"),
    "flat PNG": ("a.png", lambda: grey_png(1, 2**22, zlib.compress(ROWS)), "1 x 4194304 pixels"),
    "PNG of 256 MiB": ("a.png", inflating_png, "do not inflate to the 2976 bytes"),
    "many pages": ("a.tiff", lambda: tiff(np.zeros((1200, 2, 2), np.float32)), "1000 pages or more"),
    "endless pages": ("a.tiff", endless_tiff, "in a loop"),
    "many strips": (
        "a.tiff",
        lambda: tiff(np.zeros((4096, 1024), np.float32), rowsperstrip=1)[:-1],
        "cut short",
    ),
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_are_refused_with_little_work_and_in_64_mb(tmp_path: Path, case: str) -> None:
    name, write, reason = BOMBS[case]
    path = tmp_path / name
    path.write_bytes(write())

    def refused() -> None:
        with pytest.raises(ImageError, match=reason):
            read_image(path)

    calls = functions_called(refused)
    tracemalloc.start()
    refused()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{case}: {calls} calls, {peak / 1e6:.1f} MB")
    assert calls < 20_000
    assert peak < 64e6


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


def fuzz(count: int) -> tuple[int, int]:
    """Return (files that became an image or one ImageError, images among them) of ``count``."""
    draw = np.random.default_rng(7)
    originals = [
        ("a.tiff", tiff(MAP)),
        ("a.tiff", tiff(MAP, byteorder=">", rowsperstrip=4)),
        ("a.png", png(GREY8)),
        ("a.png", png(GREY16)),
    ]
    images = 0
    for position in range(count):
        name, data = originals[position % 4]
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
            images += 1
    return count, images


def test_mutated_files_give_an_image_or_one_image_error() -> None:
    passed, images = fuzz(600)
    print(f"{passed} of 600 ({images} still images)")
    assert 20 < images < 500
