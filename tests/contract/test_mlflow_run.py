"""`mlflow run . -e horizontal -P seed=42`, as the README writes it, in a clone after `make setup`."""

import subprocess
import sys
from pathlib import Path

import pytest

from dinomaly_hd.runs import project_environment
from dinomaly_hd.runs.store import client_for, load_mlflow
from tests.contract.conftest import SETTINGS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_literal_command_runs_after_make_setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a clone of what is committed and what is not yet, prepared as `make setup` does it."""
    load_mlflow("sqlite://")
    from mlflow.projects.utils import load_project

    clone, uri = tmp_path / "a clone", f"sqlite:///{tmp_path}/mlflow.db"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True, capture_output=True)
    changes = subprocess.run(["git", "diff", "HEAD", "--binary"], cwd=ROOT, check=True, capture_output=True)
    if changes.stdout:
        subprocess.run(["git", "apply", "-"], cwd=clone, input=changes.stdout, check=True)
    (clone / ".venv").symlink_to(Path(sys.prefix))
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(tmp_path / "envs"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("PATH", f"{sys.prefix}/bin:/usr/bin:/bin")  # no conda, no pyenv
    monkeypatch.delenv("PYTHONPATH", raising=False)  # the clone runs its own code

    assert load_project(clone).env_type == "conda_env"
    subprocess.run(["python", "-m", "dinomaly_hd.runs.project_environment"], cwd=clone, check=True)
    assert load_project(clone).env_type == "python_env"
    given = {**SETTINGS, "domains": "A", "maps_per_group": "0"}
    words = [word for item in given.items() if item[0] != "seed" for word in ("-P", "=".join(item))]
    command = ["mlflow", "run", ".", "-e", "horizontal", "-P", "seed=42", *words]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "already exists" in done.stderr  # MLflow made no environment of its own
    (run,) = client_for(uri).search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == "42"
    assert (clone / "results" / "horizontal").is_dir()


def test_each_checkout_and_lock_keeps_its_own_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(tmp_path / "envs"))
    for name in "ab":
        (tmp_path / name / ".venv").mkdir(parents=True)
        (tmp_path / name / "requirements.lock").write_text("numpy==2.0")
    first, second = (project_environment.lay(tmp_path / name) for name in "ab")
    assert first != second
    assert first == project_environment.lay(tmp_path / "a")
    assert first.resolve() == tmp_path / "a" / ".venv"
    (tmp_path / "a" / "requirements.lock").write_text("numpy==2.1")
    assert project_environment.lay(tmp_path / "a") not in (first, second)
    second.unlink()
    second.mkdir()  # as MLflow makes one itself: it is left
    assert project_environment.lay(tmp_path / "b") == second
    assert not second.is_symlink()
