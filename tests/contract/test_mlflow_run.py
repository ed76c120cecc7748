"""`mlflow run . -e horizontal -P seed=42`, as the README writes it, in a clone after `make setup`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dinomaly_hd.runs import project_environment
from dinomaly_hd.runs.store import client_for, load_mlflow
from tests.contract.conftest import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 900.0


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone of what is committed and what is not yet, prepared as `make setup` does it."""
    folder = tmp_path / "a clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True, capture_output=True)
    changes = subprocess.run(["git", "diff", "HEAD", "--binary"], cwd=ROOT, check=True, capture_output=True)
    if changes.stdout:
        subprocess.run(["git", "apply", "-"], cwd=folder, input=changes.stdout, check=True)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(tmp_path / "envs"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("PATH", f"{sys.prefix}/bin:/usr/bin:/bin")  # no conda, no pyenv
    monkeypatch.delenv("PYTHONPATH", raising=False)  # the clone runs its own code
    return folder


def environment_of(folder: Path) -> str:
    load_mlflow("sqlite://")
    from mlflow.projects.utils import load_project

    return str(load_project(folder).env_type)


def mlflow_run(*words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = ["mlflow", "run", ".", "-e", "horizontal", "-P", "seed=42", *words]
    return subprocess.run(
        command, cwd=cwd, timeout=DEADLINE_S, capture_output=True, text=True, env=os.environ
    )


@pytest.mark.slow
def test_the_literal_command_runs_after_make_setup(clone: Path) -> None:
    assert environment_of(clone) == "conda_env"
    subprocess.run(["python", "-m", "dinomaly_hd.runs.project_environment"], cwd=clone, check=True)
    assert environment_of(clone) == "python_env"
    words = [word for item in SETTINGS.items() if item[0] != "seed" for word in ("-P", "=".join(item))]
    done = mlflow_run(*words, cwd=clone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "already exists" in done.stderr  # MLflow made no environment of its own
    (run,) = client_for(os.environ["MLFLOW_TRACKING_URI"]).search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "42"
    assert (clone / "results" / "horizontal").is_dir()


def test_each_checkout_and_lock_keeps_its_own_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(tmp_path / "envs"))
    for name, lock in (("a", "numpy==2.0"), ("b", "numpy==2.0")):
        (tmp_path / name / ".venv").mkdir(parents=True)
        (tmp_path / name / "requirements.lock").write_text(lock)
    first, second = (project_environment.lay(tmp_path / name) for name in "ab")
    assert first != second
    assert first == project_environment.lay(tmp_path / "a")
    assert first.resolve() == tmp_path / "a" / ".venv"
    (tmp_path / "a" / "requirements.lock").write_text("numpy==2.1")
    assert project_environment.lay(tmp_path / "a") not in (first, second)


def test_an_environment_that_mlflow_made_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(tmp_path / "envs"))
    (tmp_path / "requirements.lock").write_text("numpy==2.0")
    link = project_environment.lay(tmp_path)
    link.unlink()
    link.mkdir()
    assert project_environment.lay(tmp_path) == link
    assert not link.is_symlink()
