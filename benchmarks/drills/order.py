"""Drill 17: loader workers, the order of a directory, locale and time zone decide no number."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from benchmarks.common import ROOT, entry_point, surroundings
from benchmarks.drills import runs
from benchmarks.drills.hostile import add_domain
from benchmarks.drills.tally import Drill, Tally
from dinomaly_hd.data.hdmap import load_manifest
from dinomaly_hd.data.tree import FOLDERS

LONGEST_S = 900
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
READINGS, FAST_READINGS = 20, 4


def _write_maps(root: Path, *, names: tuple[str, ...]) -> Path:
    for domain in DOMAINS:
        add_domain(root, domain)
        for split, label, _ in FOLDERS:
            place = root / domain / split / label
            for path, name in zip(sorted(place.iterdir()), names, strict=False):
                path.rename(place / name)
    return root


def _copied(source: Path, target: Path) -> Path:
    """Copy the data file by file in another order, which directories may list them in."""
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]
    random.Random(SEED).shuffle(files)
    for path in files:
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    return target


def make_locales(folder: Path) -> Path:
    """Make the two Turkish locales, if this machine can: without them, Python goes on with C."""
    folder.mkdir()
    for name in (TURKISH, LATIN):
        language, _, charset = name.partition(".")
        command = ["localedef", "-i", language, "-f", charset, str(folder / name)]
        if shutil.which(command[0]):
            subprocess.run(command, capture_output=True, check=False)
    return folder


def _environment(folder: Path, around: Surroundings, *, locales: Path) -> dict[str, str]:
    environment = surroundings(
        folder,
        LC_ALL=around.locale,
        LOCPATH=str(locales),
        TZ=around.zone,
        OMP_NUM_THREADS="1",
        PYTHONPATH=f"{folder / 'site'}{os.pathsep}{ROOT}",
        DINOMALY_HD_FEATURES=str(folder / "features"),
    )
    environment.pop("MLFLOW_RUN_ID", None)
    (folder / "site").mkdir(parents=True)
    if around.listing is not None:
        (folder / "site" / "sitecustomize.py").write_text(SHUFFLE.format(seed=around.listing))
    return environment


def _differs(folder: Path, around: Surroundings, *, expected: Path, maps: Path, locales: Path) -> str | None:
    data = maps if around.listing is None else _copied(maps, folder / "maps")
    own = {"data_root": data, "result_dir": folder / "results", "num_workers": around.workers}
    command = entry_point("horizontal", {**runs.FLAGS, **FLAGS, **own})
    code, said = _done(command, folder, _environment(folder, around, locales=locales))
    if code:
        return f"exit code {code}: {said[-300:]}"
    run = runs.run_folder(folder / "results")
    return "no run folder" if run is None else runs.difference(run, expected)


def _done(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Return a process's exit code and what it said: what went wrong if something did."""
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=LONGEST_S, check=False
    )
    return done.returncode, done.stderr if done.returncode else done.stdout


def _read(folder: Path, around: Surroundings, *, maps: Path, locales: Path, **more: str) -> tuple[int, str]:
    environment = _environment(folder, around, locales=locales) | more
    return _done([sys.executable, "-c", READ, str(maps)], folder, environment)


def _is_same(read: tuple[int, str], maps: Path) -> str | None:
    found = load_manifest(maps, domains=DOMAINS, conditions="auto")
    expected = " ".join([found.digest, *(ascii(record.path) for record in found.records)])
    return None if read == (0, f"{expected}\n") else f"another manifest: {read}"[:400]


def _readings(folder: Path, maps: Path, *, locales: Path, count: int) -> Iterator[tuple[str, str | None]]:
    """Yield how the data set is read in other surroundings, and in a locale of another encoding."""
    draw = random.Random(SEED)
    for number in range(count):
        locale, zone = draw.choice(("C", "POSIX", "C.UTF-8", TURKISH)), draw.choice(("UTC", EAST, WEST))
        around = Surroundings(0, number, locale, zone)
        read = _read(folder / f"read{number}", around, maps=maps, locales=locales)
        yield f"read: {around}", _is_same(read, maps)
    latin, plain = Surroundings(0, None, LATIN, "UTC"), _write_maps(folder / "ascii", names=())
    for name, data, asked in (
        ("another encoding", maps, {}),
        ("another encoding, PYTHONUTF8=1", maps, {"PYTHONUTF8": "1"}),
        ("another encoding, plain names", plain, {}),
    ):
        code, said = _read(folder / name, latin, maps=data, locales=locales, **asked)
        # Names that it cannot read may be refused, but never taken for other ones.
        refused = name == "another encoding" and code == 1 and "set PYTHONUTF8=1" in said
        yield name, None if refused else _is_same((code, said), data)


def _listed(maps: Path, seed: int) -> str | None:
    """Return a fault if the data set's digest or order follows the order in which folders are listed."""
    plain, draws = os.listdir, random.Random(seed)

    def shuffled(path: str = ".") -> list[str]:
        names = plain(path)
        draws.shuffle(names)
        return names

    expected = load_manifest(maps, domains=DOMAINS, conditions="auto")
    with mock.patch("os.listdir", shuffled):
        found = load_manifest(maps, domains=DOMAINS, conditions="auto")
    return None if found == expected else "another manifest"


def anywhere(folder: Path, full: bool) -> Tally:
    """Do the same run in other surroundings, and read the data set with folders listed in any order."""
    tally = Tally()
    maps, locales = _write_maps(folder / "maps", names=NAMES), make_locales(folder / "locales")
    expected = runs.finish(folder / "plain", **FLAGS, data_root=str(maps), num_workers="0")
    for number, around in enumerate(FULL if full else FAST):
        own = folder / f"run{number}"
        own.mkdir()
        tally.add(str(around), _differs(own, around, expected=expected, maps=maps, locales=locales))
    for what, fault in _readings(folder, maps, locales=locales, count=READINGS if full else FAST_READINGS):
        tally.add(what, fault)
    for seed in range(10 if full else 3):
        tally.add(f"listing {seed}", _listed(maps, seed))
    made = ", ".join(sorted(path.name for path in locales.iterdir()))
    tally.note = f"{len(FULL if full else FAST)} runs; locales made: {made or 'none'}"
    return tally


DRILLS = (Drill(17, "same result whatever surrounds a run", anywhere),)
