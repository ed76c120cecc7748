"""Whoever reads a command's output may go: a closed pipe ends nothing, and changes no exit code."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import SETTINGS

TRAINING = ["horizontal", *(f"--{name}={text}" for name, text in SETTINGS.items()), "--feature_gb=0"]


def run_unread(
    words: list[str], folder: Path, *python: str, opened: Callable[[], tuple[int, int]] = os.pipe
) -> int:
    """Return the exit code of a command whose output and errors go to where nobody reads any more."""
    reading, writing = opened()
    os.close(reading)
    around = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    command = [sys.executable, *python, "-m", "entry_points", *words]
    try:
        return subprocess.run(command, stdout=writing, stderr=writing, env=around, check=False).returncode
    finally:
        os.close(writing)


@pytest.mark.parametrize("opened", [os.pipe, os.openpty], ids=["pipe", "terminal"])
@pytest.mark.parametrize("python", [[], ["-u"]], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(("words", "code"), [("--help", 0), ("tune --help", 0), ("horizontl", 64)])
def test_help_and_refusals(words: str, code: int, python: list[str], opened: Any, tmp_path: Path) -> None:
    assert run_unread(words.split(), tmp_path, *python, opened=opened) == code


def test_a_tool_does_its_work(tmp_path: Path) -> None:
    output = tmp_path / "maps"
    words = ["simulate", "--simulate_size=tiny", "--domains=A", f"--output={output}"]
    assert run_unread(words, tmp_path) == 0
    assert len(list((output / "domain_A").rglob("*.tiff"))) == 16


def test_a_training_finishes(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    assert run_unread(["simulate", "--simulate_size=tiny", f"--output={maps}"], tmp_path) == 0
    words = [*TRAINING, f"--data_root={maps}", f"--result_dir={tmp_path / 'results'}"]
    assert run_unread(words, tmp_path) == 0
    (results,) = (tmp_path / "results").rglob("results.json")
    assert json.loads(results.read_text())["max_steps"] == 2


def test_what_is_read_arrives_whole_and_in_order() -> None:
    """Also where buffers fill: more than a pipe holds, read slowly."""
    code = (
        "import sys; from dinomaly_hd.streams import outlive_readers; outlive_readers()\n"
        "for line in range(20000): print(f'ü {line}')\n"
        "print('end', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.decode() == "".join(f"ü {line}\n" for line in range(20000))
    assert done.stderr == b"end\n"
