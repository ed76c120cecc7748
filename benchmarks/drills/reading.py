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
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinomaly_hd.data.images import read_image
from dinomaly_hd.errors import ImageError
from dinomaly_hd.provenance import peak_memory_mib
from tests.work import functions_called

WARM = "warm"
AS_GREY = ".rgb"  # in the name of what is read with grey=true
MOST_BYTES = 2 * 2**30
"""Address space: what would take the machine's memory gets a MemoryError instead, after it has grown."""
LONGEST_S = 900.0


class Came(NamedTuple):
    """What came of one file.

    ``image`` is a digest of its pixels, empty where there is none; ``fault`` says why the image is none that
    may come out, or what else than an ImageError was raised; ``said`` is the ImageError's message. ``calls``
    and ``bytes_read`` are the functions entered and the bytes read: its work, whatever else the machine does,
    which lengthens ``seconds``. By ``mib`` the process had grown at its largest, since the first file.
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
        lines, sound = done.stdout.splitlines(), done.returncode == 0 and not done.stderr
        end = f"exit code {done.returncode} after {len(lines)} files {done.stderr[-500:]}"
    except subprocess.TimeoutExpired as error:
        lines, sound = bytes(error.stdout or b"").decode().splitlines(), False
        end = f"hangs after {len(lines)} files"
    return Read([Came(**json.loads(line)) for line in lines], None if sound else end)


def pixels_digest(image: np.ndarray) -> str:
    """Return what two images have in common only if all their values and their shapes are equal."""
    return hashlib.sha256(f"{image.shape}".encode() + image.astype("<f4").tobytes()).hexdigest()


def _came(path: Path, *, began_mib: float) -> Came:
    digest, fault, said = "", "", ""
    began = time.perf_counter()
    try:
        image = read_image(path, grey=AS_GREY in path.name)
    except ImageError as error:
        image, said = None, str(error)
    except BaseException as error:  # any other exception is what the drill looks for
        image, fault = None, repr(error)
    seconds, read = time.perf_counter() - began, _bytes_read()
    calls = functions_called(partial(_again, path))
    if image is not None:
        digest = pixels_digest(image)
        if image.dtype != np.float32 or image.ndim != 2 or not np.isfinite(image).all():
            fault = f"an image of {image.dtype}, {image.ndim} axes, or values that are not finite"
    return Came(
        path.name, digest, fault, said, seconds, calls, _bytes_read() - read, peak_memory_mib() - began_mib
    )


def _again(path: Path) -> None:
    with contextlib.suppress(Exception):
        read_image(path, grey=AS_GREY in path.name)


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def main() -> None:
    """Read the files of a folder and print a line of JSON for each."""
    folder = Path(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    for path in sorted((folder / WARM).iterdir()):
        _again(path)
    warnings.simplefilter("always")
    began_mib = peak_memory_mib()
    for path in sorted(path for path in folder.iterdir() if path.name != WARM):
        print(json.dumps(_came(path, began_mib=began_mib)._asdict()), flush=True)


if __name__ == "__main__":
    main()
