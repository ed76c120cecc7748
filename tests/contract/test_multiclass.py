"""`baseline mode=compare`: one unified model, one a domain, their differences; resumed, not begun anew."""

import json
from dataclasses import replace

import pytest

from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.errors import Interrupted
from dinomaly_hd.experiments.protocols import run_mode
from dinomaly_hd.runs.context import Context
from dinomaly_hd.runs.folder import read_state
from dinomaly_hd.training.signals import SignalGuard

from .conftest import SETTINGS
from .light_runs import runs_in, without_pictures

UNIFIED = "multiclass_unified"


def test_compare_runs_all_members_under_one_parent(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pictures(monkeypatch)
    lines: list[str] = []
    stopper = SignalGuard()
    run = resolve_model("baseline", {**SETTINGS, "domains": "A,B", "maps_per_group": "0", "image_size": "32"})

    def stop_in_the_second_member(line: str) -> None:
        if "singleclass_A" in line and "run folder:" in line:
            stopper.received = 15

    stopped = replace(context, guard=stopper, say=stop_in_the_second_member)
    with pytest.raises(Interrupted):
        run_mode(run, stopped, mode="compare", seeds=[42])
    (folder,) = (context.result_dir / "compare" / "baseline").iterdir()
    assert read_state(folder)["status"] == "KILLED"
    first = (folder / UNIFIED / "results.json").stat().st_mtime_ns

    run_mode(run, replace(context, say=lines.append), mode="compare", seeds=[42])
    assert list(folder.parent.iterdir()) == [folder], "the comparison was begun anew"
    assert (folder / UNIFIED / "results.json").stat().st_mtime_ns == first, "a finished member ran twice"
    summary = json.loads((folder / "final_summary.json").read_text())
    assert summary["labels"] == [UNIFIED, "singleclass"]
    assert summary["reference"] == "singleclass"
    for domain in ("A", "B"):
        whole, alone = (
            json.loads((folder / name / "results.json").read_text())["per_domain_metrics"][f"domain_{domain}"]
            for name in (UNIFIED, f"singleclass_{domain}")
        )
        (difference,) = (
            row["mean_difference"]
            for row in summary["differences"]
            if (row["domain"], row["condition"], row["metric"]) == (f"domain_{domain}", "all", "auroc")
        )
        assert difference == pytest.approx(whole["auroc"] - alone["auroc"])
    assert any("Nothing can be concluded" in line for line in lines)

    (parent,) = runs_in(context, "compare")
    runs = runs_in(context)
    children = [one for one in runs if one.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 3
    assert {one.info.status for one in runs} == {"FINISHED"}
    assert len(runs) == 4
