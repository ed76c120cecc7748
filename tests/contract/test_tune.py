"""`tune`: a real study of a few steps, what it leaves behind, and what it refuses in one line."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dinomaly_hd.config.conditions_file import read_conditions
from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.data.simulator import simulate
from dinomaly_hd.errors import NonFiniteError, SignalGuard
from dinomaly_hd.experiments import trial
from dinomaly_hd.runs.folder import Context
from dinomaly_hd.runs.store import client_for
from dinomaly_hd.tuning.storage import VARIABLE, address_of, connect
from entry_points import tune, tune_worker
from entry_points.common import launch

from .conftest import SETTINGS
from .light_runs import without_pictures

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ("seed", "maps_per_group", "simulate_size")
TINY = {name: text for name, text in SETTINGS.items() if name not in OTHERS}
TINY |= {"domains": "B,C", "image_size": "32x48", "heartbeat_s": "5", "synthetic_copies": "2"}


class Found(NamedTuple):
    folder: Path
    flags: dict[str, str]
    runs: list[Any]  # MLflow's


def arguments(values: dict[str, str]) -> list[str]:
    return [f"--{name}={text}" for name, text in values.items()]


def flags_in(root: Path, **more: str) -> dict[str, str]:
    own = {"storage": f"sqlite:///{root / 'optuna.db'}", "result_dir": str(root / "results")}
    data_root = str(simulate(root / "maps", size="tiny", seed=0))
    return {**TINY, **own, "data_root": data_root, "experiment": "tune", **more}


@pytest.fixture(scope="module")
def root(place: Context) -> Iterator[Path]:
    """Give this module's studies one MLflow store, and runs without pictures and model copies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VARIABLE, raising=False)
        without_pictures(patch)
        yield place.root


@pytest.fixture(autouse=True)
def quiet(root: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    del recwarn  # other packages' warnings are not ours to mend
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")


@pytest.fixture(scope="module")
def found(root: Path) -> Found:
    """Run three trials: F, G, and a suggested one."""
    flags = flags_in(root, study="first", trials="3", space="row_p,q_percent,row_context")
    with SignalGuard() as guard:
        tune.main(arguments({**flags, "trials": "2"}), guard)
        tune.main(arguments(flags), guard)  # tops up
    client = client_for(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tune")
    assert experiment is not None
    runs = list(client.search_runs([experiment.experiment_id]))
    return Found(root / "results" / "tune" / "first", flags, runs)


def test_every_trial_is_an_mlflow_run_with_its_seeds_below_it(found: Found) -> None:
    (study,) = [run for run in found.runs if run.data.tags["kind"] == "study"]
    trials = [r for r in found.runs if r.data.tags.get("mlflow.parentRunId") == study.info.run_id]
    assert sorted(run.data.tags["trial"] for run in trials) == ["0", "1", "2"]
    assert {run.data.tags["kind"] for run in trials} == {"trial"}
    first = next(run for run in trials if run.data.tags.get("setting") == "cfg-F")
    assert first.data.params == {"row_p": "0.2", "q_percent": "2", "row_context": "0"}
    (seed,) = [r for r in found.runs if r.data.tags.get("mlflow.parentRunId") == first.info.run_id]
    for name in ("synthetic/domain_C/tpr_at_fpr_1", "synthetic/mean/auroc", "mean/auroc"):
        assert first.data.metrics[name] == pytest.approx(seed.data.metrics[name], abs=1e-4)
    assert {run.info.status for run in found.runs} == {"FINISHED"}
    assert max(len(run.data.metrics) for run in found.runs) <= 60, "each is a chart"
    assert "best/synthetic/domain_C/tpr_at_fpr_1" in study.data.metrics
    assert "Found and known settings" in study.data.tags["mlflow.note.content"]


def test_the_best_is_reported_with_its_exact_command_and_conditions_file(found: Found) -> None:
    text = (found.folder / "report.md").read_text()
    assert "3 complete" in text or "2 complete, 1 pruned" in text
    assert "0 (cfg-F)" in text
    assert "domain_C/tpr_at_fpr_1 (test, not used)" in text
    assert (found.folder / "report.html").read_text().count("<img") >= 3
    plots = {path.stem for path in (found.folder / "plots").iterdir()}
    assert plots >= {"history", "parallel_coordinates", "slices"}
    assert len((found.folder / "trials.csv").read_text().splitlines()) == 4

    best = next(line for line in text.splitlines() if "mlflow run" in line)
    words = shlex.split(best)
    told = dict(word.split("=", 1) for word in words[6:-2:2])
    again = resolve_model(words[4], told)
    states = [json.loads(path.read_text()) for path in found.folder.glob("trial_*/seed42/run.json")]
    assert again.digest() in {one["config_hash"].split("-")[0] for one in states}
    (condition,) = read_conditions(found.folder / "best.yaml")
    values = {**condition.values, "preset": "quick"}
    assert resolve_model(values.pop("variant"), values).digest() == again.digest()
    assert condition.name == "first_best"


def test_a_stopped_trial_goes_on_in_its_folder_and_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = flags_in(root, study="stopped", trials="1", space="row_p", max_steps="3", checkpoint_interval="1")
    execute, guard = trial.execute, SignalGuard()
    starts: list[Any] = []

    def stopped_once(run: Any, context: Any) -> Any:
        starts.append(context)
        if len(starts) == 1:
            guard.received = 15
        return execute(run, context)

    monkeypatch.setattr(trial, "execute", stopped_once)
    assert launch(lambda argv, _: tune.main(argv, guard), arguments(flags)) == 128 + 15
    assert launch(tune.main, arguments(flags)) == 0
    assert starts[0].folder == starts[1].folder
    assert starts[0].parent_run_id == starts[1].parent_run_id
    database = connect(address_of(flags["storage"], root=root))
    trials = database.get_all_trials(database.get_study_id_from_name("stopped"))
    assert [one.state.name for one in trials] == ["FAIL", "COMPLETE"]


def test_a_trial_is_the_mean_of_its_seeds_and_two_objectives_have_a_front(root: Path) -> None:
    metrics = "mean/auroc,domain_C/tpr_at_fpr_5"
    more = {"space": "row_p", "seeds": "42,43", "metrics": metrics, "synthetic_copies": "3"}
    flags = flags_in(root, study="front", trials="1", **more)
    assert launch(tune.main, arguments(flags)) == 0
    folder = root / "results" / "tune" / "front"
    results = [json.loads(path.read_text()) for path in folder.glob("trial_0000/seed*/results.json")]
    mean = sum(one["synthetic"]["mean"]["auroc"] for one in results) / 2
    row = (folder / "trials.csv").read_text().splitlines()[1].split(",")
    assert len(results) == 2
    assert float(row[3]) == pytest.approx(mean)
    assert (folder / "plots" / "pareto_front.png").is_file()
    assert "-P seeds=42,43" in (folder / "report.md").read_text()


def test_a_study_whose_trials_all_diverge_ends_and_names_them(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverges(*_: object) -> None:
        raise NonFiniteError("step 1: loss nan")

    monkeypatch.setattr(trial, "execute", diverges)
    assert launch(tune.main, arguments(flags_in(root, study="bad", trials="1", space="row_p"))) == 71
    out, error = capsys.readouterr()
    assert error.count("\n") == 1
    assert "0 of 1 trials finished, 4 failed" in error
    assert "step 1: loss nan" in out


def test_what_cannot_join_a_study_is_refused_in_one_line(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(**flags: str) -> str:
        assert launch(tune.main, arguments({**found.flags, **flags})) == 64
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "secret" not in line
        return str(line)

    assert "study first has max_steps=2 (here 3)" in refused(max_steps="3")
    with monkeypatch.context() as patch:
        patch.setattr("dinomaly_hd.provenance.code_digest", lambda: "0123456789abcdef")
        line = refused()
    assert "study first: its trials were run by code" in line
    assert "here it is 0123456789abcdef" in line
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)  # MLflow shows the parameters of `mlflow run`
    assert "PGPASSWORD" in refused(storage="postgresql://me:secret@127.0.0.1:9/db")

    job = tmp_path / "job.json"
    for content, message in (
        ({"code_digest": "other", "flags": {}}, "made by code other"),
        ({"flags": {}}, "the study's storage is not known"),
    ):
        job.write_text(json.dumps(content))
        assert launch(tune_worker.main, ["--config", str(job)]) == 64
        assert message in capsys.readouterr().err
