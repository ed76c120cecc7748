"""`baseline mode=compare`: one unified model, one a domain, their differences; resumed, not begun anew."""

import json
from dataclasses import replace

import pytest

from dinomaly_hd.config import RunConfig, with_values
from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.errors import ConfigError, Interrupted, SignalGuard
from dinomaly_hd.experiments.protocols import run_mode
from dinomaly_hd.runs.folder import Context, read_state

MEMBERS = ["multiclass_unified", "singleclass_A", "singleclass_B"]


@pytest.fixture
def run(tiny_settings: dict[str, str]) -> RunConfig:
    return resolve_model(
        "baseline", {**tiny_settings, "domains": "A,B", "maps_per_group": "0", "image_size": "32"}
    )


def test_compare_runs_all_members_under_one_parent(context: Context, run: RunConfig) -> None:
    lines: list[str] = []
    stopper = SignalGuard()

    def stop_in_the_second_member(line: str) -> None:
        if "singleclass_A" in line and "run folder:" in line:
            stopper.received = 15

    with pytest.raises(Interrupted):
        run_mode(
            run, replace(context, guard=stopper, say=stop_in_the_second_member), mode="compare", seeds=[42]
        )
    (folder,) = (context.result_dir / "compare" / "baseline").iterdir()
    assert read_state(folder)["status"] == "KILLED"
    first = (folder / MEMBERS[0] / "results.json").stat().st_mtime_ns

    run_mode(run, replace(context, say=lines.append), mode="compare", seeds=[42])
    assert list(folder.parent.iterdir()) == [folder], "the comparison was begun anew"
    assert (folder / MEMBERS[0] / "results.json").stat().st_mtime_ns == first, "a finished member ran twice"
    summary = json.loads((folder / "final_summary.json").read_text())
    assert summary["labels"] == ["multiclass_unified", "singleclass"]
    assert summary["reference"] == "singleclass"
    for domain in ("A", "B"):
        whole, alone = (
            json.loads((folder / name / "results.json").read_text())["per_domain_metrics"][f"domain_{domain}"]
            for name in (MEMBERS[0], f"singleclass_{domain}")
        )
        (difference,) = (
            row["mean_difference"]
            for row in summary["differences"]
            if (row["domain"], row["condition"], row["metric"]) == (f"domain_{domain}", "all", "auroc")
        )
        assert difference == pytest.approx(whole["auroc"] - alone["auroc"])
    assert any("Nothing can be concluded" in line for line in lines)

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{context.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("contract")
    runs = client.search_runs([experiment.experiment_id])
    parent = next(one for one in runs if one.data.tags["kind"] == "compare")
    children = [one for one in runs if one.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 3
    assert {one.info.status for one in runs} == {"FINISHED"}
    assert len(runs) == 4


def test_an_unknown_mode_is_refused(context: Context, run: RunConfig) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'compare'"):
        run_mode(run, context, mode="compar", seeds=[42])


@pytest.mark.parametrize("mode", ["singleclass", "compare"])
def test_domains_to_train_on_are_refused_before_anything_runs(
    context: Context, run: RunConfig, mode: str
) -> None:
    with pytest.raises(ConfigError, match=f"train_domains=A: mode={mode}"):
        run_mode(with_values(run, {"train_domains": "A"}), context, mode=mode, seeds=[42])
    assert not context.result_dir.exists() or not any(context.result_dir.iterdir())
