"""Read image files in a process of its own that may not use much memory, and say what came of each.

    python -m benchmarks.drills.reading FOLDER

Files of FOLDER/warm are read first and not reported on: they pay for what is loaded and allocated once.
"""

import contextlib
import hashlib
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinomaly_hd.data.images import read_image
from dinomaly_hd.errors import ImageError

WARM = "warm"
MOST_BYTES = 2 * 2**30
"""Address space: what would take the machine's memory gets a MemoryError instead, after it has grown."""
LONGEST_S = 900.0
MIB = 2**20


class Came(NamedTuple):
    """What came of one file.

    Attributes:
        name: File name.
        image: Digest of the pixels, empty where there is no image.
        fault: Why the image is none that may come out, or what else than an ImageError was raised.
        said: The ImageError's message.
        seconds: Of the call; to be shown only, since other programs lengthen it.
        calls: Functions that it entered: its work, whatever else the machine does.
        bytes_read: By system calls.
        mib: By how much the process had grown at its largest, since the first file.
    """

    name: str
    image: str
    fault: str
    said: str
    seconds: float
    calls: int
    bytes_read: int
    mib: float


class Read(NamedTuple):
    """What came of the files that were read; ``end`` is why the others were not, None where all were."""

    came: list[Came]
    end: str | None


def read_apart(folder: Path) -> Read:
    """Read the files of a folder in a process of its own, in the order of their names."""
    command = [sys.executable, "-m", "benchmarks.drills.reading", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    except subprocess.TimeoutExpired as error:
        lines = bytes(error.stdout or b"").decode().splitlines()
        return Read(_parsed(lines), f"hangs after {len(lines)} files")
    lines = done.stdout.splitlines()
    sound = done.returncode == 0 and not done.stderr
    end = f"exit code {done.returncode} after {len(lines)} files {done.stderr[-500:]}"
    return Read(_parsed(lines), None if sound else end)


def _parsed(lines: Sequence[str]) -> list[Came]:
    return [Came(**json.loads(line)) for line in lines]


def pixels_digest(image: np.ndarray) -> str:
    """Return what two images have in common only if all their values and their shapes are equal."""
    return hashlib.sha256(f"{image.shape}".encode() + image.astype("<f4").tobytes()).hexdigest()


def _came(path: Path, *, began_mib: float) -> Came:
    image, fault, said = None, "", ""
    began = time.perf_counter()
    try:
        image = read_image(path)
    except ImageError as error:
        said = str(error)
    except BaseException as error:  # any other exception is what the drill looks for
        fault = repr(error)
    seconds = time.perf_counter() - began
    calls, bytes_read = _work(path)
    if image is not None and not _is_sound(image):
        fault = f"an image of {image.dtype}, {image.ndim} axes, or values that are not finite"
    digest = pixels_digest(image) if image is not None and not fault else ""
    return Came(path.name, digest, fault, said, seconds, calls, bytes_read, _largest_mib() - began_mib)


def _work(path: Path) -> tuple[int, int]:
    """Return how many functions and bytes another reading of a file takes."""
    count = 0

    def entered(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = _bytes_read()
    sys.setprofile(entered)
    with contextlib.suppress(BaseException):
        read_image(path)
    sys.setprofile(None)
    return count, _bytes_read() - before


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def _is_sound(image: np.ndarray) -> bool:
    return image.dtype == np.float32 and image.ndim == 2 and bool(np.isfinite(image).all())


def _largest_mib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def main(arguments: Sequence[str]) -> None:
    """Read the files of a folder and print a line of JSON for each."""
    folder = Path(arguments[0])
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    for path in sorted((folder / WARM).iterdir()):
        with contextlib.suppress(ImageError):
            read_image(path)
    warnings.simplefilter("always")
    began_mib = _largest_mib()
    for path in sorted(path for path in folder.iterdir() if path.name != WARM):
        print(json.dumps(_came(path, began_mib=began_mib)._asdict()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
