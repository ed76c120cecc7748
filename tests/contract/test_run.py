"""A finished run's folder is complete, MLflow holds a copy of it, and its last lines say where to look."""

import json

import pytest

from dinomaly_hd.config.base import flatten
from dinomaly_hd.config.presets import FAMILIES
from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.config.variants import VARIANTS
from dinomaly_hd.runs.store import client_for

from .conftest import TinyRun

PARTS = ["anomaly_maps", "checkpoints", "model", "plots", "scores", "results.json", "report.html"]


def test_the_run_folder_is_complete(tiny_run: TinyRun) -> None:
    names = {path.name for path in tiny_run.folder.iterdir()}
    assert {*PARTS, "experiment_settings.json", "journal.jsonl", "run.json"} <= names
    for domain in "ABCD":
        assert (tiny_run.folder / "scores" / f"domain_{domain}.csv").is_file()
        assert (tiny_run.folder / "plots" / f"roc_domain_{domain}.png").is_file()
        assert list((tiny_run.folder / "anomaly_maps" / f"domain_{domain}").glob("fault_highest_*.png"))
    assert not list(tiny_run.folder.rglob(".writing-*"))
    results = json.loads((tiny_run.folder / "results.json").read_text())  # its keys: test_families.py
    assert all(results[key] for key in ("training_history", "timing", "versions", "data_digest", "trivial"))
    for words in ("workflowType=machine_learning", "viewStateShareKey=Runs%20on%20ABCD", "row_filter"):
        assert words in "\n".join(tiny_run.lines)


def test_mlflow_holds_a_copy(tiny_run: TinyRun) -> None:
    client = client_for(tiny_run.uri)
    run = client.get_run(tiny_run.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "horizontal-ABCD-s42"
    assert set(PARTS) <= {item.path for item in client.list_artifacts(tiny_run.run_id)}
    names = {"domain_C/auroc", "domain_C/cold/auroc", "mean/tpr_at_fpr_1", "mean/named_tooth"}
    names |= {f"train/{name}" for name in ("loss", "lr", "grad_norm", "drop_rate", "discard_rate")}
    assert names <= set(run.data.metrics)
    assert len(run.data.metrics) <= 60, "each is a chart"
    assert run.data.params["row_p"] == "0.2"
    assert len(run.data.params) <= 70
    assert "auto" not in run.data.params.values(), "what was resolved is shown"
    ours = {name: text for name, text in run.data.tags.items() if not name.startswith("mlflow.")}
    assert ours == {"variant": "horizontal", "config": "horizontal", "domains": "ABCD", "kind": "train"}
    train, test = (json.loads(one.dataset.profile) for one in run.inputs.dataset_inputs)
    assert train.keys() == {"num_rows"}
    assert "domain_C" in test["AUROC of scan, %"]
    note = run.data.tags["mlflow.note.content"]
    assert "Repeat it: `python -m entry_points.horizontal --seed 42`" in note
    assert "| domain_C |" in note
    assert "](get-artifact?path=anomaly_maps%2Fdomain_" in note


@pytest.mark.parametrize("preset", ["quick", "full"])
@pytest.mark.parametrize("model", [*VARIANTS, *FAMILIES])
def test_no_model_has_more_parameters_than_a_page_shows(model: str, preset: str) -> None:
    assert len(flatten(resolve_model(model, {"seed": "42", "preset": preset}))) <= 70
