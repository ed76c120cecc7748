"""`baseline mode=compare`: one unified model, one a domain, their differences; resumed, not begun anew."""

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dinomaly_hd.config import RunConfig
from dinomaly_hd.errors import ConfigError, Interrupted
from dinomaly_hd.experiments.context import Context
from dinomaly_hd.experiments.multiclass import difference_lines, run_mode
from dinomaly_hd.experiments.run_folder import read_state
from dinomaly_hd.flags import resolve
from dinomaly_hd.training.guards import SignalGuard

MEMBERS = ["multiclass_unified", "singleclass_A", "singleclass_B"]


@pytest.fixture
def run(tiny_settings: dict[str, str]) -> RunConfig:
    return resolve("baseline", {**tiny_settings, "domains": "A,B", "maps_per_group": "0", "image_size": "32"})


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    with warnings.catch_warnings():
        for module in (r"lightning\.", r"torch\.", r"mlflow\."):
            warnings.filterwarnings("ignore", module=module)
        yield Context(
            root=tmp_path,
            result_dir=tmp_path / "results",
            experiment="compare",
            guard=SignalGuard(),
            say=lambda _: None,
            command="python -m entry_points.baseline --mode compare",
            entry_point="baseline",
        )


def test_compare_runs_all_members_under_one_parent(context: Context, run: RunConfig) -> None:
    lines: list[str] = []
    stopper = SignalGuard()

    def stop_in_the_second_member(line: str) -> None:
        if "singleclass_A" in line and "run folder:" in line:
            stopper.received = 15

    with pytest.raises(Interrupted):
        run_mode(run, replace(context, guard=stopper, say=stop_in_the_second_member), mode="compare")
    (folder,) = (context.result_dir / "compare" / "baseline").iterdir()
    assert read_state(folder)["status"] == "KILLED"
    first = (folder / MEMBERS[0] / "results.json").stat().st_mtime_ns

    run_mode(run, replace(context, say=lines.append), mode="compare")
    assert list(folder.parent.iterdir()) == [folder], "the comparison was begun anew"
    assert (folder / MEMBERS[0] / "results.json").stat().st_mtime_ns == first, "a finished member ran twice"
    summary = json.loads((folder / "final_summary.json").read_text())
    assert list(summary["members"]) == MEMBERS
    for domain in ("domain_A", "domain_B"):
        unified = summary["members"][MEMBERS[0]][domain]["auroc"]
        single = summary["members"][f"singleclass_{domain[-1]}"][domain]["auroc"]
        assert summary["difference"][domain]["auroc"] == pytest.approx(unified - single)
    assert any("nothing can be concluded" in line for line in lines)

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{context.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("compare")
    runs = client.search_runs([experiment.experiment_id])
    parent = next(one for one in runs if one.data.tags["kind"] == "compare")
    children = [one for one in runs if one.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 3
    assert {one.info.status for one in runs} == {"FINISHED"}
    assert len(runs) == 4


def test_an_unknown_mode_is_refused(context: Context, run: RunConfig) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'compare'"):
        run_mode(run, context, mode="compar")


def test_no_difference_no_table() -> None:
    assert difference_lines({}) == []
