"""Drill 17: loader workers, the order of a directory, locale and time zone decide no number."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from benchmarks.drills import runs
from benchmarks.drills.tally import Drill, Tally
from dinomaly_hd.config import DataConfig, with_values
from dinomaly_hd.data.hdmap import load_manifest
from dinomaly_hd.experiments.data_root import simulated_root
from entry_points.common import ROOT

LONGEST_S = 300


class Surroundings(NamedTuple):
    """What must make no difference: loader workers, the order in which files were made, locale, zone."""

    workers: int
    shuffled: bool
    locale: str
    zone: str


EAST, WEST = "Pacific/Kiritimati", "Pacific/Pago_Pago"
FAST = (Surroundings(4, True, "POSIX", EAST),)
FULL = (
    Surroundings(0, True, "C.UTF-8", "UTC"),
    Surroundings(1, False, "C.UTF-8", "UTC"),
    Surroundings(4, False, "C.UTF-8", "UTC"),
    Surroundings(0, False, "POSIX", "UTC"),
    Surroundings(0, False, "C", EAST),
    Surroundings(0, False, "C.UTF-8", WEST),
    *FAST,
)


def _data() -> Path:
    tiny = with_values(DataConfig(), {"simulate_size": runs.FLAGS["simulate_size"]})
    return simulated_root(tiny, root=ROOT)


def _copied(target: Path) -> Path:
    """Copy the data file by file in another order, which directories may list them in."""
    files = [path for path in sorted(_data().rglob("*")) if path.is_file()]
    random.Random(17).shuffle(files)
    for path in files:
        place = target / path.relative_to(_data())
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    return target


def _run(folder: Path, around: Surroundings) -> str | None:
    """Do a run in these surroundings, and return what differs from one in plain ones."""
    expected = runs.reference(folder.parent.parent)
    flags = {**runs.FLAGS, "num_workers": str(around.workers), "result_dir": str(folder / "results")}
    if around.shuffled:
        flags["data_root"] = str(_copied(folder / "maps"))
    environment = {
        **os.environ,
        "LC_ALL": around.locale,
        "TZ": around.zone,
        "OMP_NUM_THREADS": "1",
        "MLFLOW_TRACKING_URI": runs.store(folder),
        "DINOMALY_HD_FEATURES": str(folder / "features"),
    }
    environment.pop("MLFLOW_RUN_ID", None)
    command = [sys.executable, "-m", "entry_points.horizontal", *(f"--{n}={v}" for n, v in flags.items())]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=LONGEST_S
    )
    if done.returncode:
        return f"exit code {done.returncode}: {done.stderr[-300:]}"
    run = runs.run_folder(folder / "results")
    return "no run folder" if run is None else runs.difference(run, expected)


def _listed(seed: int) -> str | None:
    """Return a fault if the data set's digest or order follows the order in which folders are listed."""
    plain = os.listdir
    draws = random.Random(seed)

    def shuffled(path: str = ".") -> list[str]:
        names = plain(path)
        draws.shuffle(names)
        return names

    asked = {"domains": ("A", "B", "C", "D"), "conditions": "auto"}
    expected = load_manifest(_data(), **asked)  # type: ignore[arg-type]
    with mock.patch("os.listdir", shuffled):
        found = load_manifest(_data(), **asked)  # type: ignore[arg-type]
    return None if found == expected else "another manifest"


def surroundings(folder: Path, full: bool) -> Tally:
    """Do the same run in other surroundings, and read the data set with folders listed in any order."""
    tally = Tally()
    for number, around in enumerate(FULL if full else FAST):
        own = folder / f"run{number}"
        own.mkdir()
        what = f"{around.workers} workers, {around.locale}, {around.zone}"
        tally.add(f"{what}{', files made in another order' if around.shuffled else ''}", _run(own, around))
    for seed in range(10 if full else 3):
        tally.add(f"listing {seed}", _listed(seed))
    return tally


DRILLS = (Drill(17, "same result whatever surrounds a run", surroundings),)
