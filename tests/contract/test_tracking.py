"""What MLflow must hold of a run, and what a run must not lose to it (spec/reliability.md row 11)."""

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from dinomaly_hd.errors import TrackingError
from dinomaly_hd.runs.journal import KEY_TAG, Journal, Outbox
from dinomaly_hd.runs.mirror import mirror
from dinomaly_hd.runs.processes import PROCESS_TAG, close_runs_not_begun, close_stale_runs, process_tag
from dinomaly_hd.runs.store import client_for, default_uri, prepare_store
from dinomaly_hd.runs.tracker import Status, Tracker
from tests.work import PATIENCE_S, returned, wait_for

EXPERIMENT = "contract"
FOR_EVER_S = 1e5


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def tracker(
    folder: Path,
    uri: str,
    *,
    experiment: str = EXPERIMENT,
    parent: str | None = None,
    resumed: str | None = None,
    system_metrics: bool = False,
) -> Tracker:
    outbox = Outbox(folder)
    how: dict[str, Any] = {"run_name": "topk-ABCD-s42", "tags": {"variant": "topk"}}
    outbox.open_run(experiment=experiment, parent_run_id=parent, **how)
    return Tracker(outbox, uri=uri, root=folder.parent, resumed=resumed, system_metrics=system_metrics)


def started(folder: Path, uri: str, **changes: Any) -> tuple[Tracker, str]:
    run = tracker(folder, uri, **changes)
    run_id = run.start(timeout_s=PATIENCE_S)
    assert run_id is not None
    return run, run_id


def end(run: Tracker, status: Status = "FINISHED") -> None:
    assert run.close(status, timeout_s=PATIENCE_S)


def picture(folder: Path) -> Path:
    path = folder / "map.png"
    PIL.Image.fromarray(np.zeros((8, 6, 3), np.uint8)).save(path)
    return path


def points(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client_for(uri).get_metric_history(run_id, key)]


# ---- what a run holds ----


def test_a_run_holds_what_was_logged_and_leaves_nothing_global(uri: str, folder: Path) -> None:
    import mlflow

    (folder / "results.json").write_text("{}")
    (folder / "plots").mkdir()
    (folder / "plots" / "roc.png").write_bytes(b"png")
    before, run = mlflow.get_tracking_uri(), tracker(folder, uri)
    assert run.pages() == []
    run_id = str(run.start(timeout_s=PATIENCE_S))
    for step in range(1500):
        run.metrics({"train/loss": 1 / (step + 1), "train/lr": 1e-3}, step=step)
    run.metrics({"domain_C/auroc": float("nan"), "odd (name)": 1.0}, step=1500)
    run.params({"learning_rate": 0.001, "long": "x" * 9000} | {f"value{i}": i for i in range(150)})
    run.tags({"kind": "baseline"})
    run.note("# repeat me")
    run.add("text", text="diff", file="provenance/git.diff")
    run.artifact(folder / "results.json")
    run.artifact(folder / "plots", folder="plots")
    for step in (3, 4):
        run.add("image", picture(folder), key="maps/domain_C", step=step)
    data = {"name": "domain_C", "digest": "d" * 64, "count": 12, "source": "data/domain_C"}
    run.add("dataset", **data, context="training", figures={"AUROC of max, %": "mean 57.99"})
    shown = {"columns": {"metrics": ["train/loss"]}, "charts": ["train/loss"], "images": ["maps/a+b"]}
    run.view("tags.kind = 'x'", name=None, group_by="kind", **shown)
    run.view("tags.kind = 'baseline'", name="Runs on A+B", **shown)
    end(run)

    client = client_for(uri)
    found = client.get_run(run_id)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "topk-ABCD-s42")
    assert points(uri, run_id, "train/loss") == [(step, 1 / (step + 1)) for step in range(1500)]
    assert len(points(uri, run_id, "domain_C/auroc")) == 1
    assert found.data.metrics["odd _name_"] == 1.0
    assert found.data.params["learning_rate"] == "0.001"
    assert len(found.data.params["long"]) == 6000
    assert len(found.data.params) == 152
    assert found.data.tags["mlflow.note.content"] == "# repeat me"
    ours = {name for name in found.data.tags if not name.startswith("mlflow.")}
    assert ours == {"variant", "kind"}, "MLflow hides what begins with its name"
    assert found.data.tags.keys() >= {PROCESS_TAG, KEY_TAG}
    artifacts = folder.parent / "mlartifacts" / run_id / "artifacts"
    assert sorted(os.listdir(artifacts)) == ["images", "plots", "provenance", "results.json"]
    assert len(list((artifacts / "images").glob("maps~domain_C+step+*.png"))) == 2
    (dataset,) = found.inputs.dataset_inputs
    assert dataset.dataset.digest == "d" * 36
    assert json.loads(dataset.dataset.profile) == {"num_rows": 12, "AUROC of max, %": "mean 57.99"}

    base = f"http://127.0.0.1:5000/#/experiments/{found.info.experiment_id}/runs"
    page, runs = run.pages()
    assert page == f"{base}/{run_id}?workflowType=machine_learning"
    asked = "workflowType=machine_learning&compareRunsMode=TABLE&viewStateShareKey=Runs%20on%20A_B"
    assert runs == f"{base}?{asked}"
    views = client.get_experiment(found.info.experiment_id).tags
    own = json.loads(views[f"mlflow.sharedViewState.{run_id}"])
    assert (own["searchFilter"], len(own["compareRunCharts"])) == ("tags.kind = 'x'", 1)
    saved = json.loads(views["mlflow.sharedViewState.Runs on A_B"])
    assert saved["name"] == "Runs on A+B"
    assert json.loads(saved["state"])["compareRunCharts"][1]["imageKeys"] == ["maps/a_b"]
    assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() == before
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_child_hides_under_its_parent_in_the_experiment_that_mlflow_run_chose(
    uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", client_for(uri).create_run("0").info.run_id)
    parent, parent_id = started(folder, uri)
    (folder / "member").mkdir()
    child, child_id = started(folder / "member", uri, parent=parent_id)
    end(child, "FAILED")
    end(parent)
    found = client_for(uri).get_run(child_id)
    assert found.data.tags["mlflow.parentRunId"] == parent_id
    assert found.info.experiment_id == "0" == parent.experiment_id
    assert found.info.status == "FAILED"


def test_system_metrics_are_recorded(uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    run, run_id = started(folder, uri, system_metrics=True)
    wait_for(lambda: len(points(uri, run_id, "system/cpu_utilization_percentage")) >= 2)
    end(run)
    machine = {name for name in client_for(uri).get_run(run_id).data.metrics if name.startswith("system/")}
    assert not any("disk" in name or "network" in name for name in machine)
    assert "SystemMetricsMonitor" not in {thread.name for thread in threading.enumerate()}


# ---- adopted and resumed runs ----


def test_a_run_of_mlflow_run_is_adopted_once_and_keeps_its_parameters_and_a_name_that_was_given(
    uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_for(uri)
    for name, expected in (("bold-snail-123", "topk-ABCD-s42"), ("my attempt", "my attempt")):
        own = folder / name
        own.mkdir()
        theirs = client.create_run("0", run_name=name).info.run_id
        client.log_param(theirs, "steps", "'100'")
        monkeypatch.setenv("MLFLOW_RUN_ID", theirs)
        run = tracker(own, uri)
        assert "MLFLOW_RUN_ID" not in os.environ
        assert run.start(timeout_s=PATIENCE_S) == theirs
        run.params({"steps": 100, "seed": 42})
        end(run)
        found = client.get_run(theirs)
        assert found.data.params == {"steps": "'100'", "seed": "42"}
        assert (found.info.experiment_id, found.info.run_name) == ("0", expected)
    assert client.get_experiment_by_name(EXPERIMENT) is None
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(TrackingError, match="MLFLOW_RUN_ID=0000"):
        tracker(folder, uri).start(timeout_s=PATIENCE_S)


def test_a_resumed_run_goes_on_without_doubles_and_a_new_one_gets_the_whole_history(
    uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, run_id = started(folder, uri)
    for step in range(50):
        first.metrics({"train/loss": step / 3}, step=step)
    first.metrics({"mean/auroc": 0.9}, step=0)  # killed between its final figures and its end
    first.add("image", picture(folder), key="maps", step=1)
    first.params({"seed": 42})
    end(first, "KILLED")

    Journal(folder / "journal.jsonl").truncate_after(30)
    second, again = started(folder, uri)
    assert again == run_id
    assert client_for(uri).get_run(run_id).info.status == "RUNNING"
    for step in range(31, 80):
        second.metrics({"train/loss": step / 3}, step=step)
    second.metrics({"mean/auroc": 0.8}, step=0)
    second.add("image", picture(folder), key="maps", step=1)
    end(second)
    assert client_for(uri).get_run(run_id).data.metrics["mean/auroc"] == 0.8
    history = [(step, step / 3) for step in range(80)]
    assert points(uri, run_id, "train/loss") == history
    images = folder.parent / "mlartifacts" / run_id / "artifacts" / "images"
    assert len(list(images.glob("*.png"))) == 1

    monkeypatch.setenv("MLFLOW_RUN_ID", client_for(uri).create_run("0").info.run_id)
    third, new = started(folder, uri)
    third.metrics({"train/loss": 0.5}, step=80)
    end(third)
    assert new != run_id
    assert points(uri, new, "train/loss") == [*history, (80, 0.5)]
    assert client_for(uri).get_run(new).data.params == {"seed": "42"}


def test_a_deleted_run_is_made_anew_and_an_answer_lost_on_create_makes_no_second_one(
    uri: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, run_id = started(folder, uri, resumed="f" * 32)
    assert run_id != "f" * 32
    assert "not there any more" in caplog.text
    end(run, "KILLED")
    log = folder / "tracking.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(True) if "attached" not in line))
    again, found = started(folder, uri)
    assert found == run_id
    end(again)


# ---- outages ----


def test_a_silent_server_is_not_waited_for_and_a_later_sync_completes_the_run(
    uri: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that accepts and never answers; that one which is not there ends no run: test_upkeep.py."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        run = tracker(folder, f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert returned(lambda: run.start(timeout_s=FOR_EVER_S)) is None
        for step in range(200):
            run.metrics({"train/loss": step / 7}, step=step)
        run.params({"seed": 42})
        run.add("image", picture(folder), key="maps", step=1)
        assert not returned(lambda: run.close("FINISHED", timeout_s=FOR_EVER_S))
    assert len(Journal(folder / "journal.jsonl").history()["train/loss"]) == 200
    assert "lacks part of this run" in caplog.text

    report = mirror(folder, uri=uri, root=folder.parent)
    assert (report.points, report.operations, report.refused) == (200, 2, 0)
    again = mirror(folder, uri=uri, root=folder.parent)
    assert (again.run_id, again.points, again.operations, again.refused) == (report.run_id, 0, 0, 0)
    found = client_for(uri).get_run(report.run_id)
    assert (found.info.status, found.data.params) == ("FINISHED", {"seed": "42"})
    assert points(uri, report.run_id, "train/loss") == [(step, step / 7) for step in range(200)]


@contextlib.contextmanager
def outage(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every write to the store fail as it does when a server is gone."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    def fail(*_: object, **__: object) -> None:
        raise MlflowException("API request failed with exception: connection refused")

    with monkeypatch.context() as patch:
        for name in ("log_batch", "get_run", "set_terminated"):
            patch.setattr(MlflowClient, name, fail)
        yield


def test_an_outage_in_the_midst_is_told_once_and_made_up_for(
    uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dinomaly_hd.runs.tracker.FLUSH_S", 0.05)
    monkeypatch.setattr("dinomaly_hd.runs.tracker.LONGEST_PAUSE_S", 0.1)
    run, run_id = started(folder, uri)
    run.metrics({"loss": 0.0}, step=0)
    wait_for(lambda: points(uri, run_id, "loss") == [(0, 0.0)])
    with outage(monkeypatch):
        for step in range(1, 100):
            run.metrics({"loss": float(step)}, step=step)
            run.params({f"p{step}": step})
        wait_for(lambda: any("fails" in record.message for record in caplog.records))
        assert len(points(uri, run_id, "loss")) == 1
    end(run)
    assert points(uri, run_id, "loss") == [(step, float(step)) for step in range(100)]
    assert len(client_for(uri).get_run(run_id).data.params) == 99
    assert sum("fails" in record.message for record in caplog.records) == 1


def test_what_is_refused_or_outside_stops_no_rest(
    uri: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret, gone = folder.parent / "secret.txt", folder / "gone.txt"
    secret.write_text("secret")
    (folder / "plots").mkdir()
    for link in (folder / "link.txt", folder / "plots" / "link.txt"):
        link.symlink_to(secret)
    run, run_id = started(folder, uri)
    gone.touch()
    run.artifact(gone)
    gone.unlink()
    for path in (secret, folder / ".." / "secret.txt"):
        run.artifact(path)
    for name in ("../secret.txt", "link.txt"):
        run._outbox.add("artifact", path=name, folder=None)
    run.artifact(folder / "plots", folder="plots")
    run.tags({"kind": "later"})
    assert not run.close("FINISHED", timeout_s=PATIENCE_S), "what was refused is not delivered"
    found = client_for(uri).get_run(run_id)
    assert (found.info.status, found.data.tags["kind"]) == ("FINISHED", "later")
    assert "does not take artifact gone.txt" in caplog.text
    assert caplog.text.count("does not take") == 2, "of one cause the first thing is named"
    gone.touch()
    assert mirror(folder, uri=uri, root=folder.parent).operations == 1
    assert [item.path for item in client_for(uri).list_artifacts(run_id)] == ["gone.txt"]


# ---- the store ----


def test_runs_left_behind_are_closed_and_no_others(uri: str) -> None:
    client = client_for(uri)
    host, pid, begun, namespace, now = process_tag()[PROCESS_TAG].split(" ")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    at_work = {
        "alive": (host, pid, begun, namespace, now),
        "dead": (host, dead.pid, begun, namespace, now),
        "pid reused": (host, pid, "1000.00", namespace, now),
        "other host": ("elsewhere", dead.pid, begun, namespace, now),
        "other container": (host, dead.pid, begun, "other", now),
        "other container, silent": (host, dead.pid, begun, "other", "2020-01-01T00:00:00+00:00"),
        "not ours": (host, "x"),
    }
    now_ms = int(time.time() * 1000)
    old_ms = now_ms - 2 * 3600 * 1000
    ours = {"mlflow.source.type": "PROJECT", "mlflow.project.entryPoint": "topk"}
    runs: dict[str, tuple[int, dict[str, str]]] = {
        **{name: (now_ms, {PROCESS_TAG: " ".join(map(str, parts))}) for name, parts in at_work.items()},
        "never began": (old_ms, ours),
        "may still begin": (now_ms, ours),
        "began": (old_ms, {**ours, KEY_TAG: "k"}),
        "another project's": (old_ms, {**ours, "mlflow.project.entryPoint": "main"}),
        "no project's": (old_ms, {}),
    }
    names = {client.create_run("0", *own).info.run_id: name for name, own in runs.items()}
    killed = close_stale_runs(client, "0")
    assert {names[run_id] for run_id in killed} == {"dead", "pid reused", "other container, silent"}
    failed = close_runs_not_begun(client, "0", entry_points={"topk", "gem"})
    assert [names[run_id] for run_id in failed] == ["never began"]
    for status, closed in (("KILLED", killed), ("FAILED", failed)):
        found = client.search_runs(["0"], f"attributes.status = '{status}'")
        assert {run.info.run_id for run in found} == set(closed)


def test_the_store_is_the_projects_file_and_what_is_wrong_with_it_is_one_error(
    uri: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_uri(tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert default_uri(tmp_path) == "http://127.0.0.1:5000"

    first = prepare_store(uri, experiment="new one", root=tmp_path)
    assert prepare_store(uri, experiment="new one", root=tmp_path / "elsewhere") == first
    location = client_for(uri).get_experiment(first).artifact_location
    assert location == (tmp_path / "mlartifacts").as_uri()
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    with pytest.raises(TrackingError, match=r"no tracking\.jsonl"):
        mirror(folder, uri=uri, root=folder.parent)
    with pytest.raises(TrackingError, match="experiment ''"):
        tracker(folder, uri, experiment="").start(timeout_s=PATIENCE_S)
    (tmp_path / "text.db").write_text("this is no database, whatever its name says" * 30)
    with pytest.raises(TrackingError, match="not a database"):
        prepare_store(f"sqlite:///{tmp_path / 'text.db'}", experiment="x", root=tmp_path)
    client_for(uri).delete_experiment(first)
    with pytest.raises(TrackingError, match="it was deleted; restore it"):
        prepare_store(uri, experiment="new one", root=tmp_path)
