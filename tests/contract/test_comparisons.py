"""Comparisons: equal terms, work shared without changing a bit, failures named, trainings not repeated."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch

from dinomaly_hd.config import RunConfig, flatten, with_values
from dinomaly_hd.config.resolve import resolve_config
from dinomaly_hd.errors import CheckpointError, ComparisonError, ConfigError, NonFiniteError, SignalGuard
from dinomaly_hd.experiments import comparison, protocols
from dinomaly_hd.experiments.protocols import OWN, run_ablation, run_encoders, run_finetune, run_steps
from dinomaly_hd.experiments.run import Outcome, execute
from dinomaly_hd.files import publish_json
from dinomaly_hd.jobs.job import Slots
from dinomaly_hd.runs.folder import STATE, Context, find_run
from dinomaly_hd.serving.exported import read_weights
from entry_points import ablation, encoders, finetune, steps

from .conftest import SETTINGS
from .light_runs import assert_same_weights

SMALL = {**SETTINGS, "image_size": "32", "maps_per_group": "0", "domains": "A,B"}


class Call(NamedTuple):
    """What a function was called with."""

    args: tuple[Any, ...]
    named: dict[str, Any]


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
    assert f"domain_A/auroc_mean.{configs[0]}" in top.data.metrics
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


def test_an_ablation_in_slots_finds_the_same(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    lines: list[str] = []
    told = replace(context, say=lines.append)
    several = run_ablation(("A0", "F"), (42,), told, build=build, slots=Slots("local", 2, ""))
    assert sum(line.startswith(("A0_seed42: finished", "F_seed42: finished")) for line in lines) == 2
    assert several.report is not None
    assert several.report.comparison.labels == ("A0", "F")
    alone = run_ablation(("A0", "F"), (42,), replace(context, result_dir=context.root / "alone"), build=build)
    for label, one in alone.outcomes.items():
        assert one.folder != several.outcomes[label].folder
        pd.testing.assert_frame_equal(
            scores(one.folder), scores(several.outcomes[label].folder), check_exact=True
        )


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


def test_a_model_of_the_original_is_a_start(context: Context, tmp_path: Path) -> None:
    first = execute(build("A0", 42), context)
    trained = read_weights(first.folder / "model")
    names = {"bottleneck.": "bottleneck.0.", "decoder.blocks.": "decoder."}
    names |= {"mlp.0.": "mlp.fc1.", "mlp.2.": "mlp.fc2."}
    file, theirs = tmp_path / "original.pth", {}
    for name, value in trained.items():
        for ours, original in names.items():
            name = name.replace(ours, original)
        theirs[name] = value
    torch.save(theirs, file)
    again = execute(build("A0", 42, start_from=str(file), learning_rate="1e-30", max_steps="1"), context)
    assert_same_weights(read_weights(again.folder / "model"), trained)
    torch.save({"layer1.weight": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match=r"unknown tensor 'layer1\.weight'"):
        execute(build("A0", 42, start_from=str(file)), context)


def test_finetuning_starts_from_the_unified_model_and_sees_one_domain(context: Context) -> None:
    lines: list[str] = []
    done = run_finetune(
        [build("A0", 42)],
        replace(context, say=lines.append),
        steps=1,
        learning_rate=1e-30,
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


def test_a_name_that_several_runs_have_is_refused_with_their_paths(tmp_path: Path) -> None:
    for parent in ("first", "second"):
        publish_json(tmp_path / parent / "A0_seed42" / STATE, {"mlflow_run_id": parent})
    with pytest.raises(ConfigError, match=r"2 run folders have this name; give a path: .*first.*second"):
        find_run(tmp_path, "A0_seed42")
    assert find_run(tmp_path, "second") == tmp_path / "second" / "A0_seed42"


def called(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Call]:
    """Keep what an entry point would run."""
    calls: list[Call] = []
    monkeypatch.setattr(protocols, name, lambda *args, **named: calls.append(Call(args, named)))
    return calls


def test_ablation_asks_for_what_the_flags_say(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = called(monkeypatch, "run_ablation")
    ablation.main(["--configs", "A0,F", "--seeds", "1,2"], SignalGuard())
    ablation.main(["--slots", "3"], SignalGuard())
    ablation.main(["--slots", "auto"], SignalGuard())
    (configs, seeds, context), named = calls[0]
    assert (list(configs), seeds, context.entry_point) == (["A0", "F"], (1, 2), "ablation")
    assert [call.named["slots"].number for call in calls] == [1, 3, None]
    assert named["build"]("F", 2).seed == 2


def test_encoders_asks_for_what_the_flags_say(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = called(monkeypatch, "run_encoders")
    flags = ["--encoders", "small,resnet18", "--seeds", "42,43", "--config", "C", "--batch_size", "4"]
    encoders.main(flags, SignalGuard())
    ((names, seeds, context), named) = calls[0]
    assert (names, seeds) == (["dinov2reg_vit_small_14", "resnet18"], (42, 43))
    assert context.entry_point == "encoders"
    run = named["build"]("resnet18", 43)
    assert (run.encoder.encoder, run.seed, run.training.batch_size) == ("resnet18", 43, 4)
    assert flatten(run)["bottleneck"] == "segment"
    assert flatten(run)["loss"] == flatten(resolve_config("C", SMALL))["loss"]


def test_steps_asks_for_points_of_one_training(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = called(monkeypatch, "run_steps")
    steps.main(["--steps", "30,10,20"], SignalGuard())
    ((points, seeds, _), named) = calls[0]
    assert (points, seeds) == ([10, 20, 30], (42,))
    run = named["build"](10, 42)
    assert (run.training.max_steps, run.training.last_step) == (30, 10)


def test_finetune_asks_for_what_the_flags_say(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = called(monkeypatch, "run_finetune")
    flags = ["--finetune_domains", "A,C", "--finetune_steps", "7", "--finetune_learning_rate", "0.5"]
    finetune.main([*flags, "--seeds", "1,2", "--config", "A0"], SignalGuard())
    finetune.main([], SignalGuard())
    ((runs, _), named), (_, unspecific) = calls
    assert ([run.seed for run in runs], named["domains"]) == ([1, 2], ("A", "C"))
    assert (named["steps"], named["learning_rate"]) == (7, 0.5)
    assert unspecific["domains"] is None, "all of them"


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        (ablation, ["--slots", "0"], "slots='0': input should be greater than or equal to 1, or auto"),
        (encoders, ["--encoders", ""], "encoders='': expected one or more, each once"),
        (encoders, ["--encoders", "small,dinov2reg_vit_small_14"], "each once"),
        (encoders, ["--encoder", "resnet18"], "encoder"),
        (steps, ["--steps", "0,10"], "0 is no training"),
        (steps, ["--steps", "ten"], "steps"),
        (steps, ["--max_steps", "10"], "max_steps"),
        (finetune, ["--finetune_steps", "0"], "finetune_steps='0'"),
        (finetune, ["--finetune_learning_rate", "fast"], "finetune_learning_rate='fast'"),
        (finetune, ["--finetune_learning_rate", "0"], "greater than 0"),
        (finetune, ["--stop_step", "5"], "stop_step"),
    ],
)
def test_flags_of_comparisons_are_checked(module: Any, flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        module.main(flags, SignalGuard())


@pytest.mark.parametrize(
    ("domains", "message"),
    [((), "expected one or more of A, B"), (("A", "A"), "each once"), (("A", "E"), "'E' is not trained on")],
)
def test_fine_tuning_on_wrong_domains_is_refused(
    context: Context, domains: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"finetune_domains: .*{message}"):
        run_finetune([build("A0", 42)], context, steps=1, learning_rate=1e-4, domains=domains)
    assert not context.result_dir.exists()
