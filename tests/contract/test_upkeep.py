"""`sync` completes what an outage cut off, and `doctor` says what is wrong with an installation."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import pytest

from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.experiments.run import execute
from dinomaly_hd.runs.folder import IN_MLFLOW, LOCK, Context, RunFolder, read_state
from dinomaly_hd.runs.mirror import Mirror
from dinomaly_hd.runs.store import client_for, default_uri
from dinomaly_hd.runs.sync import Synchronised, lacking, synchronise
from dinomaly_hd.runs.tracker import Tracker
from entry_points import doctor
from entry_points.common import launch
from tests.files import add_domain
from tests.work import NOWHERE

from .light_runs import SMALL

TRIVIAL = resolve_model("trivial", SMALL["trivial"])
started = Tracker.start


def run_without_server(context: Context, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
        outcome = execute(TRIVIAL, context)
    assert outcome.mlflow_run_id is None
    return outcome.folder


def sync(context: Context) -> tuple[Synchronised, list[str]]:
    lines: list[str] = []
    done = synchronise(context.result_dir, root=context.root, say=lines.append, tick=lambda: None)
    return done, lines


def in_mlflow(context: Context, folder: Path) -> Any:
    return client_for(default_uri(context.root)).get_run(read_state(folder)["mlflow_run_id"])


def test_a_run_of_an_outage_is_completed_once(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_without_server(context, monkeypatch)
    assert lacking(context.result_dir) == [folder]
    done, _ = sync(context)
    assert (done.completed, done.refused, done.at_work) == (1, 0, 0)
    assert done.points > 0
    state, run = read_state(folder), in_mlflow(context, folder)
    assert (state["status"], state[IN_MLFLOW], run.info.status) == ("FINISHED", True, "FINISHED")
    assert {"mean/auroc", "mean/tpr_at_fpr_1"} <= run.data.metrics.keys()
    assert len(run.outputs.model_outputs) == 1
    assert sync(context)[0] == Synchronised()


def test_a_slow_server_is_known_at_the_end(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Tracker, "start", lambda self, *, timeout_s: started(self, timeout_s=timeout_s) and None
    )
    outcome = execute(TRIVIAL, context)
    assert outcome.mlflow_run_id is not None
    assert read_state(outcome.folder)["mlflow_run_id"] == outcome.mlflow_run_id
    assert lacking(context.result_dir) == []


def test_a_folder_at_work_or_damaged_stops_no_other_and_one_that_died_is_killed(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work, folders = run_without_server(context, monkeypatch), dict[str, Path]()
    for name in ("damaged", "whole", "died"):  # the same run is not run again for another folder: copies
        folders[name] = Path(shutil.copytree(at_work, context.result_dir / name))
        outbox = folders[name] / "tracking.jsonl"
        lines = [line for line in outbox.read_text().splitlines() if name != "died" or '"ended"' not in line]
        outbox.write_text(re.sub('"key": ?"', f'"key": "{name}', "\n".join(lines)) + "\n")
    (folders["damaged"] / "journal.jsonl").write_text('{"broken\n{"a": 1}\n')
    RunFolder(folders["died"]).set_state(status="RUNNING")
    with filelock.FileLock(at_work / LOCK):
        done, lines = sync(context)
    assert (done.completed, done.refused, done.at_work) == (2, 1, 1)
    assert any("at work" in line for line in lines)
    assert any("damaged" in line and "journal.jsonl" in line for line in lines)
    assert read_state(folders["died"])["status"] == "KILLED"
    assert in_mlflow(context, folders["died"]).info.status == "KILLED"


# ---- a process killed between its run's end and MLflow's: the next start completes MLflow, runs nothing ----


def test_a_finished_run_has_all_of_it_in_mlflow_and_a_store_that_does_not_answer_ends_nothing(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    own = replace(context, folder=context.result_dir / "suite" / "member", say=lines.append)
    with monkeypatch.context() as patch:
        patch.delattr(Mirror, "_do_model")  # the process dies here
        outcome = execute(TRIVIAL, own)
    assert outcome.mlflow_run_id is not None
    client_for(default_uri(context.root)).set_terminated(outcome.mlflow_run_id, "KILLED")
    RunFolder(outcome.folder).set_state(**{IN_MLFLOW: False})

    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
        assert execute(TRIVIAL, own).folder == outcome.folder
    assert any(line.startswith("warning: ") and "MLflow" in line for line in lines)
    assert read_state(outcome.folder)[IN_MLFLOW] is False

    again = execute(TRIVIAL, own)
    assert (again.folder, again.mlflow_run_id) == (outcome.folder, outcome.mlflow_run_id)
    assert {f"already finished: {outcome.folder}", f"completed in MLflow: {outcome.folder}"} <= set(lines)
    run = in_mlflow(context, outcome.folder)
    assert (run.info.status, len(run.outputs.model_outputs)) == ("FINISHED", 1), "the model was logged"
    assert read_state(outcome.folder)[IN_MLFLOW] is True


# ---- doctor ----


def test_doctor_names_what_is_wrong_in_one_line_with_a_runs_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def examined(**flags: str) -> tuple[int, str]:
        told = {"result_dir": str(tmp_path / "results"), "feature_dir": str(tmp_path / "features"), **flags}
        code = launch(doctor.main, [f"--{name}={value}" for name, value in told.items()])
        return code, "".join(capsys.readouterr())

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    code, text = examined()
    assert code == 0, text
    assert "PROBLEM" not in text
    for what in ("Python", "packages", "device", "weights", "results", "features", "MLflow", "runs", "data"):
        assert any(line[8:].startswith(what) for line in text.splitlines()), what
    wrong: list[tuple[dict[str, str], int, str]] = [
        ({"data_root": "/nowhere"}, 65, "/nowhere"),
        ({"encoder": "dinov2reg_vit_small_14", "encoder_weights": "/nowhere.pth"}, 75, "/nowhere.pth"),
        ({"result_dir": "/dev/null/results"}, 74, "/dev/null/results"),
        ({"preset": "quck"}, 64, "Did you mean 'quick'"),
    ]
    for flags, expected, named in wrong:
        code, text = examined(**flags)
        assert code == expected
        assert named in text
    add_domain(tmp_path / "few", "domain_A")
    code, text = examined(data_root=str(tmp_path / "few"))
    assert code == 0, text
    assert "note    data         row_evidence: 3 training maps; it needs at least 10" in text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE.replace("//", "//ann:s3cret@"))
    code, text = examined()
    assert code == 75
    assert f"no server answers at {NOWHERE.replace('//', '//ann:***@')}" in text
    assert "s3cret" not in text
