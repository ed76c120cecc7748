"""Every entry point answers --help, says in MLproject what it takes, and a run's command repeats it."""

import importlib
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dinomaly_hd.config.base import flatten, text_of
from dinomaly_hd.config.resolve import MARKER, Command, resolve_model
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.data.feature_files import FeaturePlace
from dinomaly_hd.errors import ConfigError, SignalGuard
from dinomaly_hd.runs.sync import entry_points_with_tags
from entry_points import horizontal
from entry_points.__main__ import NAMES
from entry_points.common import Start, launch, run_of

ROOT = Path(__file__).resolve().parents[2]
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
SEEDLESS = {"report", "simulate", "hdmap", "trend", "predict", "export", "sync", "doctor"}
"""Entry points that draw nothing of a run's; a simulated data set has a seed of its own."""
MOST_DECLARED, LONGEST_PROJECT = 8, 320
NEEDED = {"teeth": "31,95"}  # values of required parameters that are no free text


def command_of(name: str) -> Command[Any]:
    command: Command[Any] = importlib.import_module(f"entry_points.{name}").COMMAND
    return command


@pytest.mark.parametrize("name", [*NAMES, "job", "tune_worker"])
def test_help_lists_every_parameter_without_heavy_imports(name: str) -> None:
    code = (
        f"import sys, runpy; sys.argv = ['{name}', '--help-all']\n"
        f"try: runpy.run_module('entry_points.{name}', run_name='__main__')\n"
        "except SystemExit as end: print({'torch', 'mlflow', 'timm', 'lightning'} & {*sys.modules}, end.code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set() 0\n")
    assert all(f"--{parameter} " in done.stdout for parameter in command_of(name).parameters())


def test_the_project_is_short_and_has_every_entry_point() -> None:
    assert set(PROJECT) == set(NAMES)
    assert len((ROOT / "MLproject").read_text().splitlines()) <= LONGEST_PROJECT


def test_only_entry_points_that_leave_tags_at_work_can_be_taken_for_never_begun() -> None:
    assert entry_points_with_tags(ROOT) == {*NAMES} - SEEDLESS | {"report"}


@pytest.mark.parametrize("name", NAMES)
def test_what_the_project_declares_is_what_the_entry_point_takes(name: str) -> None:
    fields, declared = command_of(name).parameters(), PROJECT[name]["parameters"]
    assert 0 < len(declared) <= MOST_DECLARED
    words = [f"--{parameter}={{{parameter}}}" for parameter in declared]  # quotes would undo MLflow's own
    assert PROJECT[name]["command"].split() == ["python", "-m", f"entry_points.{name}", *words, MARKER]
    for parameter, said in declared.items():
        field = RunConfig.model_fields["seed"] if parameter == "seed" else fields[parameter]
        if field.is_required():
            assert "default" not in said
            continue
        assert str(said["default"]) == text_of(field.default)
        assert said["default"] != "auto", "mlflow run would log it as the value"
        number = field.annotation if field.annotation in (int, float) else str
        assert said["type"] == {int: "int", float: "float", str: "string"}[number]
    needed = {key: NEEDED.get(key, "x") for key in declared if key != "seed" and fields[key].is_required()}
    given = [
        f"--{parameter}={needed.get(parameter, said.get('default'))}" for parameter, said in declared.items()
    ]
    assert command_of(name).parse([*given, MARKER]).given == needed


@pytest.mark.parametrize("name", sorted({*NAMES} - SEEDLESS))
def test_one_seed_is_a_list_of_one_under_both_names(name: str) -> None:
    command, declared = command_of(name), PROJECT[name]["parameters"]
    needed = [f"--{key}=x" for key, said in declared.items() if "default" not in said]
    usual = [f"--{key}={said['default']}" for key, said in declared.items() if "default" in said]
    for flag in ("seed", "seeds"):
        for words in ([f"--{flag}=7"], [*usual, MARKER, f"--{flag}", "7"]):
            asked = command.parse([*needed, *words])
            assert (asked.options.seeds, asked.given["seeds"], "seed" in asked.values) == ((7,), "7", False)
        assert command.parse([*needed, f"--{flag}=8,7"]).options.seeds == (8, 7)


def test_no_declared_default_is_one_that_a_preset_decides() -> None:
    for name in NAMES[:12]:
        for preset in ("full", "quick"):
            run = resolve_model(name, {"preset": preset})
            flat = {"use_topk": False, "mode": "multiclass", **flatten(run)}
            for parameter, said in PROJECT[name]["parameters"].items():
                assert str(said["default"]) == text_of(flat[parameter]), (name, parameter)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--seed", "7", "--row-p", ".3", "--max_steps", "auto"],
        ["--use_topk", "true", "--q_percent", "1", "--preset", "full"],
        ["--data_root", "/my maps/o'clock", "--domains", "C"],
        ["--seed=42", "--row_p=0.2", MARKER, "--q_percent", "1", "--use_topk", "true"],
    ],
)
def test_the_command_of_a_run_repeats_it(flags: list[str]) -> None:
    asked = horizontal.COMMAND.parse(flags)
    words = shlex.split(Start(asked, SignalGuard()).context().command)
    assert words[:3] == ["python", "-m", "entry_points.horizontal"]
    assert run_of(horizontal.COMMAND.parse(words[3:])) == run_of(asked)


def test_a_missing_package_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    assert launch(main, []) == 70
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "torch is not installed" in error
    assert "activate" in error


def test_where_encoded_images_are_kept_and_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def place(**flags: str) -> FeaturePlace | None:
        return horizontal.COMMAND.parse([f"--{n}={t}" for n, t in flags.items()]).options.feature_place

    assert place(feature_dir=str(tmp_path), feature_gb="2.5") == FeaturePlace(tmp_path, 2.5)
    assert place(feature_gb="0") is None
    monkeypatch.setenv("DINOMALY_HD_FEATURES", str(tmp_path / "other"))
    assert place() == FeaturePlace(tmp_path / "other", None)
    monkeypatch.delenv("DINOMALY_HD_FEATURES")
    assert place() == FeaturePlace(ROOT / ".features", None)
    for budget in ("much", "-1", "nan", "inf"):
        with pytest.raises(ConfigError, match=f"feature_gb='{budget}': "):
            place(feature_gb=budget)


@pytest.mark.parametrize("secret", ["pass", "p%40ss", "p@ss", "pa/ss", "pa?ss#1"])
def test_no_error_shows_the_password_of_an_address(secret: str) -> None:
    addresses = ["postgresql+psycopg2://ann:{}@host:5432/db", "mysql://:{}@host"]
    if not set(secret) & set("/?#"):  # which a page's address cannot have there
        addresses.append("https://ann:{}@host/mlflow")
    for address in addresses:
        text = str(ConfigError(f"MLflow at {address.format(secret)}: no answer"))
        assert text == f"MLflow at {address.format('***')}: no answer"
    plain = "see http://127.0.0.1:5000/#/models/x@champion and sqlite:///a:b@c.db"
    assert str(ConfigError(plain)) == plain
