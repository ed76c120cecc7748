"""Drill 17: loader workers, the order of a directory, locale and time zone decide no number."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import ROOT, ended, entry_point
from benchmarks.drills import Drill, Tally, runs
from dinomaly_hd.data.hdmap import load_manifest
from tests.files import SPLITS, add_domain

SEED = 17
NAMES = ("\u0131\u011f.tiff", "\u0130I.tiff", "\u00e9 b.tiff")
"""Of some files: letters that Turkish sorts and capitalises otherwise, and that other encodings read so."""
DOMAINS = ("domain_A", "domain_B")
FLAGS = {"max_steps": "6", "val_check_interval": "3", "cache": "off", "domains": "A,B"}
SHUFFLE = """
import os, random
_draw, _listdir, _scandir = random.Random({seed}), os.listdir, os.scandir

def listdir(path="."):
    names = _listdir(path)
    _draw.shuffle(names)
    return names

class scandir:
    def __init__(self, path="."):
        with _scandir(path) as entries:
            self.entries = list(entries)
        _draw.shuffle(self.entries)
        self.rest = iter(self.entries)
    def __next__(self):
        return next(self.rest)
    __iter__ = __enter__ = lambda self: self
    __exit__ = close = lambda self, *_: None

os.listdir, os.scandir = listdir, scandir
"""
"""A ``sitecustomize`` that lists every directory in another order from the process's first moment."""
READ = """
import sys
from pathlib import Path
from dinomaly_hd.data.hdmap import load_manifest
from dinomaly_hd.errors import DataError
try:
    found = load_manifest(Path(sys.argv[1]), domains=["A", "B"], conditions="auto")
except DataError as error:
    sys.exit(str(error).encode("ascii", "backslashreplace").decode())
print(found.digest, *(ascii(record.path) for record in found.records))
"""
EAST, WEST = "Pacific/Kiritimati", "Pacific/Pago_Pago"
TURKISH, LATIN = "tr_TR.UTF-8", "tr_TR.ISO-8859-9"


class Surroundings(NamedTuple):
    """What must make no difference: loader workers, the order that folders are listed in, locale, zone."""

    workers: int
    listing: int | None
    locale: str
    zone: str

    def __str__(self) -> str:
        order = "plain listing" if self.listing is None else f"listing {self.listing}"
        return f"{self.workers} workers, {order}, {self.locale}, {self.zone}"


FAST = (Surroundings(4, 1, TURKISH, EAST),)
FULL = (
    Surroundings(0, 2, "C.UTF-8", "UTC"),
    Surroundings(1, None, "C.UTF-8", "UTC"),
    Surroundings(4, None, "C.UTF-8", "UTC"),
    Surroundings(0, None, "POSIX", "UTC"),
    Surroundings(0, None, TURKISH, "UTC"),
    Surroundings(0, None, "C", EAST),
    Surroundings(0, None, "C.UTF-8", WEST),
    *FAST,
)
READINGS, FAST_READINGS = 30, 7


def _write_maps(root: Path, *, names: tuple[str, ...]) -> Path:
    for domain in DOMAINS:
        add_domain(root, domain)
        for place in (root / domain / split for split in SPLITS):
            for path, name in zip(sorted(place.iterdir()), names, strict=False):
                path.rename(place / name)
    return root


def make_locales(folder: Path) -> Path:
    """Make the two Turkish locales, if this machine can: without them, Python goes on with C."""
    folder.mkdir()
    for name in (TURKISH, LATIN):
        language, _, charset = name.partition(".")
        command = ["localedef", "-i", language, "-f", charset, str(folder / name)]
        if shutil.which(command[0]):
            subprocess.run(command, capture_output=True, check=False)
    return folder


def _done(command: list[str], folder: Path, around: Surroundings, *, locales: Path, **more: str) -> str:
    """Return what a process says in these surroundings.

    Raises:
        RuntimeError: It ended with another exit code than 0; with what it said of that.
    """
    own = {"LC_ALL": around.locale, "LOCPATH": str(locales), "TZ": around.zone, "OMP_NUM_THREADS": "1"}
    own |= {"PYTHONPATH": f"{folder / 'site'}{os.pathsep}{ROOT}"}
    own |= {"DINOMALY_HD_FEATURES": str(folder / "features")}
    (folder / "site").mkdir(parents=True)
    if around.listing is not None:
        (folder / "site" / "sitecustomize.py").write_text(SHUFFLE.format(seed=around.listing))
    done = ended(command, folder, cwd=folder, **own, **more)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def _run_differs(
    folder: Path, around: Surroundings, *, expected: Path, maps: Path, locales: Path
) -> str | None:
    own = {"data_root": maps, "result_dir": folder / "results", "num_workers": around.workers}
    command, store = entry_point("horizontal", {**runs.FLAGS, **FLAGS, **own}), runs.store(folder.parent)
    try:
        _done(command, folder, around, locales=locales, MLFLOW_TRACKING_URI=store)  # where it has tables
    except RuntimeError as error:
        return str(error)
    run = runs.run_folder(folder / "results")
    return "no run folder" if run is None else runs.difference(run, expected)


def _reading_differs(
    folder: Path, around: Surroundings, *, maps: Path, locales: Path, may_refuse: bool = False, **more: str
) -> str | None:
    """Read the data set in other surroundings; names may be refused there, but never taken for other ones."""
    found = load_manifest(maps, domains=DOMAINS, conditions="auto")
    expected = " ".join([found.digest, *(ascii(record.path) for record in found.records)])
    try:
        read = _done([sys.executable, "-c", READ, str(maps)], folder, around, locales=locales, **more)
    except RuntimeError as error:
        return None if may_refuse and "set PYTHONUTF8=1" in str(error) else str(error)
    return None if read == f"{expected}\n" else f"another manifest: {read}"[:400]


def anywhere(folder: Path, full: bool) -> Tally:
    """Do the same run in other surroundings, and read the data set with folders listed in any order."""
    tally, draw = Tally(), random.Random(SEED)
    maps, locales = _write_maps(folder / "maps", names=NAMES), make_locales(folder / "locales")
    expected = runs.finish(folder / "plain", **FLAGS, data_root=str(maps), num_workers="0")
    for number, around in enumerate(FULL if full else FAST):
        own = folder / f"run{number}"
        tally.add(str(around), _run_differs(own, around, expected=expected, maps=maps, locales=locales))
    for number in range(READINGS if full else FAST_READINGS):
        locale, zone = draw.choice(("C", "POSIX", "C.UTF-8", TURKISH)), draw.choice(("UTC", EAST, WEST))
        around = Surroundings(0, number, locale, zone)
        fault = _reading_differs(folder / f"read{number}", around, maps=maps, locales=locales)
        tally.add(f"read: {around}", fault)
    latin, plain = Surroundings(0, None, LATIN, "UTC"), _write_maps(folder / "ascii", names=())
    for name, data, may_refuse, asked in (
        ("another encoding", maps, True, {}),
        ("another encoding, PYTHONUTF8=1", maps, False, {"PYTHONUTF8": "1"}),
        ("another encoding, plain names", plain, False, {}),
    ):
        fault = _reading_differs(
            folder / name, latin, maps=data, locales=locales, may_refuse=may_refuse, **asked
        )
        tally.add(name, fault)
    made = ", ".join(sorted(path.name for path in locales.iterdir()))
    tally.note = f"{len(FULL if full else FAST)} runs; locales made: {made or 'none'}"
    return tally


DRILLS = (Drill(17, "same result whatever surrounds a run", anywhere),)
