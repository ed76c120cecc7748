"""A run killed at random moments goes on to bit-identical weights, scores and metric history."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from dinomaly_hd.journal import Journal

ROOT = Path(__file__).resolve().parents[2]
KILLS = 5
STEPS = 40
FLAGS = {
    "seed": "42",
    "preset": "quick",
    "simulate_size": "tiny",
    "image_size": "64",
    "decoder_depth": "2",
    "batch_size": "4",
    "max_steps": str(STEPS),
    "checkpoint_interval": "4",
    "val_check_interval": "10",
    "maps_per_group": "1",
}


def start(result_dir: Path, **changes: str) -> "subprocess.Popen[bytes]":
    flags = [word for name, value in {**FLAGS, **changes}.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "entry_points.horizontal", *flags, "--result_dir", str(result_dir)]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{result_dir}/mlflow.db",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("MLFLOW_RUN_ID", None)
    result_dir.mkdir(parents=True, exist_ok=True)
    with (result_dir / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def finish(result_dir: Path, **changes: str) -> Path:
    code = start(result_dir, **changes).wait(timeout=300)
    assert code == 0, (result_dir / "log").read_text()[-3000:]
    (folder,) = (path.parent for path in result_dir.glob("horizontal/*/results.json"))
    return folder


def assert_same(run: Path, reference: Path) -> None:
    weights, expected = (load_file(folder / "model" / "weights.safetensors") for folder in (run, reference))
    assert weights.keys() == expected.keys()
    assert all(bool((weights[name] == expected[name]).all()) for name in expected)
    for path in sorted((reference / "scores").glob("*.csv")):
        pd.testing.assert_frame_equal(
            pd.read_csv(run / "scores" / path.name), pd.read_csv(path), check_exact=True
        )
    histories = [Journal(folder / "journal.jsonl").history() for folder in (run, reference)]
    kept = [{k: v for k, v in history.items() if not k.startswith("time/")} for history in histories]
    assert kept[0] == kept[1]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("reference"))


def wait_for_step(result_dir: Path, step: int, *, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < end:
        for path in result_dir.glob("horizontal/*/journal.jsonl"):
            if path.read_bytes().count(b"train/loss") >= step:
                return
        time.sleep(0.005)


@pytest.mark.slow
def test_five_of_five_killed_runs_resume_exactly(tmp_path: Path, reference: Path) -> None:
    moments = random.Random(7)
    for number in range(KILLS):
        process = start(tmp_path)
        wait_for_step(tmp_path, moments.randrange(STEPS), process=process)
        time.sleep(moments.random() * 0.1)
        process.kill()
        assert process.wait() == -signal.SIGKILL, f"kill {number + 1} came too late"
    assert_same(finish(tmp_path), reference)
    print(f"{KILLS} of {KILLS} kills survived")


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "4"])
def test_loader_workers_change_nothing(tmp_path: Path, reference: Path, workers: str) -> None:
    assert_same(finish(tmp_path, num_workers=workers), reference)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_checkpoint_of_the_last_step(
    tmp_path: Path, reference: Path, number: signal.Signals, code: int
) -> None:
    process = start(tmp_path)
    wait_for_step(tmp_path, 14, process=process)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    (folder,) = tmp_path.glob("horizontal/*")
    last = max(Journal(folder / "journal.jsonl").history()["train/loss"])[0]
    newest = max(path.stem for path in (folder / "checkpoints").glob("step_*.pt"))
    assert newest == f"step_{last + 1:08d}"
    assert '"KILLED"' in (folder / "run.json").read_text()
    assert_same(finish(tmp_path), reference)
