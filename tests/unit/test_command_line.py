"""What saves a user minutes: short help, completion, the list of runs, a folder to begin with."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from dinomaly_hd.config.conditions_file import read_conditions, schema_text
from dinomaly_hd.files import publish_json
from entry_points.__main__ import HERE, NAMES, by_name
from entry_points.common import launch

ROOT = Path(__file__).resolve().parents[2]


def said(capsys: pytest.CaptureFixture[str], command: str, *, code: int = 0) -> str:
    try:
        ended = launch(by_name, shlex.split(command))
    except SystemExit as end:
        ended = int(end.code or 0)
    out, err = capsys.readouterr()
    assert ended == code, err
    return out if code == 0 else err


# ---- help ----


def test_help_is_short_and_names_what_it_leaves_to_the_whole_one(capsys: pytest.CaptureFixture[str]) -> None:
    short, whole = said(capsys, "horizontal --help"), said(capsys, "horizontal --help-all")
    assert len(short.splitlines()) < len(whole.splitlines()) / 1.8
    assert short.index("--row_p ") < short.index("--help-all describes") < short.index("learning_rate")
    assert "--learning_rate " not in short
    assert "--learning_rate " in whole
    assert "\ntraining:\n" in whole


def test_help_says_what_each_preset_decides(capsys: pytest.CaptureFixture[str]) -> None:
    words = " ".join(said(capsys, "topk --help-all").split())
    for text in ("(default full 1000, quick 400)", "(default full 448, quick 248x96)"):
        assert text in words
    assert "in the loss, percent: above 0 to 100 (default 2.0)" in words
    # Of many models no preset's value is that of all.
    words = " ".join(said(capsys, "single_domain --help").split())
    assert "--max_steps optimizer steps: from 1 --gpu" in words


def test_what_is_needed_stands_first(capsys: pytest.CaptureFixture[str]) -> None:
    flags = re.findall(r"^  (--\w+)", said(capsys, "predict --help"), re.MULTILINE)
    assert flags[:2] == ["--run", "--input"]


@pytest.mark.parametrize("words", [["--row_p", "--help-all"], ["--row_p", "-h"]])
def test_a_value_behind_the_marker_is_never_help(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "row_p" in said(capsys, f"horizontal --preset=quick -P {' '.join(words)}", code=64)


# ---- completion ----


@pytest.fixture(scope="module")
def complete() -> Callable[..., list[str]]:
    text = importlib.import_module("entry_points.completion").script()

    def ask(*words: str) -> list[str]:
        # As bash does: "=" is a word of its own.
        line = f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}"
        asked = f"{text}\n{line}; _dinomaly_hd; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
        assert not done.stderr
        return done.stdout.split()

    return ask


@pytest.mark.parametrize("name", [*NAMES, *HERE])
def test_every_name_and_flag_is_completed(name: str, complete: Callable[..., list[str]]) -> None:
    assert name in complete("dinomaly-hd", name[:3])
    command = importlib.import_module(f"entry_points.{name}").COMMAND
    flags = [f"--{flag}" for flag in command.parameters()]
    assert complete("dinomaly-hd", name, "--") == [*flags, "--help", "--help-all"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["horizontal", "--preset", "q"], ["quick"]),
        (["horizontal", "--preset", "=", "q"], ["quick"]),
        (["horizontal", "--preset", "="], ["full", "quick"]),
        (["horizontal", "--preset=q"], ["--preset=quick"]),  # zsh's one word
        (["horizontal", "--grey", ""], ["true", "false"]),
        (["ablation", "--configs", "direct"], ["directional", "directional_topk"]),
        (["runs", "--sort", "C"], ["C", "C_cold"]),
        (["completion", "z"], ["zsh"]),
        (["horizontal", "--data_root", "/"], []),  # a file, which bash completes
        (["init", ""], []),
    ],
)
def test_values_are_completed(words: list[str], found: list[str], complete: Callable[..., list[str]]) -> None:
    assert complete("dinomaly-hd", *words) == found


@pytest.mark.parametrize("words", ["completion zsh", "runs", "init {folder}/new"])
def test_tools_import_nothing_heavy(words: str, tmp_path: Path) -> None:
    code = (
        "import sys, entry_points.__main__ as command; command.main()\n"
        "assert not {'torch', 'mlflow', 'pandas', 'sklearn', 'scipy', 'numpy'} & {*sys.modules}"
    )
    command = [sys.executable, "-c", code, *words.format(folder=tmp_path).split()]
    around = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=tmp_path, env=around, capture_output=True, check=True)


# ---- runs ----


def run_at(folder: Path, mean: object, *, at: int, state: object = None, label: str = "F") -> None:
    """Write what a run leaves for the list, changed ``at`` seconds after 1970."""
    publish_json(folder / "run.json", {"status": "FINISHED"} if state is None else state)
    config = {"seed": 7, "model": {"variant": "topk"}, "data": {"domains": "A,C"}}
    publish_json(folder / "experiment_settings.json", {"config": config, "data_root": "/maps/mill"})
    cold = {"auroc": 0.5, "by_condition": {"cold": {"auroc": 0.25}}}
    results = {"label": label, "mean_metrics": {"auroc": mean}, "per_domain_metrics": {"domain_C": cold}}
    publish_json(folder / "results.json", results)
    os.utime(folder / "run.json", (at, at))


def test_runs_are_listed_with_figures_whatever_state_they_are_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_at(tmp_path / "topk" / "old", 0.75, at=100)
    run_at(tmp_path / "ablation" / "one" / "F_seed7", 0.875, at=50, label="H" * 71)
    publish_json(tmp_path / "ablation" / "one" / "run.json", {"status": "FINISHED"})
    run_at(tmp_path / "topk" / "killed", 1.0, at=200, state={"status": "RUNNING", "pid": 2**22 + 1})
    run_at(tmp_path / "topk" / "odd", {"auroc": []}, at=300, state={"status": "\x1b[2J"})
    run_at(tmp_path / "topk" / "torn", 0.5, at=400)
    (tmp_path / "topk" / "torn" / "results.json").write_text('{"label": ')
    (tmp_path / "topk" / "torn" / "experiment_settings.json").write_text("[]")
    head, *lines, end = said(capsys, f"runs --result_dir {tmp_path}").splitlines()
    assert " ".join(head.split()) == "changed label seed data mean C C_cold status folder"
    assert [line.rpartition("/")[2] for line in lines] == ["F_seed7", "old", "killed", "odd", "torn"]
    assert " F 7 mill A,C 75.00 50.00 25.00 FINISHED " in " ".join(lines[1].split())
    assert " topk 7 mill A,C - - - RUNNING, no process here " in " ".join(lines[2].split())
    assert "results.json cannot be read" in lines[4]
    assert f" {'H' * 67}... " in lines[0]
    assert end.startswith("5 of 5 runs")
    assert all(line.isprintable() for line in lines)
    _, *lines, end = said(capsys, f"runs --result_dir {tmp_path} --sort mean --limit 2").splitlines()
    assert [line.rpartition("/")[2] for line in lines] == ["F_seed7", "old"]
    assert end.startswith("2 of 5 runs")


# ---- init ----


@pytest.mark.parametrize("domains", [["A", "B", "C", "D"], ["mill", "lathe"]])
def test_a_new_folder_holds_conditions_of_the_users_data(
    domains: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, folder = tmp_path / 'my "maps" {1}', tmp_path / "new"
    for name in domains:
        (root / f"domain_{name}" / "train" / "good").mkdir(parents=True)
    told = said(capsys, f"init {folder} --data_root {shlex.quote(str(root))}")
    assert "--conditions_file conditions.yaml" in told
    file = folder / "conditions.yaml"
    Draft202012Validator(json.loads(schema_text())).validate(yaml.safe_load(file.read_text()))
    found = read_conditions(file)
    assert [one.name for one in found] == ["row_evidence", "baseline", "horizontal"]
    for one in found:
        assert one.values["data_root"] == str(root)
        assert sorted(one.values["domains"].split(",")) == sorted(domains)
    assert "results/" in (folder / ".gitignore").read_text().splitlines()
    assert "is there already" in said(capsys, f"init {folder}", code=64)
    assert "no domains there" in said(capsys, f"init {tmp_path / 'other'} --data_root {folder}", code=64)
    assert "--folder is needed" in said(capsys, "init", code=64)
