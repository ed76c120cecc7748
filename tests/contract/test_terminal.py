"""Whoever reads a command's output may go: a closed pipe ends nothing, and changes no exit code."""

import json
import os
import re
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress
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


@pytest.mark.parametrize("python", [[], ["-u"]], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", ["--help", "tune --help", "runs"])
def test_a_full_disk_below_the_output_is_said(words: str, python: list[str]) -> None:
    command = [sys.executable, *python, "-m", "entry_points", *words.split()]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == "OutputError: standard output: cannot write it: No space left on device\n"
    assert done.returncode == 74


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


def test_a_terminal_shows_a_live_bar_instead_of_lines_and_changes_no_score(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    assert run_unread(["simulate", "--simulate_size=tiny", f"--output={maps}"], tmp_path) == 0
    said, found = {}, {}
    for name, opened in (("file", os.pipe), ("terminal", os.openpty)):
        reading, writing = opened()
        if name == "terminal":
            termios.tcsetwinsize(writing, (24, 100))
        around = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
        words = [*TRAINING, f"--data_root={maps}", f"--result_dir={tmp_path / name}"]
        command = [sys.executable, "-m", "entry_points", *words]
        process = subprocess.Popen(command, stdout=writing, stderr=writing, env=around)
        os.close(writing)
        said[name] = "".join(_read(reading))
        assert process.wait() == 0
        found[name] = [path.read_bytes() for path in sorted((tmp_path / name).rglob("scores/*.csv"))]
    assert "step 2/2, 0 s left" in said["file"]
    assert "\r" not in said["file"]
    assert "step 2/2" not in said["terminal"]
    last = said["terminal"].split("| 2/2, ")[-1]
    assert re.match(r" *[\d.]+ steps/s, 00:00 left, loss [\d.]+\s+scoring 4 held-out", last), last
    assert len(found["file"]) > 1
    assert found["terminal"] == found["file"]


def _read(descriptor: int) -> Iterator[str]:
    """Yield what is written until nobody has the other end: a terminal says so by an error."""
    with os.fdopen(descriptor, "rb") as stream, suppress(OSError):
        while part := stream.read1().decode(errors="ignore"):
            yield part


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
