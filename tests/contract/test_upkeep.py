"""`sync` completes what an outage cut off, and `doctor` says what is wrong with an installation."""

import shutil
from dataclasses import replace
from pathlib import Path

import filelock
import pytest

from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.experiments.run import Outcome, execute
from dinomaly_hd.runs.folder import IN_MLFLOW, LOCK, Context, RunFolder, read_state
from dinomaly_hd.runs.store import client_for, default_uri
from dinomaly_hd.runs.sync import Synchronised, lacking, synchronise
from dinomaly_hd.runs.tracker import Tracker
from entry_points import doctor
from entry_points.common import launch

from .light_runs import SMALL

started = Tracker.start
NOWHERE = "http://127.0.0.1:9"


def run_without_server(context: Context, monkeypatch: pytest.MonkeyPatch, *, name: str) -> Outcome:
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
        own = replace(context, folder=context.result_dir / name)
        return execute(resolve_model("trivial", SMALL["trivial"]), own)


def sync(context: Context) -> tuple[Synchronised, list[str]]:
    lines: list[str] = []
    done = synchronise(context.result_dir, root=context.root, say=lines.append, tick=lambda: None)
    return done, lines


def test_a_run_of_an_outage_is_completed_once(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run_without_server(context, monkeypatch, name="alone")
    assert outcome.mlflow_run_id is None
    assert lacking(context.result_dir) == [outcome.folder]
    done, _ = sync(context)
    assert (done.completed, done.refused, done.at_work) == (1, 0, 0)
    assert done.points > 0
    state = read_state(outcome.folder)
    assert (state["status"], state[IN_MLFLOW]) == ("FINISHED", True)
    run = client_for(default_uri(context.root)).get_run(state["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert {"mean/auroc", "mean/tpr_at_fpr_1"} <= run.data.metrics.keys()
    assert run.outputs is not None
    assert len(run.outputs.model_outputs) == 1
    assert sync(context)[0] == Synchronised(0, 0, 0, 0, 0, 0)


def test_a_server_that_is_slow_at_the_start_is_known_at_the_end(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Tracker, "start", lambda self, *, timeout_s: started(self, timeout_s=timeout_s) and None
    )
    outcome = execute(resolve_model("trivial", SMALL["trivial"]), context)
    assert outcome.mlflow_run_id is not None
    assert read_state(outcome.folder)["mlflow_run_id"] == outcome.mlflow_run_id
    assert lacking(context.result_dir) == []


def test_a_folder_at_work_or_damaged_does_not_stop_the_others(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("at_work", "damaged", "whole")
    folders = {name: run_without_server(context, monkeypatch, name=name).folder for name in names[:1]}
    for name in names[1:]:  # the same run is not run again for another folder: copies of it
        folders[name] = context.result_dir / name
        copy(folders["at_work"], folders[name])
    (folders["damaged"] / "journal.jsonl").write_text('{"broken\n{"a": 1}\n')
    with filelock.FileLock(folders["at_work"] / LOCK):
        done, lines = sync(context)
    assert (done.completed, done.refused, done.at_work) == (1, 1, 1)
    assert any("at work" in line for line in lines)
    assert any("damaged" in line and "journal.jsonl" in line for line in lines)


def copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    outbox = target / "tracking.jsonl"
    outbox.write_text(outbox.read_text().replace('"key": "', f'"key": "{target.name}'))


def test_a_run_that_died_is_marked_killed(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run_without_server(context, monkeypatch, name="died")
    outbox = outcome.folder / "tracking.jsonl"
    kept = [line for line in outbox.read_text().splitlines() if '"ended"' not in line]
    outbox.write_text("\n".join(kept) + "\n")
    RunFolder(outcome.folder, resumed=True).set_state(status="RUNNING")
    assert sync(context)[0].completed == 1
    state = read_state(outcome.folder)
    assert state["status"] == "KILLED"
    assert client_for(default_uri(context.root)).get_run(state["mlflow_run_id"]).info.status == "KILLED"


# ---- doctor ----


def examined(tmp_path: Path, capsys: pytest.CaptureFixture[str], **flags: str) -> tuple[int, str]:
    told = {"result_dir": str(tmp_path / "results"), "feature_dir": str(tmp_path / "features"), **flags}
    code = launch(doctor.main, [f"--{name}={value}" for name, value in told.items()])
    return code, "".join(capsys.readouterr())


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_a_sound_installation_has_no_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = examined(tmp_path, capsys)
    assert code == 0, text
    assert "PROBLEM" not in text
    for what in ("Python", "packages", "device", "weights", "results", "features", "MLflow", "runs", "data"):
        assert any(line[8:].startswith(what) for line in text.splitlines()), what


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        ({"data_root": "/nowhere"}, 65, "/nowhere"),
        ({"encoder": "dinov2reg_vit_small_14", "encoder_weights": "/nowhere.pth"}, 75, "/nowhere.pth"),
        ({"result_dir": "/dev/null/results"}, 74, "/dev/null/results"),
        ({"preset": "quck"}, 64, "Did you mean 'quick'"),
    ],
)
def test_what_is_wrong_is_one_line_with_a_runs_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: dict[str, str], code: int, named: str
) -> None:
    found, text = examined(tmp_path, capsys, **flags)
    assert found == code
    assert named in text


def test_a_dead_server_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    code, text = examined(tmp_path, capsys)
    assert code == 75
    assert f"no server answers at {NOWHERE}" in text
