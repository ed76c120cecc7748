"""A process killed between its run's end and MLflow's: the next start completes MLflow and runs nothing."""

from dataclasses import replace

import pytest

from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.experiments.run import Outcome, execute
from dinomaly_hd.runs.folder import IN_MLFLOW, Context, RunFolder, read_state
from dinomaly_hd.runs.mirror import Mirror
from dinomaly_hd.runs.store import client_for, default_uri

from .light_runs import SMALL


@pytest.fixture
def killed(context: Context, monkeypatch: pytest.MonkeyPatch) -> tuple[Outcome, Context]:
    """Return a member that is finished in its folder, and whose MLflow run lacks model and end."""

    def dies(*_: object, **__: object) -> None:
        raise ValueError("the process dies here")

    own = replace(context, folder=context.result_dir / "suite" / "member")
    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "_do_model", dies)
        outcome = execute(resolve_model("trivial", SMALL["trivial"]), own)
    assert outcome.mlflow_run_id is not None
    client_for(default_uri(context.root)).set_terminated(outcome.mlflow_run_id, "KILLED")
    RunFolder(outcome.folder, resumed=True).set_state(**{IN_MLFLOW: False})
    return outcome, own


def test_a_finished_run_has_all_of_it_in_mlflow_and_says_so(killed: tuple[Outcome, Context]) -> None:
    outcome, context = killed
    lines: list[str] = []
    again = execute(resolve_model("trivial", SMALL["trivial"]), replace(context, say=lines.append))
    assert (again.folder, again.mlflow_run_id) == (outcome.folder, outcome.mlflow_run_id)
    assert f"already finished: {outcome.folder}" in lines
    assert f"completed in MLflow: {outcome.folder}" in lines
    assert outcome.mlflow_run_id is not None
    run = client_for(default_uri(context.root)).get_run(outcome.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.outputs is not None
    assert len(run.outputs.model_outputs) == 1, "the model was logged"
    assert read_state(outcome.folder)[IN_MLFLOW] is True


def test_a_store_that_does_not_answer_is_named_and_ends_nothing(
    killed: tuple[Outcome, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, context = killed
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    lines: list[str] = []
    again = execute(resolve_model("trivial", SMALL["trivial"]), replace(context, say=lines.append))
    assert again.folder == outcome.folder
    assert any(line.startswith("warning: ") and "MLflow" in line for line in lines)
    assert read_state(outcome.folder)[IN_MLFLOW] is False
