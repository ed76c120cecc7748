"""Comparisons: equal terms, work shared without changing a bit, failures named, trainings not repeated."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from dinomaly_hd.config.base import flatten
from dinomaly_hd.config.resolve import resolve_config, resolve_model
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.errors import CheckpointError, ConfigError, Interrupted, SignalGuard
from dinomaly_hd.experiments import protocols
from dinomaly_hd.experiments.protocols import (
    OWN,
    run_ablation,
    run_encoders,
    run_finetune,
    run_mode,
    run_steps,
)
from dinomaly_hd.experiments.run import execute
from dinomaly_hd.files import publish_json
from dinomaly_hd.jobs.job import Slots
from dinomaly_hd.runs.folder import STATE, Context, find_run, read_state
from dinomaly_hd.serving.exported import read_weights
from entry_points import ablation, encoders, finetune, steps

from .conftest import SETTINGS
from .light_runs import assert_same_weights, runs_in

SMALL = {**SETTINGS, "image_size": "32", "maps_per_group": "0", "domains": "A,B"}


def build(config: str, seed: int, **values: str) -> RunConfig:
    return resolve_config(config, {**SMALL, **values, "seed": str(seed)})


def scores(folder: Path) -> pd.DataFrame:
    """Return a run's scores, without what a run by itself has beside them."""
    tables = [pd.read_csv(path) for path in sorted((folder / "scores").glob("domain_?.csv"))]
    return pd.concat(tables).drop(columns="trivial/row_evidence", errors="ignore")


def test_an_ablation_shares_work_reports_is_not_repeated_and_finds_the_same_in_slots(
    own: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    told = replace(own, say=lines.append)
    configs, labels = ("A0", "cfg-A0:row_context=1"), ("cfg-A0", "cfg-A0:row_context=1")
    done = run_ablation(configs, (42, 43), told, build=build)
    assert sum("once for all steps" in line for line in lines) == 2, "encoded once a seed, for all configs"
    assert sum(line == "going on at step 2" for line in lines) == 2, "row_context needs no training"
    assert done.report is not None
    parent = done.report.files[0].parent
    summary = json.loads((parent / "final_summary.json").read_text())
    assert parent.parent == own.result_dir / "ablation" / "cfg-A0_vs_cfg-A0_row_context=1_on_AB"
    assert (summary["labels"], summary["reference"]) == (list(labels), "cfg-A0")
    assert "2 seeds" in (parent / "report.md").read_text()
    assert "<html" in (parent / "report.html").read_text()
    assert {path.name for path in (parent / "tables").iterdir()} >= {"means.csv", "differences.csv"}

    runs = runs_in(own)
    top = next(run for run in runs if run.data.tags["kind"] == "ablation")
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == top.info.run_id]
    assert sorted(run.data.tags["config"] for run in children) == sorted(labels * 2)
    assert {run.info.run_name for run in children} >= {"cfg-A0-baseline-AB-s42"}
    assert f"domain_A/auroc_mean.{labels[0]}" in top.data.metrics
    answer, links, *rest = top.data.tags["mlflow.note.content"].split("\n\n")
    assert answer.startswith(
        "**Nothing can be concluded: fewer than 3 seeds in common with cfg-A0 (2 at most)"
    )
    assert "[Charts of its runs]" in links
    assert any("Reading" in part for part in rest)
    assert not any(answer in part for part in rest), "said once"

    lines.clear()
    again = run_ablation(configs, (42, 43), told, build=build)
    assert sum(line.startswith("already finished") for line in lines) == 4
    assert not any(line.startswith("step ") for line in lines)
    first, second = ([outcome.folder for outcome in one.outcomes.values()] for one in (done, again))
    assert first == second

    alone = execute(build(configs[1], 43), replace(own, result_dir=own.result_dir.parent / "alone"))
    shared = scores(first[-1])
    pd.testing.assert_frame_equal(scores(alone.folder), shared, check_exact=True)
    assert not scores(first[-2])["score"].equals(shared["score"]), "row_context does nothing"

    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    lines.clear()
    elsewhere = replace(told, result_dir=own.result_dir.parent / "slots")
    several = run_ablation(configs, (42,), elsewhere, build=build, slots=Slots("local", 2, ""))
    assert sum("_seed42: finished" in line for line in lines) == 2
    assert several.report is not None
    assert several.report.comparison.labels == labels
    for label, one in several.outcomes.items():
        same = done.outcomes[label]
        assert one.folder != same.folder
        pd.testing.assert_frame_equal(scores(one.folder), scores(same.folder), check_exact=True)


def test_steps_are_points_of_one_training(own: Context) -> None:
    lines: list[str] = []
    done = run_steps(
        (2, 4),
        (42,),
        replace(own, say=lines.append),
        build=lambda step, seed: build("D", seed, max_steps="4", stop_step=str(step)),
    )
    assert "going on at step 2" in lines
    last = done.outcomes[next(m for m in done.outcomes if m.label == "step 4")]
    whole = execute(build("D", 42, max_steps="4"), replace(own, result_dir=own.result_dir.parent / "whole"))
    pd.testing.assert_frame_equal(scores(whole.folder), scores(last.folder), check_exact=True)
    rates = [o.results["training_history"]["train/lr"]["value"] for o in done.outcomes.values()]
    assert rates[0] + rates[1] == whole.results["training_history"]["train/lr"]["value"]


def test_encoders_are_compared_by_name(own: Context) -> None:
    done = run_encoders(
        ("efficientnet_lite0", "resnet18"),
        (42,),
        own,
        build=lambda encoder, seed: build("A0", seed, encoder=encoder, encoder_weights="random"),
    )
    assert done.report is not None
    assert done.report.comparison.labels == ("efficientnet_lite0", "resnet18")
    assert not done.report.comparison.settings.notes, "the encoder is what is compared"


def test_training_on_some_domains_tests_all_and_starts_that_do_not_fit_are_refused(own: Context) -> None:
    run = build("A0", 42, train_domains="A")
    lines: list[str] = []
    first = execute(run, replace(own, say=lines.append))
    assert list(first.results["per_domain_metrics"]) == ["domain_A", "domain_B"]
    assert "encoder: statistics of 7 training images" in lines
    for values, error, message in (
        ({"train_domains": "C"}, ConfigError, "train_domains=domain_C: expected one or more of domain_A"),
        ({"start_from": "20250101_000000_seed42"}, ConfigError, "no run folder"),
        (
            {"decoder_depth": "4", "start_from": str(first.folder)},
            CheckpointError,
            "differs in decoder_depth",
        ),
    ):
        with pytest.raises(error, match=message):
            execute(build("A0", 42, **values), own)


def test_finetuning_starts_from_the_unified_model_and_sees_one_domain(own: Context) -> None:
    lines: list[str] = []
    done = run_finetune(
        [build("A0", 42)],
        replace(own, say=lines.append),
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


def test_a_name_that_several_runs_have_is_refused_with_their_paths(tmp_path: Path) -> None:
    for parent in ("first", "second"):
        publish_json(tmp_path / parent / "A0_seed42" / STATE, {"mlflow_run_id": parent})
    with pytest.raises(ConfigError, match=r"2 run folders have this name; give a path: .*first.*second"):
        find_run(tmp_path, "A0_seed42")
    assert find_run(tmp_path, "second") == tmp_path / "second" / "A0_seed42"


def test_entry_points_ask_for_what_the_flags_say(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for name in ("run_ablation", "run_encoders", "run_steps", "run_finetune"):
        monkeypatch.setattr(protocols, name, lambda *args, **named: calls.append((args, named)))

    def asked(module: Any, flags: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        module.main(flags.split(), SignalGuard())
        return calls.pop()

    (configs, seeds, own), named = asked(ablation, "--configs A0,F --seeds 1,2")
    assert (list(configs), seeds, own.entry_point) == (["A0", "F"], (1, 2), "ablation")
    assert named["build"]("F", 2).seed == 2
    slots = [asked(ablation, flags)[1]["slots"].number for flags in ("", "--slots 3", "--slots auto")]
    assert slots == [1, 3, None]

    flags = "--encoders small,resnet18 --seeds 42,43 --config C --batch_size 4"
    (names, seeds, own), named = asked(encoders, flags)
    assert (names, seeds) == (["dinov2reg_vit_small_14", "resnet18"], (42, 43))
    assert own.entry_point == "encoders"
    run = named["build"]("resnet18", 43)
    assert (run.encoder.encoder, run.seed, run.training.batch_size) == ("resnet18", 43, 4)
    assert flatten(run)["bottleneck"] == "segment"
    assert flatten(run)["loss"] == flatten(resolve_config("C", SMALL))["loss"]

    (points, seeds, _), named = asked(steps, "--steps 30,10,20")
    assert (points, seeds) == ([10, 20, 30], (42,))
    run = named["build"](10, 42)
    assert (run.training.max_steps, run.training.last_step) == (30, 10)

    flags = "--finetune_domains A,C --finetune_steps 7 --finetune_learning_rate 0.5 --seeds 1,2 --config A0"
    (runs, _), named = asked(finetune, flags)
    assert ([run.seed for run in runs], named["domains"]) == ([1, 2], ("A", "C"))
    assert (named["steps"], named["learning_rate"]) == (7, 0.5)
    assert asked(finetune, "")[1]["domains"] is None, "all of them"


def test_fine_tuning_on_wrong_domains_is_refused(own: Context) -> None:
    for domains, message in (
        ((), "expected one or more of A, B"),
        (("A", "A"), "each once"),
        (("A", "E"), "'E' is not trained on"),
    ):
        with pytest.raises(ConfigError, match=f"finetune_domains: .*{message}"):
            run_finetune([build("A0", 42)], own, steps=1, learning_rate=1e-4, domains=domains)
    assert not own.result_dir.exists()


UNIFIED = "multiclass_unified"


def test_compare_runs_all_members_under_one_parent(own: Context) -> None:
    lines: list[str] = []
    stopper = SignalGuard()
    run = resolve_model("baseline", {**SETTINGS, "domains": "A,B", "maps_per_group": "0", "image_size": "32"})

    def stop_in_the_second_member(line: str) -> None:
        if "singleclass_A" in line and "run folder:" in line:
            stopper.received = 15

    stopped = replace(own, guard=stopper, say=stop_in_the_second_member)
    with pytest.raises(Interrupted):
        run_mode(run, stopped, mode="compare", seeds=[42])
    (folder,) = (own.result_dir / "compare").glob("multiclass_unified_vs_singleclass_on_AB/*")
    assert read_state(folder)["status"] == "KILLED"
    first = (folder / UNIFIED / "results.json").stat().st_mtime_ns

    run_mode(run, replace(own, say=lines.append), mode="compare", seeds=[42])
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

    (parent,) = runs_in(own, "compare")
    runs = runs_in(own)
    children = [one for one in runs if one.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 3
    assert {one.info.status for one in runs} == {"FINISHED"}
    assert len(runs) == 4
