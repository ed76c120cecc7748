"""Every entry point answers --help, refuses strangers, and a run's command repeats it."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dinomaly_hd.data.feature_files import FeaturePlace
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.flags import accepted_by, parse, resolve
from dinomaly_hd.training.guards import SignalGuard
from entry_points import horizontal, project_file
from entry_points.common import context_of, exit_code, prepare, variants_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", project_file.NAMES)
def test_help_lists_every_parameter_of_mlproject(name: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", f"entry_points.{name}", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert not {"torch", "mlflow", "lightning"} & imported, "seconds before a word is said"
    block = project_file.render().split(f"\n  {name}:\n")[1].split("    command:")[0]
    parameters = [line.split(":")[0].strip() for line in block.splitlines()[1:] if line.strip()]
    assert parameters
    assert all(f"--{parameter} " in result.stdout for parameter in parameters)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--seed", "7", "--row-p", ".3", "--max_steps", "auto"],
        ["--use_topk", "true", "--q_percent", "1", "--preset", "full"],
        ["--data_root", "/my maps/o'clock", "--domains", "C"],
    ],
)
def test_the_command_of_a_run_repeats_it(flags: list[str]) -> None:
    run, context, _ = prepare("horizontal", flags, SignalGuard(), doc="", switches=horizontal.SWITCHES)
    words = shlex.split(context.command)
    assert words[:3] == ["python", "-m", "entry_points.horizontal"]
    accepted = accepted_by(variants_of("horizontal", horizontal.SWITCHES), switches=horizontal.SWITCHES)
    assert resolve("horizontal", parse("horizontal", words[3:], accepted=accepted, doc="")) == run


def test_a_missing_package_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    assert exit_code(main, []) == 70
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "torch is not installed" in error
    assert "activate" in error


def test_where_encoded_images_are_kept_and_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def place(**flags: str) -> FeaturePlace | None:
        with SignalGuard() as guard:
            return context_of(flags, guard, entry_point="horizontal", command="").feature_place

    assert place(feature_dir=str(tmp_path), feature_gb="2.5") == FeaturePlace(tmp_path, 2.5)
    assert place(feature_gb="0") is None
    monkeypatch.setenv("DINOMALY_HD_FEATURES", str(tmp_path / "other"))
    assert place() == FeaturePlace(tmp_path / "other", None)
    monkeypatch.delenv("DINOMALY_HD_FEATURES")
    assert place() == FeaturePlace(ROOT / ".features", None)


@pytest.mark.parametrize("budget", ["much", "-1", "nan", "inf"])
def test_a_budget_that_is_no_size_is_refused(budget: str) -> None:
    with SignalGuard() as guard, pytest.raises(ConfigError, match=f"feature_gb='{budget}': expected GiB"):
        context_of({"feature_gb": budget}, guard, entry_point="horizontal", command="")
