"""A plugin's variant from its file to a finished run, as a user starts them: whole processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "my_variant.py"
OWN = {key: text for key, text in SETTINGS.items() if key != "maps_per_group"}


def run(folder: Path, *words: str, code: int = 0, **environment: str) -> str:
    around = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    command = [sys.executable, "-m", "entry_points", *words]
    place = {"cwd": folder, "env": {**around, **environment}}
    done = subprocess.run(command, capture_output=True, text=True, check=False, **place)  # type: ignore[call-overload]
    assert done.returncode == code, done.stdout + done.stderr
    return str(done.stderr if code else done.stdout)


def test_it_is_compared_recorded_and_needed_again(tmp_path: Path) -> None:
    run(tmp_path, "simulate", "--simulate_size=tiny", "--domains=A", "--output=maps")
    settings = [f"--{name}={text}" for name, text in OWN.items() if name != "simulate_size"]
    words = [
        "ablation",
        "--configs=A0,even_rows",
        "--data_root=maps",
        "--feature_gb=0",
        "--slots=2",
        *settings,
    ]
    assert "config 'even_rows': unknown" in run(tmp_path, *words, code=64)
    run(tmp_path, *words, f"--plugin={EXAMPLE}")
    (mine,) = tmp_path.glob("results/ablation/*/*/even_rows_seed42")
    assert (mine / "plugin" / "my_variant.py").read_bytes() == EXAMPLE.read_bytes()
    results = json.loads((mine / "results.json").read_text())
    told = results["config"]["model"]["plugin"]
    assert told.startswith("my_variant.py:")
    assert "train/row_variance" in results["training_history"]
    (plain,) = tmp_path.glob("results/ablation/*/*/cfg-A0_seed42")
    assert "plugin" not in json.dumps(json.loads((plain / "results.json").read_text())["config"])
    assert not (plain / "plugin").exists()

    score = ["predict", f"--run={mine}", "--input=maps/domain_A/test", "--maps=0", "--gpu=cpu"]
    assert f"is of plugin '{told}', loaded: none" in run(tmp_path, *score, code=65)
    changed = tmp_path / "my_variant.py"
    changed.write_text(EXAMPLE.read_text() + "\n# another one\n")
    assert f"is of plugin '{told}', loaded: my_variant.py:" in run(
        tmp_path, *score, "--plugin=my_variant.py", code=65
    )
    run(tmp_path, *score, f"--plugin={mine / 'plugin' / 'my_variant.py'}")
    load = f"from dinomaly_hd.serving import _load_pyfunc; _load_pyfunc('{mine / 'model'}')"  # as MLflow does
    around = {**os.environ, "PYTHONPATH": str(ROOT), "DINOMALY_HD_PLUGIN": str(EXAMPLE)}
    subprocess.run([sys.executable, "-c", load], env=around, capture_output=True, check=True)


@pytest.mark.parametrize("words", [["horizontal", "--plugin", str(EXAMPLE)], ["sync", "--plugin=x"]])
def test_entry_points_that_can_do_nothing_with_it_refuse_it(words: list[str], tmp_path: Path) -> None:
    assert "plugin" in run(tmp_path, *words, code=64)


def test_a_form_that_hands_parameters_on_can_forbid_it(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()\n")
    words = ["ablation", "-P", "--configs", "A0", "--plugin", "evil.py"]
    assert "none allows none" in run(tmp_path, *words, code=64, DINOMALY_HD_PLUGIN="none")
    assert not (tmp_path / "ran").exists()
    assert "has no attribute 'VARIANTS'" in run(tmp_path, *words, code=64)
    assert (tmp_path / "ran").exists()
