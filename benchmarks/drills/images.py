"""Drills 6, 7 and 8: damaged images, bombs, and sets of images that do not belong together."""

import logging
import os
import random
import struct
import zlib
from functools import partial
from itertools import permutations, product
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from benchmarks.drills import Drill, Tally, not_refused
from benchmarks.drills.reading import AS_GREY, WARM, Came, pixels_digest, read_apart
from dinomaly_hd.data.folder import load_folder
from dinomaly_hd.data.hdmap import load_manifest
from dinomaly_hd.errors import DataError, ImageError, LayoutError
from dinomaly_hd.serving.images import encode_files, read_input
from tests.files import SHAPE, SPLITS, bare_tiff, chunk, png, png_of, tiff

SEED = 6
MUTATED, FAST_MUTATED = 2700, 300
MOST_CALLS, MOST_READ, MOST_MIB = 20_000, 16 * 2**20, 64.0
BOMB_S, TIMES = 0.05, 3
HUGE = 60_000
HEADER_BYTES = 320
"""Where most damage is done: header, tags and the strips' places lie at the start."""


def _map(*more: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng([SEED, *more]).random((*SHAPE, *more), dtype=np.float32) * 3


MAP, RGB = _map(), _map(3)
GREY8, GREY16 = (MAP * 80).astype(np.uint8), (MAP * 20000).astype(np.uint16)


def _moved(data: bytes, place: int) -> bytes:
    """Let the strip of a TIFF lie elsewhere."""
    order = ">" if data.startswith(b"MM") else "<"
    start = data.find(struct.pack(f"{order}HHI", 273, 4, 1))
    return data if start < 0 else data[: start + 8] + struct.pack(f"{order}I", place) + data[start + 12 :]


class Damaged(NamedTuple):
    """A file of the drill; ``taken`` is None where damage decides what comes of it."""

    form: str
    data: bytes
    taken: bool | None


def forms() -> list[Damaged]:
    """Return TIFFs of 21 kinds; the first six are maps as HDMAP has them, ten more are read, too."""
    taken = {
        "plain": tiff(MAP),
        "big-endian": tiff(MAP, byteorder=">"),
        "strips": tiff(MAP, rowsperstrip=4),
        "no metadata": tiff(MAP, metadata=None),
        "described": tiff(MAP, description="x" * 2000, software="drill"),
        "ImageJ": tiff(MAP, imagej=True),
        "Deflate": tiff(MAP, compression="zlib"),
        "LZW": tiff(MAP, compression="lzw", predictor=3),
        "ZSTD": tiff(MAP, compression="zstd"),
        "tiled": tiff(MAP, tile=(16, 16)),
        "BigTIFF": tiff(MAP, bigtiff=True),
        "float64": tiff(MAP.astype(np.float64)),
        "float16": tiff(MAP.astype(np.float16)),
        "uint8": tiff(GREY8),
        "int16": tiff(GREY16.astype(np.int16)),
        "RGB": tiff(RGB, photometric="rgb"),  # read as grey
    }
    colours = np.linspace(0, 65535, 3 * 256).astype(np.uint16).reshape(3, 256)
    refused = {
        "pages": tiff(np.stack([MAP] * 3), photometric="minisblack"),
        "palette": tiff(GREY8, photometric="palette", colormap=colours),
        "planes": tiff(np.moveaxis(RGB, 2, 0), photometric="rgb", planarconfig="separate"),
        "inverted": tiff(MAP, photometric="miniswhite"),
        "pixels in its header": _moved(tiff(MAP), 4),
    }
    return [Damaged(name, data, name in taken) for name, data in {**taken, **refused}.items()]


# Promise 6: every file is an image or one ImageError.


DAMAGES = ["flip", "cut", "insert", "leave-out", "repeat", "number", "tag", "tag", "misplace", "poison"]


def damage(data: bytearray, kind: str, at: int, draw: random.Random) -> None:
    """Damage a TIFF at a place, or where the kind says."""
    order, length = ">" if data.startswith(b"MM") else "<", len(data)
    if kind == "flip":
        data[at] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[at:]
    elif kind == "insert":
        data[at:at] = draw.randbytes(draw.randint(1, 20))
    elif kind == "leave-out":
        del data[at : at + draw.randint(1, 20)]
    elif kind == "repeat":
        size = draw.choice((2, 12, 200))
        data[at : at + size] = data[max(at - size, 0) : at]
    elif kind == "number":
        value = draw.choice((0, 1, 8, 2**16 - 1, 2**31, 2**32 - 1, length, length - 1))
        data[at : at + 4] = struct.pack(f"{order}I", value)
    elif kind == "misplace":  # the pixels in the header, in the tags, behind the end
        place = draw.choice((0, 4, 7, 8, max(length - 4, 0), length, 2**32 - 1))
        data[:] = _moved(bytes(data), place)
    elif kind == "poison":  # a pixel that is not finite
        value = draw.choice((np.nan, np.inf, -np.inf))
        where = max(length - 4 * draw.randint(1, MAP.size), 0)
        data[where : where + 4] = struct.pack(f"{order}f", value)
    else:  # the type, count or value of a tag, or where the next page is said to lie
        (first,) = struct.unpack_from(f"{order}I", data, 4) if length >= 8 else (length,)
        if first + 2 > length:
            return damage(data, "number", at, draw)
        (entries,) = struct.unpack_from(f"{order}H", data, first)
        entry = first + 2 + 12 * draw.randint(0, min(entries, 40))
        code = draw.choice(("H", "I"))
        value = draw.choice((0, 1, 2, 3, 16, 32, 64, first, length, 2**31 - 1, 2**32 - 1))
        where = entry + draw.choice((0, 2, 4, 8, 8, 8))
        data[where : where + struct.calcsize(code)] = struct.pack(f"{order}{code}", value % 2**16)
    return None


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Damage a file in one to four places, mostly in one and mostly where its header is."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        reach = len(out) if draw.random() < 0.3 else min(len(out), HEADER_BYTES)
        if reach:
            kind = draw.choice(DAMAGES)
            damage(out, kind, draw.randrange(reach), draw)
    return bytes(out)


def _damaged(count: int) -> list[Damaged]:
    draw, known = random.Random(SEED), forms()
    files = list(known)
    while len(files) < count:
        files += [form._replace(data=mutated(form.data, draw), taken=None) for form in known]
    return files[:count]


def damaged_images(folder: Path, full: bool) -> Tally:
    """Read damaged TIFFs of 21 kinds: each is a finite image or an ImageError that begins with its path."""
    files = _damaged(MUTATED if full else FAST_MUTATED)
    _warm(folder)
    ends = [AS_GREY if file.form in ("RGB", "planes") else "" for file in files]
    paths = [folder / f"{number:05d}{end}.tiff" for number, end in enumerate(ends)]
    for path, file in zip(paths, files, strict=True):
        path.write_bytes(file.data)
    tally, (came, end) = Tally(), read_apart(folder)
    for number, (path, file) in enumerate(zip(paths, files, strict=True)):
        unread = end is not None and number >= len(came) - 1  # the last one may have ended the process
        fault = end if unread else _unsound(came[number], path, file.taken)
        tally.add(f"{path.name} ({file.form})", fault)
    if came:
        images, slowest = sum(bool(one.image) for one in came), max(one.seconds for one in came)
        tally.note = f"{images} still images; slowest {1e3 * slowest:.0f} ms, {came[-1].mib:.1f} MiB in all"
    return tally


def _warm(folder: Path) -> None:
    """Write files that a process reads before its memory is looked at."""
    (folder / WARM).mkdir()
    (folder / WARM / "a.tiff").write_bytes(tiff(MAP))
    (folder / WARM / "a.png").write_bytes(png(GREY16))


def _unsound(came: Came, path: Path, taken: bool | None) -> str | None:
    if fault := came.fault or _too_much(came):
        return fault
    if came.said and (not came.said.startswith(f"{path}: ") or not came.said.isprintable()):
        return f"not one line that begins with the path: {came.said!r}"
    if taken is not None and taken != bool(came.image):
        return came.said or "taken as it is"
    return "not what is stored" if came.image and not _is_stored(path, came.image) else None


def _too_much(came: Came) -> str | None:
    sound = came.calls <= MOST_CALLS and came.bytes_read <= MOST_READ and came.mib <= MOST_MIB
    return None if sound else f"{came.calls} calls, {came.bytes_read} bytes read, {came.mib:.0f} MiB"


def _is_stored(path: Path, digest: str) -> bool:
    """Return whether tifffile's first page is equal, or is not read because of what the reader skips."""
    try:
        with mock.patch.object(logging.getLogger("tifffile"), "disabled", True):
            image = tifffile.imread(path, key=0)
            scale = np.iinfo(image.dtype).max if image.dtype.kind in "ui" else 1
            if image.ndim == 3:
                image = image.astype(np.float64) @ [299, 587, 114] / 1000
            return pixels_digest(image.astype(np.float32) / np.float32(scale)) == digest
    except Exception:  # tags that we do not need may be as damaged as they like
        return True


# Promise 7: bombs are refused from their headers.


def _zeros(mib: int) -> bytes:
    """Return a zlib stream of so many MiB of zeros, put together from one deflated piece."""
    deflater = zlib.compressobj(9, wbits=-15)
    piece = deflater.compress(bytes(16 * 2**20)) + deflater.flush(zlib.Z_FULL_FLUSH)
    checksum = ((mib * 2**20 % 65521) << 16) | 1  # Adler-32 of zeros
    return b"\x78\xda" + piece * (mib // 16) + b"\x03\x00" + struct.pack(">I", checksum)


def _tiff_of_one_strip(side: int, *, rows: int) -> bytes:
    """Return a TIFF whose strips all lie at the same place: 14.4 GB of pixels in a file of 4 MB."""
    count, size = side // rows, 4 * side * rows
    places = 8 + 2 + 12 * 9 + 4
    tags = (
        *((256, 1, side), (257, 1, side), (258, 1, 32), (259, 1, 1), (262, 1, 1)),
        *((273, count, places), (278, 1, rows), (279, count, places + 4 * count), (339, 1, 3)),
    )
    lists = struct.pack(f"<{2 * count}I", *[places + 8 * count] * count, *[size] * count)
    return bare_tiff(*tags) + lists + bytes(size)


PIXELS_AT = 500


def _inflating_tiff(*places: tuple[int, int]) -> bytes:
    """Return a TIFF of one strip or tile, as ``places`` say, whose mebibyte inflates to a GiB."""
    stream = _zeros(1024)
    tags = ((256, SHAPE[1]), (257, SHAPE[0]), (258, 32), (259, 8), *places, (339, 3))
    head = bare_tiff(*((code, 1, value or len(stream)) for code, value in tags))
    return head.ljust(PIXELS_AT, b"\0") + stream


HOLLOW = 10**10
STRIP, TILE = (
    ((273, PIXELS_AT), (278, 31), (279, 0)),
    ((322, 2**14), (323, 2**14), (324, PIXELS_AT), (325, 0)),
)


def bomb_files() -> list[tuple[str, bytes, str]]:
    """Return extensions, bytes, and why they are to be refused.

    Huge sides, GiB in MiB (pixels of both kinds, text), pages without end, 10 GB of nothing.
    """
    huge, empty = f"{HUGE} x {HUGE} pixels, expected", zlib.compress(b"")
    text = chunk(b"zTXt", b"a\0\0" + _zeros(1024))
    pages = [8 + 6 * page for page in range(102)]
    loop = b"".join(struct.pack("<HI", 0, following) for following in [*pages[1:], pages[-2]])
    return [
        ("tiff", _tiff_of_one_strip(HUGE, rows=15), huge),
        ("png", png_of(HUGE, HUGE, zlib.compress(b"\0")), huge),
        ("png", png_of(*SHAPE, _zeros(8192)), "do not inflate to the 2976 bytes"),
        ("rgb.png", png_of(*SHAPE, _zeros(8192), colour=2), "do not inflate to the 8866 bytes"),
        ("png", png_of(HUGE, HUGE, empty, before=text), huge),
        ("tiff", _inflating_tiff(*STRIP), "damaged or cut short"),
        ("tiff", _inflating_tiff(*TILE), "decodes"),
        ("rgb.tiff", _inflating_tiff(*STRIP, (262, 2), (277, 3)), "damaged or cut short"),
        ("tiff", b"II*\0" + struct.pack("<I", pages[0]) + loop, "in a loop"),
        ("tiff", tiff(MAP), f"{HOLLOW} bytes, expected 1 to"),
    ]


def bombs(folder: Path, full: bool) -> Tally:
    """Read each bomb in a process of its own; only the full size looks at the time, on a quiet machine."""
    tally, costs = Tally(), list[Came]()
    for number, (extension, data, reason) in enumerate(bomb_files()):
        own = folder / f"bomb{number}"
        own.mkdir()
        _warm(own)
        for time in range(TIMES):
            (own / f"{time}.{extension}").write_bytes(data)
            if reason.startswith(str(HOLLOW)):
                os.truncate(own / f"{time}.{extension}", HOLLOW)
        came, fault = read_apart(own)
        wrong = [one for one in came if reason not in one.said]
        fault = fault or next((one.fault or one.said or "taken" for one in wrong), None)
        if came:  # the shortest time: what is longer is the machine's other work
            cost = came[-1]._replace(seconds=min(one.seconds for one in came))
            slow = full and cost.seconds > BOMB_S
            fault = fault or _too_much(cost) or (f"{1e3 * cost.seconds:.0f} ms" if slow else None)
            costs.append(cost)
        tally.add(f"bomb {number} ({reason})", fault)
    if costs:
        slowest, largest = max(cost.seconds for cost in costs), max(cost.mib for cost in costs)
        most = max(cost.calls for cost in costs)
        tally.note = f"slowest {1e3 * slowest:.1f} ms, largest {largest:.1f} MiB, at most {most} calls"
    return tally


# Promise 8: nothing is converted silently.


def _with(value: float) -> bytes:
    image = MAP.copy()
    image[3, 7] = value
    return tiff(image)


def _mixes() -> dict[str, tuple[str, str, bytes]]:
    """Return what is odd -> the kind of the set, the odd file's extension and its bytes."""
    grey8, grey16, image = png(GREY8), png(GREY16), Image.fromarray(GREY8)
    odd_tiffs = {
        "8-bit TIFF": tiff(GREY8),
        "16-bit TIFF": tiff(GREY16),
        "int16 TIFF": tiff(GREY16.astype(np.int16)),
        "float16 TIFF": tiff(MAP.astype(np.float16)),
        "float64 TIFF": tiff(MAP.astype(np.float64)),
        "RGB TIFF": tiff(RGB, photometric="rgb"),
        "inverted TIFF": tiff(MAP, photometric="miniswhite"),
        "three pages": tiff(np.stack([MAP] * 3), photometric="minisblack"),
        "NaN": _with(np.nan),
        "infinite": _with(np.inf),
        "one row more": tiff(np.vstack([MAP, MAP[:1]])),
        "turned": tiff(MAP.T.copy()),
        "PNG called TIFF": grey8,
    }
    modes = {"RGB": "RGB", "palette": "P", "grey and alpha": "LA", "1-bit": "1"}
    odd_pngs = {f"{name} PNG": png(image.convert(mode)) for name, mode in modes.items()}
    odd_pngs |= {
        "transparent PNG": png(image, transparency=3),
        "animated PNG": png(image, save_all=True, append_images=[Image.fromarray(GREY8 // 2)]),
        "16-bit PNG among 8-bit": grey16,
    }
    return {
        **{what: ("tiff", "tiff", data) for what, data in odd_tiffs.items()},
        **{what: ("png8", "png", data) for what, data in odd_pngs.items()},
        "8-bit PNG among TIFF": ("tiff", "png", grey8),
        "16-bit PNG among TIFF": ("tiff", "png", grey16),
        "8-bit PNG among 16-bit": ("png16", "png", grey8),
        "TIFF among PNG": ("png16", "tiff", tiff(MAP)),
    }


KINDS = {"tiff": ("float32", tiff(MAP)), "png8": ("uint8", png(GREY8)), "png16": ("uint16", png(GREY16))}
"""Of sets: the kind of number, and a file."""
REFUSALS = (LayoutError, ImageError)


def _extension(kind: str) -> str:
    return kind.rstrip("0123456789")


def _set(root: Path, *, kind: str, odd: str, data: bytes) -> str | None:
    for place in (root / domain / split for domain, split in product(("domain_A", "domain_B"), SPLITS)):
        place.mkdir(parents=True)
        for number in range(2):
            (place / f"{number}.{_extension(kind)}").write_bytes(KINDS[kind][1])
    load = partial(load_manifest, root, domains=["A", "B"], conditions="none")
    try:
        load()
    except DataError as error:
        return f"refused without the odd file: {error}"
    (root / odd).write_bytes(data)
    return not_refused(load, odd, *REFUSALS)


def mixes(folder: Path, _full: bool) -> Tally:
    """Put one odd file into sets of three kinds, and score files of another kind; both sizes are the same."""
    tally = Tally()
    for number, (what, (kind, extension, data)) in enumerate(_mixes().items()):
        odd = f"domain_B/{SPLITS[number % 3]}/odd.{extension}"
        tally.add(what, _set(folder / f"mix{number}", kind=kind, odd=odd, data=data))
    for kind, other in permutations(KINDS, 2):
        place, dtype, data = folder / f"{other}_for_{kind}", KINDS[kind][0], KINDS[other][1]
        place.mkdir()
        (place / f"odd.{_extension(other)}").write_bytes(data)
        for what, name, read in (
            ("a folder", "odd.", partial(load_folder, place, shape=SHAPE, dtype=dtype)),
            ("a request", "image 0", partial(read_input, encode_files([data]), shape=SHAPE, dtype=dtype)),
        ):
            tally.add(f"{what} of {other} for a model of {kind}", not_refused(read, name, *REFUSALS))
    for grey in ("uint8", "uint16"):
        read = partial(read_input, GREY8[None], shape=SHAPE, dtype=grey)
        tally.add(f"raw {grey} numbers in a request", not_refused(read, "expected 0 to 1", *REFUSALS))
    return tally


DRILLS = (
    Drill(6, "a bad image is one error with its path", damaged_images),
    Drill(7, "bombs are refused from the header", bombs),
    Drill(8, "no silent conversion: mixed sets are refused", mixes),
)
