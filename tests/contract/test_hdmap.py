"""From raw records to a trained detector with two commands, in the layouts of public gearboxes; and its trend.

The records are made here, of the tooth counts, rates, channels and file formats that docs/vibration.md gives.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.io import savemat

from dinomaly_hd.errors import ConfigError, SignalGuard
from entry_points import hdmap, simulate, trend
from entry_points.common import launch

if TYPE_CHECKING:
    from dinomaly_hd.runs.folder import Context

Floats = NDArray[np.float64]
FOLDERS = {"train/good": 3, "test/good": 2, "test/fault": 2}


def vibration(rate: float, seconds: float, *, teeth: tuple[int, int], speed: float, seed: int, raised: float) -> Floats:
    """Return a gear pair whose tooth 3 of wheel 1, from the first sample on, is louder."""
    draws, time = np.random.default_rng(seed), np.arange(int(rate * seconds)) / rate
    mesh = time * speed * teeth[0]
    kind = mesh.astype(np.int64) % math.lcm(*teeth)
    ring = np.random.default_rng(7).normal(size=(math.lcm(*teeth), 6))
    found = sum(ring[kind, k] * np.sin(np.pi * (5 + k) * (mesh % 1)) for k in range(6))
    found = found * (1 + raised * (kind % teeth[0] == 3)) + 2 * np.cos(2 * np.pi * mesh)
    return np.asarray(found + 0.5 * draws.normal(size=len(time)))


def uconn(path: Path, seed: int, raised: float) -> None:
    """32 and 80 teeth, 20 kHz, .mat with an accelerometer and a tachometer channel, one pulse a turn."""
    signal = vibration(20_000, 1.0, teeth=(32, 80), speed=25, seed=seed, raised=raised)
    tachometer = np.arange(20_000) * 25 / 20_000 % 1 < 0.1
    savemat(path.with_suffix(".mat"), {"acc": signal[:, None], "tach": tachometer.astype(float)[:, None]})


def phm(path: Path, seed: int, raised: float) -> None:
    """32 and 96 teeth, 66.67 kHz, .csv without header: input, output, tachometer with ten pulses a turn."""
    rate, speed = 200_000 / 3, 40
    signal = vibration(rate, 0.6, teeth=(32, 96), speed=speed, seed=seed, raised=raised)
    tachometer = np.sign(np.sin(2 * np.pi * 10 * speed * np.arange(len(signal)) / rate))
    np.savetxt(path.with_suffix(".csv"), np.stack([signal, 0 * signal, tachometer], axis=1), "%.5g", ",")


def hust(path: Path, seed: int, raised: float) -> None:
    """18 and 27 teeth, 25.6 kHz, text with the speed's useless column, no tachometer, 20 turns a second."""
    signal = vibration(25_600, 1.0, teeth=(18, 27), speed=20, seed=seed, raised=raised)
    np.savetxt(path.with_suffix(".txt"), np.stack([signal, 0 * signal], axis=1), "%.5g", "\t")


LAYOUTS: dict[str, tuple[Callable[[Path, int, float], None], str, tuple[int, int]]] = {
    "uconn": (uconn, "--teeth 32,80 --vibration acc --tachometer tach --rate 20000", (32, 5)),
    "phm2009": (phm, "--teeth 32,96 --vibration 0 --tachometer 2 --pulses_per_turn 10 --rate 66666.667", (32, 3)),
    "hust": (hust, "--teeth 18,27 --vibration 0 --speed 20 --rate 25600", (18, 3)),
}


def run(main: Any, command: str) -> int:
    return launch(main, command.split())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_records_of_public_gearboxes_become_a_trained_detector_in_two_commands(
    layout: str, own: "Context", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from entry_points import single_domain

    write, flags, shape = LAYOUTS[layout]
    for number, (folder, count) in enumerate(FOLDERS.items()):
        (tmp_path / "records" / folder).mkdir(parents=True)
        for i in range(count):
            write(tmp_path / "records" / folder / f"r{i}", 10 * number + i, 1.0 * (folder == "test/fault"))
    maps = tmp_path / "maps"
    first = f"--input {tmp_path}/records {flags} --fold true --output {maps}"
    assert run(hdmap.main, first) == 0, capsys.readouterr().err
    listed = pd.read_csv(maps / "maps.csv")
    assert listed["file"].str.rsplit("/", n=1).str[0].value_counts()["domain_A/train/good"] >= 3
    second = f"--model_type trivial --trivial_score max --source_domain A --data_root {maps} --preset quick "
    second += f"--gpu cpu --result_dir {own.result_dir} --experiment {own.experiment}"
    assert run(single_domain.main, second) == 0, capsys.readouterr().err
    (folder,) = {path.parent for path in own.result_dir.rglob("results.json")}
    import json

    results = json.loads((folder / "results.json").read_text())
    assert {"fm0", "fm4", "na4", "m6a", "kurtosis", "max"} <= results["trivial"].keys()  # the usual baseline
    import tifffile

    assert tifffile.imread(maps / "domain_A/train/good/000000.tiff").shape == shape
    assert results["trivial"]["max"]["domain_A"]["auroc"] == 1.0


def test_a_simulated_record_comes_back_and_its_trend_is_told(
    own: "Context", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ruptures")
