"""What MLflow must hold of a run, and what a run must not lose to it (spec/reliability.md rows 11, 12)."""

import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from dinomaly_hd.errors import TrackingError
from dinomaly_hd.runs.journal import Journal
from dinomaly_hd.runs.mirror import mirror
from dinomaly_hd.runs.store import client_for, default_uri, prepare_store
from dinomaly_hd.runs.sync import close_runs_not_begun, close_stale_runs, process_tag
from dinomaly_hd.runs.tracker import Tracker
from tests.work import PATIENCE_S, returned

EXPERIMENT = "contract"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its schema: making one takes seconds, copying it none."""
    root = tmp_path_factory.mktemp("prepared")
    prepare_store(f"sqlite:///{root / 'mlflow.db'}", experiment="Template", root=root)
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return root / "mlflow.db"


@pytest.fixture(autouse=True)
def _no_run_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def uri(prepared: Path, tmp_path: Path) -> str:
    shutil.copy(prepared, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def tracker(folder: Path, uri: str, **changes: Any) -> Tracker:
    settings: dict[str, Any] = {
        "uri": uri,
        "experiment": EXPERIMENT,
        "run_name": "topk-ABCD-s42",
        "tags": {"variant": "topk"},
        "root": folder.parent,
        "system_metrics": False,
    }
    return Tracker(folder, **(settings | changes))


def picture(folder: Path) -> Path:
    path = folder / "map.png"
    PIL.Image.fromarray(np.zeros((8, 6, 3), np.uint8)).save(path)
    return path


def points(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client_for(uri).get_metric_history(run_id, key)]


FOR_EVER_S = 1e5


def wait_for(promise: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not promise():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# ---- what a run holds ----


def test_a_run_holds_what_was_logged(uri: str, folder: Path) -> None:
    (folder / "results.json").write_text("{}")
    (folder / "plots").mkdir()
    (folder / "plots" / "roc.png").write_bytes(b"png")
    run = tracker(folder, uri)
    run_id = run.start(timeout_s=PATIENCE_S)
    assert run_id is not None
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
    run.add("dataset", name="domain_C", digest="d" * 64, count=12, source="data/domain_C", context="training")
    assert run.close("FINISHED", timeout_s=PATIENCE_S)

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
    assert found.data.tags.keys() >= {"variant", "kind", "process", "run_key"}
    artifacts = folder.parent / "mlartifacts" / run_id / "artifacts"
    assert sorted(path.name for path in artifacts.iterdir()) == [
        "images",
        "plots",
        "provenance",
        "results.json",
    ]
    assert len(list((artifacts / "images").glob("maps~domain_C+step+*.png"))) == 2
    (dataset,) = found.inputs.dataset_inputs
    assert (dataset.dataset.digest, dataset.dataset.profile) == ("d" * 36, '{"num_rows": 12}')


def test_the_links_open_the_training_pages(uri: str, folder: Path) -> None:
    run = tracker(folder, uri)
    assert run.url() is None
    run_id = run.start(timeout_s=PATIENCE_S)
    experiment = client_for(uri).get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    number = experiment.experiment_id
    base = "http://127.0.0.1:5000/#/experiments"
    assert run.url() == f"{base}/{number}/runs/{run_id}?workflowType=machine_learning"
    charts = str(run.experiment_url())
    assert charts.startswith(f"{base}/{number}/runs?workflowType=machine_learning&compareRunsMode=CHART")
    assert "tags.kind = 'train'" in urllib.parse.unquote(charts), "parents are no runs to chart"
    run.close("FINISHED", timeout_s=PATIENCE_S)


def test_the_pages_that_the_links_name_exist_in_this_mlflow() -> None:
    import mlflow

    scripts = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    text = "".join(path.read_text() for path in scripts.glob("*.js"))
    for name in (
        '"workflowType"',
        '"machine_learning"',
        '"compareRunsMode"',
        '"CHART"',
        "/experiments/:experimentId/runs",
    ):
        assert name in text


def test_a_child_hides_under_its_parent_in_the_experiment_that_mlflow_run_chose(
    uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", client_for(uri).create_run("0").info.run_id)
    parent = tracker(folder, uri)
    parent_id = parent.start(timeout_s=PATIENCE_S)
    (folder / "member").mkdir()
    child = tracker(folder / "member", uri, root=folder.parent, parent_run_id=parent_id)
    child_id = child.start(timeout_s=PATIENCE_S)
    assert child.close("FAILED", timeout_s=PATIENCE_S)
    assert parent.close("FINISHED", timeout_s=PATIENCE_S)
    found = client_for(uri).get_run(str(child_id))
    assert found.data.tags["mlflow.parentRunId"] == parent_id
    assert found.info.experiment_id == "0" == parent.experiment_id
    assert found.info.status == "FAILED"


def test_system_metrics_of_this_machine_are_recorded(
    uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    run = tracker(folder, uri, system_metrics=True)
    run_id = run.start(timeout_s=PATIENCE_S)
    wait_for(lambda: len(points(uri, str(run_id), "system/cpu_utilization_percentage")) >= 2)
    assert run.close("FINISHED", timeout_s=PATIENCE_S)
    assert "SystemMetricsMonitor" not in {thread.name for thread in threading.enumerate()}


def test_nothing_global_is_left_behind(uri: str, folder: Path) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    run = tracker(folder, uri)
    run.start(timeout_s=PATIENCE_S)
    run.close("FINISHED", timeout_s=PATIENCE_S)
    assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() == before
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_importing_the_package_does_not_import_mlflow() -> None:
    program = (
        "import sys, dinomaly_hd.runs.tracker; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# ---- adopted and resumed runs ----


def test_a_run_of_mlflow_run_is_adopted_once_and_keeps_its_parameters(
    uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_for(uri)
    theirs = client.create_run("0", run_name="bold-snail-123")
    client.log_param(theirs.info.run_id, "steps", "'100'")
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs.info.run_id)
    run = tracker(folder, uri)
    assert "MLFLOW_RUN_ID" not in os.environ
    assert run.start(timeout_s=PATIENCE_S) == theirs.info.run_id
    run.params({"steps": 100, "seed": 42})
    assert run.close("FINISHED", timeout_s=PATIENCE_S)
    found = client.get_run(theirs.info.run_id)
    assert found.data.params == {"steps": "'100'", "seed": "42"}
    assert (found.info.experiment_id, found.info.run_name) == ("0", "topk-ABCD-s42")
    assert client.get_experiment_by_name(EXPERIMENT) is None


def test_a_name_given_to_mlflow_run_stays(uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = client_for(uri).create_run("0", run_name="my attempt")
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs.info.run_id)
    run = tracker(folder, uri)
    run.start(timeout_s=PATIENCE_S)
    run.close("FINISHED", timeout_s=PATIENCE_S)
    assert client_for(uri).get_run(theirs.info.run_id).info.run_name == "my attempt"


def test_an_unknown_run_to_adopt_is_refused(uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(TrackingError, match="MLFLOW_RUN_ID=0000"):
        tracker(folder, uri).start(timeout_s=PATIENCE_S)


def test_a_resumed_run_goes_on_without_doubles(uri: str, folder: Path) -> None:
    first = tracker(folder, uri)
    run_id = first.start(timeout_s=PATIENCE_S)
    for step in range(50):
        first.metrics({"train/loss": step / 3}, step=step)
    first.add("image", picture(folder), key="maps", step=1)
    assert first.close("KILLED", timeout_s=PATIENCE_S)

    Journal(folder / "journal.jsonl").truncate_after(30)
    second = tracker(folder, uri)
    assert second.start(timeout_s=PATIENCE_S) == run_id
    assert client_for(uri).get_run(str(run_id)).info.status == "RUNNING"
    for step in range(31, 80):
        second.metrics({"train/loss": step / 3}, step=step)
    second.add("image", picture(folder), key="maps", step=1)
    assert second.close("FINISHED", timeout_s=PATIENCE_S)
    assert points(uri, str(run_id), "train/loss") == [(step, step / 3) for step in range(80)]
    images = folder.parent / "mlartifacts" / str(run_id) / "artifacts" / "images"
    assert len(list(images.glob("*.png"))) == 1


def test_a_new_run_gets_the_whole_history_of_an_old_folder(
    uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tracker(folder, uri)
    old = first.start(timeout_s=PATIENCE_S)
    first.metrics({"train/loss": 1.0}, step=1)
    first.params({"seed": 42})
    assert first.close("KILLED", timeout_s=PATIENCE_S)
    monkeypatch.setenv("MLFLOW_RUN_ID", client_for(uri).create_run("0").info.run_id)
    second = tracker(folder, uri)
    new = second.start(timeout_s=PATIENCE_S)
    second.metrics({"train/loss": 0.5}, step=2)
    assert second.close("FINISHED", timeout_s=PATIENCE_S)
    assert new != old
    assert points(uri, str(new), "train/loss") == [(1, 1.0), (2, 0.5)]
    assert client_for(uri).get_run(str(new)).data.params == {"seed": "42"}


def test_a_run_that_was_deleted_is_made_anew(
    uri: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tracker(folder, uri, resume_run_id="f" * 32)
    run_id = run.start(timeout_s=PATIENCE_S)
    assert run_id not in (None, "f" * 32)
    assert "not there any more" in caplog.text
    run.close("FINISHED", timeout_s=PATIENCE_S)


def test_an_answer_lost_on_create_makes_no_second_run(uri: str, folder: Path) -> None:
    lost = tracker(folder, uri)
    run_id = lost.start(timeout_s=PATIENCE_S)
    lost.close("KILLED", timeout_s=PATIENCE_S)
    log = folder / "tracking.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(True) if "attached" not in line))
    again = tracker(folder, uri)
    assert again.start(timeout_s=PATIENCE_S) == run_id
    again.close("FINISHED", timeout_s=PATIENCE_S)


# ---- outages ----


@pytest.mark.parametrize("server", ["closed port", "accepts and never answers"])
def test_a_dead_server_is_not_waited_for_and_a_later_sync_completes_the_run(
    server: str, uri: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.ExitStack() as stack:
        port = closed_port()
        if server != "closed port":
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = listener.getsockname()[1]
        run = tracker(folder, f"http://127.0.0.1:{port}")
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
    run = tracker(folder, uri)
    run_id = run.start(timeout_s=PATIENCE_S)
    run.metrics({"loss": 0.0}, step=0)
    wait_for(lambda: points(uri, str(run_id), "loss") == [(0, 0.0)])
    with outage(monkeypatch):
        for step in range(1, 100):
            run.metrics({"loss": float(step)}, step=step)
            run.params({f"p{step}": step})
        wait_for(lambda: any("fails" in record.message for record in caplog.records))
        assert len(points(uri, str(run_id), "loss")) == 1
    assert run.close("FINISHED", timeout_s=PATIENCE_S)
    assert points(uri, str(run_id), "loss") == [(step, float(step)) for step in range(100)]
    assert len(client_for(uri).get_run(str(run_id)).data.params) == 99
    assert sum("fails" in record.message for record in caplog.records) == 1


def test_what_the_store_refuses_does_not_stop_the_rest(
    uri: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tracker(folder, uri)
    run_id = run.start(timeout_s=PATIENCE_S)
    (folder / "gone.txt").touch()
    run.artifact(folder / "gone.txt")
    (folder / "gone.txt").unlink()
    run.tags({"kind": "later"})
    assert not run.close("FINISHED", timeout_s=PATIENCE_S)
    found = client_for(uri).get_run(str(run_id))
    assert (found.info.status, found.data.tags["kind"]) == ("FINISHED", "later")
    assert "does not take artifact gone.txt" in caplog.text
    (folder / "gone.txt").touch()
    again = mirror(folder, uri=uri, root=folder.parent)
    assert (again.points, again.operations, again.refused) == (0, 1, 0)


KILLED = """
import os, pathlib, sys
from dinomaly_hd.runs.journal import Journal
from dinomaly_hd.runs.tracker import Tracker

folder = pathlib.Path(sys.argv[1])
settings = {"experiment": "contract", "run_name": "r", "tags": {}, "system_metrics": False}
run = Tracker(folder, uri=sys.argv[2], root=folder.parent, **settings)
run.start(timeout_s=600)
run.params({"seed": 42})
for step in range(500):
    run.metrics({"loss": step / 9}, step=step)
os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_all_for_a_sync(uri: str, folder: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, str(folder), uri], check=False)
    assert ended.returncode == -9
    report = mirror(folder, uri=uri, root=folder.parent)
    assert points(uri, report.run_id, "loss") == [(step, step / 9) for step in range(500)]
    client = client_for(uri)
    assert client.get_run(report.run_id).data.params == {"seed": "42"}
    assert close_stale_runs(client, client.get_run(report.run_id).info.experiment_id) == [report.run_id]
    assert client.get_run(report.run_id).info.status == "KILLED"


def test_a_folder_that_was_never_tracked_is_named(uri: str, folder: Path) -> None:
    with pytest.raises(TrackingError, match=r"no tracking\.jsonl"):
        mirror(folder, uri=uri, root=folder.parent)


# ---- the store ----


def test_runs_left_behind_are_closed_and_no_others(uri: str) -> None:
    client = client_for(uri)
    host, pid, started, namespace, now = process_tag()["process"].split(" ")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    old = "2020-01-01T00:00:00+00:00"
    runs = {
        "alive": (host, pid, started, namespace, now),
        "dead": (host, dead.pid, started, namespace, now),
        "pid reused": (host, pid, "1000.00", namespace, now),
        "other host": ("elsewhere", dead.pid, started, namespace, now),
        "other container": (host, dead.pid, started, "other", now),
        "other container, silent": (host, dead.pid, started, "other", old),
        "not ours": (host, "x"),
    }
    tags = {name: {"process": " ".join(map(str, parts))} for name, parts in runs.items()}
    ids = {client.create_run("0", tags=own).info.run_id: name for name, own in tags.items()}
    closed = {ids[run_id] for run_id in close_stale_runs(client, "0")}
    assert closed == {"dead", "pid reused", "other container, silent"}
    killed = {ids[run.info.run_id] for run in client.search_runs(["0"]) if run.info.status == "KILLED"}
    assert killed == closed


def test_runs_that_mlflow_run_left_before_they_began_are_closed_and_no_others(uri: str) -> None:
    client, now_ms = client_for(uri), int(time.time() * 1000)
    old_ms = now_ms - 2 * 3600 * 1000
    ours = {"mlflow.source.type": "PROJECT", "mlflow.project.entryPoint": "topk"}
    runs = {
        "never began": (old_ms, ours),
        "may still begin": (now_ms, ours),
        "began": (old_ms, {**ours, "run_key": "k"}),
        "another project's": (old_ms, {**ours, "mlflow.project.entryPoint": "main"}),
        "no project's": (old_ms, {}),
    }
    ids = {client.create_run("0", *own).info.run_id: name for name, own in runs.items()}
    closed = close_runs_not_begun(client, "0", entry_points={"topk", "gem"})
    assert [ids[run_id] for run_id in closed] == ["never began"]
    failed = [ids[run.info.run_id] for run in client.search_runs(["0"]) if run.info.status == "FAILED"]
    assert failed == ["never began"]


def test_the_experiment_is_made_once_with_its_artifacts_in_the_project(uri: str, tmp_path: Path) -> None:
    first = prepare_store(uri, experiment="new one", root=tmp_path)
    assert prepare_store(uri, experiment="new one", root=tmp_path / "elsewhere") == first
    location = client_for(uri).get_experiment(first).artifact_location
    assert location == (tmp_path / "mlartifacts").as_uri()


def test_the_default_address_is_the_projects_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_uri(tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert default_uri(tmp_path) == "http://127.0.0.1:5000"


def test_a_bad_store_or_experiment_is_one_error(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="experiment ''"):
        prepare_store(uri, experiment="", root=tmp_path)
    (tmp_path / "text.db").write_text("this is no database, whatever its name says" * 30)
    with pytest.raises(TrackingError, match="not a database"):
        prepare_store(f"sqlite:///{tmp_path / 'text.db'}", experiment="x", root=tmp_path)
    number = prepare_store(uri, experiment="deleted", root=tmp_path)
    client_for(uri).delete_experiment(number)
    with pytest.raises(TrackingError, match="it was deleted; restore it"):
        prepare_store(uri, experiment="deleted", root=tmp_path)


def test_a_bad_experiment_stops_the_start(uri: str, folder: Path) -> None:
    with pytest.raises(TrackingError, match="experiment ''"):
        tracker(folder, uri, experiment="").start(timeout_s=PATIENCE_S)


def test_a_foreign_folder_sends_nothing_from_outside_of_it(uri: str, folder: Path) -> None:
    secret = folder.parent / "secret.txt"
    secret.write_text("secret")
    (folder / "link.txt").symlink_to(secret)
    (folder / "plots").mkdir()
    (folder / "plots" / "link.txt").symlink_to(secret)
    run = tracker(folder, uri)
    run_id = run.start(timeout_s=PATIENCE_S)
    for path in (secret, folder / ".." / "secret.txt"):
        run.artifact(path)
    run._outbox.add("artifact", path="../secret.txt", folder=None)
    run._outbox.add("artifact", path="link.txt", folder=None)
    run.artifact(folder / "plots", folder="plots")
    assert not run.close("FINISHED", timeout_s=PATIENCE_S), "what was refused is not delivered"
    assert client_for(uri).list_artifacts(str(run_id)) == []
