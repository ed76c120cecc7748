"""From raw records to a trained detector with two commands, in public gearboxes' layouts; and its trend.

The records are made here, of the tooth counts, rates, channels and file formats that docs/vibration.md gives.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from numpy.typing import NDArray
from scipy.io import savemat

from dinomaly_hd.files import publish_json, publish_text
from entry_points import hdmap, simulate, single_domain, trend
from entry_points.common import launch

if TYPE_CHECKING:
    from dinomaly_hd.runs.folder import Context

Floats = NDArray[np.float64]
FOLDERS = {"train/good": 3, "test/good": 2, "test/fault": 2}


def vibration(
    rate: float, seconds: float, *, teeth: tuple[int, int], speed: float, seed: int, raised: float
) -> Floats:
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
    "phm2009": (
        phm,
        "--teeth 32,96 --vibration 0 --tachometer 2 --pulses_per_turn 10 --rate 66666.667",
        (32, 3),
    ),
    "hust": (hust, "--teeth 18,27 --vibration 0 --speed 20 --rate 25600", (18, 3)),
}


def run(main: Any, command: str) -> int:
    return launch(main, command.split())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_records_of_public_gearboxes_become_a_trained_detector_in_two_commands(
    layout: str, own: "Context", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, flags, shape = LAYOUTS[layout]
    for number, (folder, count) in enumerate(FOLDERS.items()):
        (tmp_path / "records" / folder).mkdir(parents=True)
        for i in range(count):
            write(tmp_path / "records" / folder / f"r{i}", 10 * number + i, 1.0 * (folder == "test/fault"))
    maps = tmp_path / "maps"
    first = f"--input {tmp_path}/records {flags} --fold true --output {maps}"
    assert run(hdmap.main, first) == 0, capsys.readouterr().err
    second = f"--model_type patchcore --source_domain A --data_root {maps} --preset quick --image_size 64"
    second += f" --gpu cpu --result_dir {own.result_dir} --experiment {own.experiment}"
    assert run(single_domain.main, second) == 0, capsys.readouterr().err
    (file,) = own.result_dir.rglob("results.json")
    results = json.loads(file.read_text())
    assert tifffile.imread(maps / "domain_A/train/good/000000.tiff").shape == shape
    assert results["per_domain_metrics"]["domain_A"]["auroc"] > 0.9
    # A damaged table of them ends nothing half-way.
    (maps / "indicators.csv").write_text("file,rms\n")
    assert run(single_domain.main, f"{second} --seed 7") == 65
    assert "indicators.csv: not the table that hdmap wrote" in capsys.readouterr().err
    assert len(list(own.result_dir.rglob("run.json"))) == 1
    # The usual indicators stand in every report on such maps.
    assert {"rms", "kurtosis", "crest_factor", "fm0", "fm4", "na4", "m6a", "sideband_level"} <= results[
        "trivial"
    ].keys()


def test_the_raw_signals_of_simulated_maps_become_these_maps_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, maps = tmp_path / "data", tmp_path / "maps"
    assert run(simulate.main, f"--simulate_size tiny --domains C --raw true --output {data}") == 0
    raw = tmp_path / "data_raw/domain_C"
    command = f"--teeth 31,95 --signal difference --domain C --output {maps}"
    assert run(hdmap.main, f"{command} --input {raw}") == 0, capsys.readouterr().err
    for path in data.glob("domain_C/*/*/*.tiff"):
        there, back = (tifffile.imread(root / path.relative_to(data)) for root in (data, maps))
        # Their noise leaves errors of a tenth of a cell, where maps spread by a quarter.
        assert np.corrcoef(there.ravel(), back.ravel())[0, 1] > 0.85
    assert run(hdmap.main, f"{command} --input {raw}") == 65
    assert "its maps are in" in capsys.readouterr().err
    assert run(hdmap.main, "--teeth 31,95") == 64
    assert "--input is needed" in capsys.readouterr().err


def test_the_length_of_a_record_is_told_without_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = "--plan --teeth 31,95 --speed 30 --rate 25600 --noise 3"
    assert run(hdmap.main, plan) == 0
    assert "a band of 0.3 needs 2 periods, 6.3 s" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    words = f"{plan} --output {tmp_path}"
    assert run(hdmap.main, words) == 0
    assert "a band of 0.3 needs 2 periods, 6.3 s" in capsys.readouterr().out
    assert (tmp_path / "length.png").read_bytes().startswith(b"\x89PNG")
    assert run(hdmap.main, "--plan --teeth 31,95 --speed 30") == 64


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A run folder whose 60 test maps, ten seconds apart, change after the 40th."""
    draws, folder = np.random.default_rng(0), tmp_path / "results/horizontal/r1"
    normals = pd.DataFrame({"path": [f"n{i}" for i in range(50)], "score": draws.normal(size=50)})
    files = [f"domain_A/test/{'fault' if i >= 40 else 'good'}/{i:06d}.tiff" for i in range(60)]
    scores = draws.normal(size=60) + 6.0 * (np.arange(60) >= 40)
    test = pd.DataFrame({"path": files, "label": np.arange(60) // 40, "score": scores, "trivial/fm4": 3.0})
    for name, table in (("domain_A", test.sample(frac=1, random_state=0)), ("domain_A_normals", normals)):
        publish_text(folder / f"scores/{name}.csv", table.assign(**{"trivial/fm4": 3.0}).to_csv(index=False))
    publish_json(folder / "run.json", {"status": "FINISHED"})
    publish_json(folder / "experiment_settings.json", {"data_root": str(tmp_path)})
    course = {"file": files, "start_s": 10.0 * np.arange(60), "speed": 30.0, "record": "one"}
    publish_text(tmp_path / "maps.csv", pd.DataFrame(course).to_csv(index=False))
    return tmp_path


def test_the_trend_of_a_run_names_its_first_alarm_and_its_change(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ruptures")
    words = f"--run r1 --result_dir {recorded}/results --false_alarms 10 --output {recorded}/trend"
    assert run(trend.main, words) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "for 10 false alarms a day of 8640 maps, extrapolated beyond 50 normals" in said
    assert "first alarm at 400.0 s" in said
    assert "changes of the mean: 400.0 s" in said
    table = pd.read_csv(recorded / "trend/trend.csv")
    assert table["start_s"].is_monotonic_increasing
    assert table["alarm"].tolist() == [False] * 40 + [True] * 20
    assert (recorded / "trend/trend.png").read_bytes().startswith(b"\x89PNG")
    assert run(trend.main, f"{words} --score fm4") == 0
    assert "changes of the mean: none" in capsys.readouterr().out


def test_without_its_library_a_trend_has_no_change_points_and_says_so(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ruptures", None)
    assert run(trend.main, f"--run r1 --result_dir {recorded}/results --output {recorded}/trend") == 0
    said = capsys.readouterr().out
    assert "first alarm at 400.0 s" in said
    assert "not looked for: ruptures is not installed; pip install 'dinomaly-hd[vibration]'" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--run r1 --score fm5", "score='fm5': the run has no such score. Did you mean 'fm4'?"),
        ("--run r1 --domain B", "domain='B': the run has no such domain"),
        ("--run r2", "run 'r2': no run folder"),
        ("--run r1 --data_root /nowhere", "/nowhere/maps.csv: not there; it says when"),
        ("--run r1 --data_root {other}", "/maps.csv: cannot be read, and says when"),
        ("--run r1 --false_alarms 9000", "false_alarms=9000: expected above 0 and below the 8640 maps"),
    ],
)
def test_a_trend_that_cannot_be_told_is_one_line(
    recorded: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    publish_text(recorded / "other/maps.csv", "start_s,tooth\n0,1\n")
    words = words.format(other=recorded / "other")
    assert run(trend.main, f"{words} --result_dir {recorded}/results") in (64, 65)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
