"""Comparisons: equal terms, work shared without changing a bit, failures named, trainings not repeated."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dinomaly_hd.config import RunConfig, with_values
from dinomaly_hd.errors import CheckpointError, ComparisonError, ConfigError, NonFiniteError
from dinomaly_hd.experiments import comparison
from dinomaly_hd.experiments.ablation import run_ablation
from dinomaly_hd.experiments.context import Context
from dinomaly_hd.experiments.finetune import OWN, Tuning, run_finetune
from dinomaly_hd.experiments.settings import run_encoders, run_steps
from dinomaly_hd.experiments.training_run import Outcome, execute
from dinomaly_hd.flags import resolve_config

from .conftest import SETTINGS

SMALL = {**SETTINGS, "image_size": "32", "maps_per_group": "0", "domains": "A,B"}


def build(config: str, seed: int, **values: str) -> RunConfig:
    return resolve_config(config, {**SMALL, **values, "seed": str(seed)})


def scores(folder: Path) -> pd.DataFrame:
    return pd.concat(pd.read_csv(path) for path in sorted((folder / "scores").glob("domain_?.csv")))


def runs_in(context: Context) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{context.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(context.experiment)
    return list(client.search_runs([experiment.experiment_id]))


def test_an_ablation_shares_work_reports_and_is_not_repeated(context: Context) -> None:
    lines: list[str] = []
    told = replace(context, say=lines.append)
    configs = ("A0", "A0:row_context=1")
    done = run_ablation(configs, (42, 43), told, build=build)
    assert sum("once for all steps" in line for line in lines) == 2, "encoded once a seed, for all configs"
    assert sum(line == "going on at step 2" for line in lines) == 2, "row_context needs no training"
    assert done.report is not None
    parent = done.report.files[0].parent
    summary = json.loads((parent / "final_summary.json").read_text())
    assert (summary["labels"], summary["reference"]) == (list(configs), "A0")
    assert "2 seeds" in (parent / "report.md").read_text()
    assert "<html" in (parent / "report.html").read_text()
    assert {path.name for path in (parent / "tables").iterdir()} >= {"means.csv", "differences.csv"}

    runs = runs_in(context)
    top = next(run for run in runs if run.data.tags["kind"] == "ablation")
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == top.info.run_id]
    assert sorted(run.data.tags["config"] for run in children) == sorted(configs * 2)
    assert f"{configs[0]}/domain_A/auroc_mean" in top.data.metrics
    assert "Reading" in top.data.tags["mlflow.note.content"]

    lines.clear()
    again = run_ablation(configs, (42, 43), told, build=build)
    assert sum(line.startswith("already finished") for line in lines) == 4
    assert not any(line.startswith("step ") for line in lines)
    first, second = ([outcome.folder for outcome in one.outcomes.values()] for one in (done, again))
    assert first == second

    alone = execute(build(configs[1], 43), replace(context, result_dir=context.root / "alone"))
    shared = scores(first[-1])
    pd.testing.assert_frame_equal(scores(alone.folder), shared, check_exact=True)
    assert not scores(first[-2])["score"].equals(shared["score"]), "row_context does nothing"


def test_a_member_that_diverges_is_named_and_the_others_go_on(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(run: RunConfig, own: Context) -> Outcome:
        if run.model.variant == "topk":
            raise NonFiniteError("step 1: loss nan")
        return execute(run, own)

    monkeypatch.setattr(comparison, "execute", diverge)
    with pytest.raises(ComparisonError, match=r"1 of 2 members failed: A, seed 42: step 1: loss nan"):
        run_ablation(("A", "A0"), (42,), context, build=build)
    (report,) = context.result_dir.rglob("report.md")
    assert "A, seed 42 (step 1: loss nan)" in report.read_text()
    top = next(run for run in runs_in(context) if run.data.tags["kind"] == "ablation")
    assert top.info.status == "FAILED"


def test_a_bad_member_is_refused_before_the_first_is_run(context: Context) -> None:
    with pytest.raises(ConfigError, match="F:seg_len=99: seg_len=99: the token grid is only 4 wide"):
        run_ablation(("A0", "F:seg_len=99"), (42,), context, build=build)
    assert not context.result_dir.exists()


def test_steps_are_points_of_one_training(context: Context) -> None:
    lines: list[str] = []
    done = run_steps(
        (2, 4),
        (42,),
        replace(context, say=lines.append),
        build=lambda step, seed: build("D", seed, max_steps="4", stop_step=str(step)),
    )
    assert "going on at step 2" in lines
    last = done.outcomes[next(m for m in done.outcomes if m.label == "step 4")]
    whole = execute(build("D", 42, max_steps="4"), replace(context, result_dir=context.root / "whole"))
    pd.testing.assert_frame_equal(scores(whole.folder), scores(last.folder), check_exact=True)
    rates = [o.results["training_history"]["train/lr"]["value"] for o in done.outcomes.values()]
    assert rates[0] + rates[1] == whole.results["training_history"]["train/lr"]["value"]


def test_encoders_are_compared_by_name(context: Context) -> None:
    done = run_encoders(
        ("efficientnet_lite0", "resnet18"),
        (42,),
        context,
        build=lambda encoder, seed: build("A0", seed, encoder=encoder, encoder_weights="random"),
    )
    assert done.report is not None
    assert done.report.comparison.labels == ("efficientnet_lite0", "resnet18")
    assert not done.report.comparison.settings.notes, "the encoder is what is compared"


def test_training_on_some_domains_tests_all(context: Context) -> None:
    run = with_values(build("A0", 42), {"train_domains": "A"})
    lines: list[str] = []
    outcome = execute(run, replace(context, say=lines.append))
    assert list(outcome.results["per_domain_metrics"]) == ["domain_A", "domain_B"]
    assert "encoder: statistics of 7 training images" in lines
    with pytest.raises(ConfigError, match="train_domains=domain_C: expected one or more of domain_A"):
        execute(with_values(run, {"train_domains": "C"}), context)


def test_a_start_that_does_not_fit_is_refused(context: Context) -> None:
    first = execute(build("A0", 42), context)
    with pytest.raises(ConfigError, match="no run folder"):
        execute(with_values(build("A0", 42), {"start_from": "20250101_000000_seed42"}), context)
    deeper = build("A0", 42, decoder_depth="4", start_from=str(first.folder))
    with pytest.raises(CheckpointError, match="differs in decoder_depth"):
        execute(deeper, context)


def test_finetuning_starts_from_the_unified_model_and_sees_one_domain(context: Context) -> None:
    lines: list[str] = []
    done = run_finetune(
        [build("A0", 42)],
        replace(context, say=lines.append),
        tuning=Tuning(steps=1, learning_rate=1e-30),
        domains=None,
    )
    folders = {member.label: outcome.folder for member, outcome in done.outcomes.items()}
    assert list(folders) == ["unified", "fine-tuned on A", "fine-tuned on B"]
    assert f"starting from {folders['unified']}" in lines
    unified, tuned = scores(folders["unified"]), scores(folders["fine-tuned on A"])
    assert tuned["score"].to_numpy() == pytest.approx(unified["score"].to_numpy(), abs=1e-9), "same weights"
    assert done.report is not None
    assert done.report.comparison.labels == ("unified", OWN, "fine-tuned on A", "fine-tuned on B")
    assert not done.report.comparison.settings.notes


@pytest.mark.parametrize(
    ("steps", "rate", "message"),
    [("0", "0.1", "finetune_steps='0'"), ("10", "fast", "'fast': expected a number"), ("10", "0", "above 0")],
)
def test_a_finetuning_without_length_or_rate_is_refused(steps: str, rate: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tuning.parse(steps=steps, learning_rate=rate)
