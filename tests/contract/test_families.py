"""Every model family from start to end: results, its own scores again, resumption, honest early stopping."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from safetensors.torch import load_file

from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.data.hdmap import load_manifest
from dinomaly_hd.data.images import read_image
from dinomaly_hd.data.simulator import simulate
from dinomaly_hd.errors import ConfigError, Interrupted, Pruned
from dinomaly_hd.experiments import prepare
from dinomaly_hd.experiments import run as runs
from dinomaly_hd.experiments.predict import predict
from dinomaly_hd.experiments.protocols import Trial, run_single_domain
from dinomaly_hd.experiments.run import Outcome, execute
from dinomaly_hd.models.fast import kernels
from dinomaly_hd.models.patchcore.detector import PatchCore
from dinomaly_hd.runs.folder import Context, all_runs, read_state
from dinomaly_hd.serving import _load_pyfunc
from dinomaly_hd.serving.exported import read_model
from dinomaly_hd.trivial import PREFIX

from .light_runs import SMALL, assert_same_weights, evaluate_four_images, runs_in, stopping_at

MODELS = (
    "dinomaly:scaling=position",
    "patchcore:context=1:position_radius=4:scaling=position",
    "draem",
    "draem:anomaly_source_path=textures:image_score=top_share",
    "draem:fault_source=patch:patch_width_range=4-12",
    "draem:fault_source=band",
    "draem_sevnet:severity_head_pooling_type=gap:patch_width_range=4-12",
    "draem_sevnet:severity_head_pooling_type=spatial_aware:severity_head_mode=multi_scale:fault_source=band",
    "trivial",
)
RESULT_KEYS = {
    "schema_version", "experiment_type", "variant", "parameters", "domains", "model_type", "encoder",
    "max_steps", "batch_size", "seed", "overall_auroc", "per_domain_metrics", "mean_metrics",
    "overall_pooled_metrics", "source_results", "target_results", "transfer", "training_history", "timing",
    "versions", "data_digest", "tested_step", "best_val", "trivial",
}  # fmt: skip
"""spec/protocols.md, "Result file", and what every family adds."""
METRIC_KEYS = {
    "auroc", "tpr_at_fpr_1pct", "tpr_at_fpr_5pct", "precision", "recall", "f1_score", "accuracy",
    "optimal_threshold", "by_condition", "intervals",
}  # fmt: skip


def build(model: str, **values: str) -> Any:
    return resolve_model(model, {**SMALL[model.split(":")[0]], **values})


@pytest.mark.parametrize("model", MODELS)
def test_a_finished_run_says_what_it_is_and_its_model_gives_its_scores(model: str, own: Context) -> None:
    outcome = execute(build(model, synthetic_copies="2"), own)
    results, family = outcome.results, model.split(":")[0]
    assert results.keys() >= RESULT_KEYS
    assert results["kernels"] == kernels("cpu")
    assert results["model_type"] == results["config"]["model"]["model_type"] == family
    assert list(results["per_domain_metrics"]) == ["domain_A", "domain_B"]
    assert all(block.keys() >= METRIC_KEYS for block in results["per_domain_metrics"].values())
    assert results["source_results"] == {"domain_A": results["per_domain_metrics"]["domain_A"]}
    assert results["target_results"] == {"domain_B": results["per_domain_metrics"]["domain_B"]}
    transfer = results["transfer"]
    assert (transfer["source_domains"], transfer["missing_targets"]) == (["domain_A"], {})
    assert transfer["average_target_auroc"] == results["target_results"]["domain_B"]["auroc"]
    trained = family not in ("patchcore", "trivial")
    assert (results["max_steps"], results["batch_size"]) == ((2, 4) if trained else (0, None))
    assert ("train/loss" in results["training_history"]) == trained
    assert set(results["synthetic"]["per_domain"]) == {"domain_A"}

    table = check_model(outcome, own)
    assert (table["score"].tolist() == table[f"{PREFIX}max"].tolist()) == (family == "trivial")


def check_model(outcome: Outcome, own: Context) -> pd.DataFrame:
    """Return the run's table of domain B after its served model and its checkpoint gave the same scores."""
    table = pd.read_csv(outcome.folder / "scores" / "domain_B.csv")
    root = own.root / "data" / "simulated_tiny_seed0"
    images_BHW = np.stack([read_image(root / path) for path in table["path"]])
    served = _load_pyfunc(str(outcome.folder / "model"))
    answer = served.predict(images_BHW, params={"domain": "B", "return_map": True})
    np.testing.assert_allclose(answer["score"], table["score"], rtol=0, atol=1e-6)
    assert list(answer["fault"]) == list(answer["score"] >= answer["threshold"])
    assert np.shape(answer["map"][0]) == images_BHW.shape[1:]
    (last,) = sorted((outcome.folder / "checkpoints").glob("*.pt"))[-1:]
    place = {"output": own.result_dir / "out", "result_dir": own.result_dir, "root": own.root}
    settings = {"domain": None, "maps": 0, "gpu": "cpu", "say": own.say, "tick": lambda: None}
    found = pd.read_csv(predict(str(last), root / "domain_B" / "test", **place, **settings) / "scores.csv")
    np.testing.assert_allclose(found["score"], table.sort_values("path")["score"], rtol=0, atol=1e-6)
    assert set(found["decision"]) <= {"fault", "good"}
    where = ["tooth", "first_column", "last_column", "normal_percentile"]
    told = answer[where].astype(float).reset_index(drop=True)
    pd.testing.assert_frame_equal(told, table[where].astype(float), check_exact=False, atol=1e-6)
    in_order = table.sort_values("path")[where].astype(float).reset_index(drop=True)
    pd.testing.assert_frame_equal(found[where].astype(float), in_order, check_exact=False, atol=1e-6)
    return table


def test_row_evidence_is_a_family_like_others_and_a_reference_beside_them(own: Context) -> None:
    values = {**SMALL["trivial"], "train_domains": "all", "evidence_bands": "both"}  # 14 maps
    outcome = execute(resolve_model("row_evidence", values), own)
    table = check_model(outcome, own)
    assert "trivial/row_evidence" not in table
    assert table["trivial/scan"].notna().all()
    again = execute(resolve_model("row_evidence", values), replace(own, result_dir=own.result_dir / "again"))
    same = pd.read_csv(again.folder / "scores" / "domain_B.csv")
    pd.testing.assert_frame_equal(same, table, check_exact=True)
    beside = {**SMALL["trivial"], "train_domains": "all"}
    own_column = execute(resolve_model("trivial", beside), replace(own, result_dir=own.result_dir / "other"))
    assert "row_evidence" in own_column.results["trivial"]
    even = _load_pyfunc(str(own_column.folder / "model")).predict(np.full((1, 31, 95), 0.2))
    assert even["tooth"].tolist() == [None], "no row of an even map stands out"
    json.dumps(even[["tooth", "first_column", "last_column", "normal_percentile"]].to_dict("records"))
    assert 0 <= outcome.results["per_domain_metrics"]["domain_B"]["named_tooth"] <= 1


@pytest.mark.parametrize(
    "model",
    [
        "draem:fault_source=band",
        "draem_sevnet:severity_head_pooling_type=spatial_aware:patch_width_range=4-12",
    ],
)
def test_interrupted_trainings_end_with_the_same_bits(
    model: str, own: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = evaluate_four_images(monkeypatch)
    run = build(model, max_steps="6", val_check_interval="2", early_stopping_patience="5")
    execute(run, replace(own, result_dir=own.result_dir / "whole"))
    broken = replace(own, result_dir=own.result_dir / "broken")
    with pytest.raises(Interrupted):
        execute(run, stopping_at(broken, 3))
    assert len(seen) == 1, "an interrupted run is not evaluated"
    lines: list[str] = []
    execute(run, replace(broken, say=lines.append))
    assert "going on at step 3" in lines
    whole, resumed = seen
    assert resumed.trained.steps == 3
    assert any("running_var" in name for name in whole.weights)
    assert_same_weights(resumed.weights, whole.weights)
    assert resumed.history == whole.history
    assert resumed.trained.tested_step == whole.trained.tested_step
    assert torch.equal(resumed.score_4, whole.score_4)


def test_a_filled_memory_bank_is_not_filled_again(own: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = evaluate_four_images(monkeypatch)
    light = runs.evaluate

    def interrupt(*_: Any, **__: Any) -> None:
        raise Interrupted(15)

    monkeypatch.setattr(runs, "evaluate", interrupt)
    with pytest.raises(Interrupted):
        execute(build("patchcore"), own)
    (checkpoint,) = own.result_dir.rglob("step_*.pt")
    assert checkpoint.name == "step_00000000.pt"
    kept = torch.load(checkpoint, weights_only=True)["weights"]["bank"]

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the bank was there already")

    monkeypatch.setattr(PatchCore, "fit_bank", refuse)
    monkeypatch.setattr(runs, "evaluate", light)
    execute(build("patchcore"), own)
    assert torch.equal(seen[0].weights["bank"], kept)
    assert len(kept) > 1


EARLY = {"max_steps": "6", "val_check_interval": "2", "early_stopping_patience": "2"}


def exported(outcome: Outcome) -> dict[str, torch.Tensor]:
    return load_file(outcome.folder / "model" / "weights.safetensors")


def test_no_test_image_changes_weights_or_synthetic_figures(own: Context, tmp_path: Path) -> None:
    data = simulate(tmp_path / "maps", size="tiny", seed=0)
    run = build("draem", **EARLY, synthetic_copies="3", data_root=str(data))
    seen: list[tuple[int, Mapping[str, float]]] = []
    first = execute(run, replace(own, observe=lambda values, step: seen.append((step, dict(values)))))
    manifest = load_manifest(data, domains=("A", "B"), conditions="auto")
    for position in manifest.indices(split="test"):  # turned around its mean; labels and folders stay
        path = manifest.path(int(position))
        image = tifffile.imread(path)
        tifffile.imwrite(path, (2 * image.mean() - image).astype(np.float32))
    second = execute(run, replace(own, result_dir=own.result_dir / "second"))

    ours, theirs = first.results, second.results
    assert ours["per_domain_metrics"] != theirs["per_domain_metrics"]
    assert_same_weights(exported(first), exported(second))
    for name in ("tested_step", "best_val", "synthetic"):
        assert ours[name] == theirs[name], name
    history, other = (one["training_history"] for one in (ours, theirs))
    assert history["val/loss"]["value"] == other["val/loss"]["value"]
    assert len(history["val/loss"]["value"]) == 3
    watched = [one["val_image_AUROC"]["value"] for one in (history, other)]
    assert watched[0] != watched[1], "the test images are looked at, and reported"

    assert list(ours["synthetic"]["per_domain"]) == ["domain_A"], "B is not trained on"
    figures = ours["synthetic"]["per_domain"]["domain_A"]
    assert 0 <= figures["auroc"] <= 1
    assert figures["bands"] <= 3 * figures["normals"]
    reported = {step: values["synthetic/domain_A/auroc"] for step, values in seen if "val/loss" in values}
    assert sorted(reported) == [1, 3, 5]
    assert reported[ours["tested_step"] - 1] == figures["auroc"]


def test_the_older_rule_chooses_by_test_images(own: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is lowest after step 2, the AUROC highest after step 4, and 6 steps are asked for."""
    values = {**EARLY, "early_stopping_patience": "9"}
    chosen, marked = {}, {}
    for rule in ("held_out", "source_test"):
        loss, auroc = iter([0.1, 0.2, 0.3]), iter([0.6, 0.9, 0.7])
        monkeypatch.setattr(prepare, "held_out_loss", lambda *_, loss=loss, **__: next(loss))
        monkeypatch.setattr(prepare, "image_auroc", lambda *_, auroc=auroc, **__: next(auroc))
        outcome = execute(build("draem", **values, validate_on=rule), own)
        results = outcome.results
        chosen[rule] = (results["steps"], results["tested_step"], results["best_val"])
        marked[rule] = results["config"]["training"]["validate_on"]
        assert results["training_history"]["val_image_AUROC"]["value"] == [0.6, 0.9, 0.7]
        weights = exported(outcome)
        counted = {int(v) for name, v in weights.items() if name.endswith("num_batches_tracked")}
        assert counted == {results["tested_step"]}, "the best weights are exported, not the last"
    assert chosen == {"held_out": (6, 2, 0.1), "source_test": (6, 4, pytest.approx(0.1))}
    assert marked == {"held_out": "held_out", "source_test": "source_test"}


def test_a_folder_of_textures_is_needed_to_train_and_not_to_score(own: Context, tmp_path: Path) -> None:
    folder = tmp_path / "textures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        tifffile.imwrite(folder / f"{name}.tiff", generator.random((9, 30), dtype=np.float32))
    values = {"anomaly_source_path": str(folder), "anomaly_probability": "1"}
    first = execute(build("draem", **values), own)
    assert first.results["training_history"]["train/fault_rate"]["value"] == [1.0, 1.0]
    tifffile.imwrite(folder / "a.tiff", generator.random((9, 30), dtype=np.float32))
    second = execute(build("draem", **values), own)
    assert first.results["config_hash"] != second.results["config_hash"]
    weights = [exported(one) for one in (first, second)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    shutil.rmtree(folder)
    detector = read_model(second.folder / "model").load()
    assert torch.isfinite(detector.score(detector.encode(torch.rand(2, 31, 95))).score_B).all()
    with pytest.raises(ConfigError, match=f"anomaly_source_path={folder}: no such folder; give one"):
        execute(build("draem", **values), own)


def test_an_encoder_that_models_share_stays_as_it_is(own: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one comparison a memory bank, then a Dinomaly that takes statistics of the same encoder's output."""
    seen = evaluate_four_images(monkeypatch)
    values = {"domains": "A", "train_domains": "all"}
    dinomaly, patchcore = build("dinomaly", **values), build("patchcore", **values)
    execute(dinomaly, replace(own, result_dir=own.result_dir / "alone"))
    trials = [Trial("patchcore", "A", patchcore), Trial("dinomaly", "A", dinomaly)]
    monkeypatch.setattr("dinomaly_hd.experiments.comparison.read_member", lambda *_, **__: None)
    monkeypatch.setattr("dinomaly_hd.experiments.comparison._reports", lambda *_, **__: {})
    run_single_domain(trials, own)
    alone, _, together = seen
    assert_same_weights(alone.weights, together.weights)


def test_a_run_that_is_given_up_is_closed_and_says_so(context: Context) -> None:
    def give_up(values: Mapping[str, float], step: int) -> None:
        if "synthetic/domain_A/auroc" in values:
            raise Pruned(f"given up at step {step + 1}")

    run = build("dinomaly", synthetic_copies="3", val_check_interval="1")
    with pytest.raises(Pruned, match="given up at step 1"):
        execute(run, replace(context, observe=give_up))
    (folder,) = all_runs(context.result_dir)
    state = read_state(folder)
    assert state["status"] == "KILLED"
    (tracked,) = runs_in(context)
    assert tracked.info.run_id == state["mlflow_run_id"]
    assert (tracked.info.status, tracked.data.tags["pruned"]) == ("KILLED", "true")
