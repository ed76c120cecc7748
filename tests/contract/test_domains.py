"""Training on one domain: failed targets are named, sources do as well as alone, flags mean what they say."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dinomaly_hd.config.base import flatten
from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.data.hdmap import Indices
from dinomaly_hd.errors import ComparisonError, ConfigError, NonFiniteError, SignalGuard
from dinomaly_hd.experiments import comparison, protocols
from dinomaly_hd.experiments.comparison import Done, Member
from dinomaly_hd.experiments.protocols import run_multi_domain, run_single_domain
from dinomaly_hd.experiments.reporting import Report
from dinomaly_hd.experiments.run import Outcome, execute
from dinomaly_hd.experiments.score import Examined, Scorer
from dinomaly_hd.experiments.trials import Trial
from dinomaly_hd.runs.folder import Context
from entry_points import multi_domain, single_domain

from .light_runs import SMALL


def build(model: str, **values: str) -> RunConfig:
    return resolve_model(model, {**SMALL[model], **values})


def fail_on(monkeypatch: pytest.MonkeyPatch, domain: str, *, splits: tuple[str, ...] = ("test",)) -> None:
    """Make every image of a domain, in some splits, unscorable."""
    examine = Scorer.examine

    def refuse(self: Scorer, positions: Indices) -> Examined:
        records = [self.store.manifest.records[int(i)] for i in positions]
        bad = [one.path for one in records if one.domain == domain and one.split in splits]
        if bad:
            raise NonFiniteError(f"{bad[0]}: the model's score is NaN or infinite")
        return examine(self, positions)

    monkeypatch.setattr(Scorer, "examine", refuse)


@pytest.mark.parametrize("splits", [("test",), ("train", "test")], ids=["test", "normals too"])
def test_a_failing_target_is_named_and_never_counted(
    splits: tuple[str, ...], own: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_on(monkeypatch, "domain_B", splits=splits)
    lines: list[str] = []
    outcome = execute(build("trivial", domains="A,B,C"), replace(own, say=lines.append))
    results = json.loads((outcome.folder / "results.json").read_text())
    transfer = results["transfer"]
    (named,) = transfer["missing_targets"].items()
    assert named[0] == "domain_B"
    assert "NaN or infinite" in named[1]
    assert transfer["average_target_auroc"] == results["target_results"]["domain_C"]["auroc"]
    assert "domain_B" not in results["per_domain_metrics"]
    assert any(line.startswith("domain_B is left out: ") for line in lines)
    assert "domain_B" in (outcome.folder / "report.html").read_text()
    assert not (outcome.folder / "scores" / "domain_B.csv").exists()


def test_without_a_target_the_source_is_reported(own: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fail_on(patch, "domain_B")
        folder = execute(build("trivial"), own).folder
    results = json.loads((folder / "results.json").read_text())
    assert list(results["transfer"]["missing_targets"]) == ["domain_B"]
    assert results["transfer"]["average_target_auroc"] is None
    assert results["transfer"]["source_auroc"] == results["per_domain_metrics"]["domain_A"]["auroc"]
    fail_on(monkeypatch, "domain_A")
    with pytest.raises(NonFiniteError, match="domain_A/test/"):
        execute(build("trivial", seed="43"), own)


@pytest.mark.parametrize("model", ["dinomaly", "draem"])
def test_the_source_does_as_well_with_targets_as_alone(model: str, own: Context) -> None:
    together = execute(build(model), replace(own, result_dir=own.result_dir / "multi"))
    alone = execute(build(model, domains="A", train_domains="all", eval_batch_size="3"), own)
    ours, theirs = (pd.read_csv(one.folder / "scores" / "domain_A.csv") for one in (together, alone))
    assert ours["path"].tolist() == theirs["path"].tolist()
    np.testing.assert_allclose(ours["score"], theirs["score"], rtol=0, atol=1e-6)
    assert "transfer" not in alone.results


def test_faults_of_the_source_that_a_model_learned_from_are_tested_nowhere(own: Context) -> None:
    runs = [build("draem", fault_source=kind, domains="A,B") for kind in ("band", "source_domain")]
    done = run_multi_domain([Trial(one.model.faults.fault_source, "A", one) for one in runs], own)
    assert done is not None
    assert done.report is not None
    plain, learning = (one.folder / "scores" for one in done.outcomes.values())
    lost = {}
    for domain in "AB":
        ours, theirs = (pd.read_csv(folder / f"domain_{domain}.csv") for folder in (learning, plain))
        lost[domain] = set(theirs["path"]) - set(ours["path"])
        assert set(ours["path"]) <= set(theirs["path"])
    assert not lost["B"]
    assert 0 < len(lost["A"]) == sum("fault" in path for path in lost["A"])
    counts = done.report.comparison.counts
    assert sum(counts["domain_A"]) == sum(counts["domain_B"]) - len(lost["A"])
    assert f"{len(lost['A'])} faults of the source are compared in no run" in done.report.markdown
    trained = [json.loads((one.folder / "results.json").read_text()) for one in done.outcomes.values()]
    assert trained[1]["transfer"]["source_domains"] == ["domain_A"]
    with pytest.raises(
        ConfigError, match=r"fault_source=source_domain: faults of one domain .* multi_domain"
    ):
        execute(build("draem", fault_source="source_domain", domains="A", train_domains="all"), own)


def trials(model: str, sources: str, seeds: tuple[int, ...], **values: str) -> list[Trial]:
    def one(source: str, seed: int) -> Trial:
        return Trial(model, source, build(model, train_domains=source, seed=str(seed), **values))

    return [one(source, seed) for seed in seeds for source in sources]


def several(done: Done | None) -> tuple[dict[Member, Outcome], Report]:
    assert done is not None
    assert done.report is not None
    return done.outcomes, done.report


def single(model: str, source: str) -> Trial:
    return Trial(model, source, build(model, domains=source, train_domains="all"))


def test_pairs_of_source_and_target_are_a_heat_map_and_tables_and_one_trial_is_a_run(own: Context) -> None:
    outcomes, report = several(run_multi_domain(trials("trivial", "AB", (1, 2)), own))
    assert report.comparison.labels == ("trivial from A", "trivial from B")
    folder = report.files[0].parent
    assert (folder / "plots" / "transfer_1.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (folder / "tables").iterdir()} >= {"means.csv", "differences.csv"}
    assert "2 seeds" in report.markdown
    for member, outcome in outcomes.items():
        assert outcome.results["transfer"]["source_domains"] == [f"domain_{member.label[-1]}"]
    alone = replace(own, result_dir=own.result_dir / "alone")
    assert run_multi_domain(trials("trivial", "A", (3,)), alone) is None
    (results,) = alone.result_dir.rglob("results.json")
    assert "transfer" in json.loads(results.read_text())


def test_single_sources_are_joined_and_failed_ones_left_out(
    own: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(run: RunConfig, context: Context) -> Outcome:
        if run.model.model_type == "draem" and run.data.domains == "B":
            raise NonFiniteError("step 1: loss nan")
        return execute(run, context)

    monkeypatch.setattr(comparison, "execute", diverge)
    members = [single(model, source) for model in ("trivial", "draem") for source in "AB"]
    outcomes, report = several(run_single_domain(members[:2], own))
    assert report.comparison.labels == ("trivial",)
    means = report.comparison.means
    found = means[(means["metric"] == "auroc") & (means["condition"] == "all")].set_index("domain")["mean"]
    for member, outcome in outcomes.items():
        (domain,) = outcome.results["per_domain_metrics"]
        assert member.place.endswith(domain.removeprefix("domain_"))
        assert found[domain] == outcome.results["per_domain_metrics"][domain]["auroc"]

    second = replace(own, result_dir=own.result_dir / "second")
    with pytest.raises(ComparisonError, match=r"1 of 4 members failed: draem, seed 42: step 1: loss nan"):
        run_single_domain(members, second)
    (page,) = second.result_dir.rglob("report.md")
    assert "draem, seed 42 (no finished run of domain_B; the others left out)" in page.read_text()


def test_a_member_with_a_failed_target_is_reported_on(own: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both models fail on B; what they find on A and C is compared."""
    fail_on(monkeypatch, "domain_B")
    members = [one for model in ("trivial", "patchcore") for one in trials(model, "A", (1,), domains="A,B,C")]
    _, report = several(run_multi_domain(members, own))
    assert "domain_B" in report.markdown


# From flags and conditions to trials.

CONDITIONS = {
    "first": {"model_type": "draem", "source_domain": "domain_A", "learning_rate": 0.5, "batch_size": 3}
    | {"seed": 7, "max_epochs": 50},
    "second": {"model_type": "trivial", "source_domain": "domain_A"},
    "masked": {"model_type": "dinomaly", "source_domain": "A", "variant": "row_mask", "row_radius": 1},
    "transfer": {
        "model_type": "trivial",
        "source_domain": "domain_B",
        "target_domains": ["domain_C", "domain_A"],
        "trivial_score": "std",
    },
}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "conditions.json"
    named = [{"name": name, "config": config} for name, config in CONDITIONS.items()]
    path.write_text(json.dumps({"experiment_conditions": named}))
    return str(path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """Return the list that the entry points fill instead of running."""
    kept: list[Trial] = []
    for name in ("run_single_domain", "run_multi_domain"):
        monkeypatch.setattr(protocols, name, lambda trials, _: kept.extend(trials))
    return kept


def start(module: Any, **flags: str) -> None:
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    module.main([*words, "--preset", "quick"], SignalGuard())


DINOMALY = {"model": "dinomaly", "source": "A", "seed": 42, "maps_per_group": 10}
TRIVIAL = {"model_type": "trivial"}
ASKED: list[tuple[Any, dict[str, str], list[dict[str, Any]]]] = [
    (single_domain, {}, [{**DINOMALY, "domains": "A", "train_domains": "all"}]),
    (multi_domain, {}, [{**DINOMALY, "domains": "A,B,C,D", "train_domains": "A"}]),
    (single_domain, {**TRIVIAL, "source_domain": "all"}, [{"source": source} for source in "ABCD"]),
    (
        multi_domain,
        {**TRIVIAL, "source_domain": "all", "domains": "X,Y,Z"},
        [{"domains": "X,Y,Z", "train_domains": source} for source in "XYZ"],
    ),
    (
        multi_domain,
        {**TRIVIAL, "source_domain": "C", "target_domains": "D,A"},
        [{"domains": "A,C,D", "train_domains": "C"}],
    ),
    (
        single_domain,
        {"model_type": "draem,draem_sevnet", "learning_rate": "0.25", "batch_size": "5"},
        [{"learning_rate": 0.25, "batch_size": 5}] * 2,
    ),
    # Several trials draw fewer maps unless the user says how many.
    (single_domain, {**TRIVIAL, "seeds": "1,2"}, [{"seed": seed, "maps_per_group": 2} for seed in (1, 2)]),
    (single_domain, {**TRIVIAL, "seeds": "1,2", "maps_per_group": "7"}, [{"maps_per_group": 7}] * 2),
    (
        single_domain,
        {"condition": "first,second,masked"},
        [
            {"model": "first", "source": "A", "seed": 7, "learning_rate": 0.5, "batch_size": 3},
            {"model": "second", "seed": 42, "model_type": "trivial"},
            {"variant": "row_mask", "row_radius": "1"},
        ],
    ),
    (
        multi_domain,
        {"condition": "transfer"},
        [{"source": "B", "domains": "A,B,C", "train_domains": "B", "trivial_score": "std"}],
    ),
    # The user's flags win over the conditions', "auto" does not; nor do epochs overrule steps.
    (
        single_domain,
        {"condition": "first", "learning_rate": ".25", "batch_size": "auto", "max_steps": "20"},
        [{"learning_rate": 0.25, "batch_size": 3, "max_epochs": 0, "max_steps": 20}],
    ),
    (single_domain, {"condition": "first", "seeds": "1,2"}, [{"seed": 1}, {"seed": 2}]),
]


def values_of(trial: Trial) -> Mapping[str, Any]:
    return {**flatten(trial.run), "model": trial.model, "source": trial.source}


@pytest.mark.parametrize(("module", "flags", "expected"), ASKED, ids=lambda value: str(value)[:50])
def test_flags_and_conditions_become_trials(
    module: Any, flags: dict[str, str], expected: list[dict[str, Any]], asked: list[Trial], file: str
) -> None:
    start(module, **flags, **({"conditions_file": file} if "condition" in flags else {}))
    found = [values_of(trial) for trial in asked]
    assert [{name: own[name] for name in one} for own, one in zip(found, expected, strict=True)] == expected


def test_models_sources_and_seeds_are_all_combined_and_without_names_all_conditions_are_meant(
    asked: list[Trial], file: str, tmp_path: Path
) -> None:
    models = ("trivial", "patchcore:context=2+3", "draem:fault_source=band", "horizontal")
    start(single_domain, model_type=",".join(models), source_domain="B,C", seeds="1,2")
    assert {(one.model, one.source, one.run.seed) for one in asked} == {
        (model, source, seed) for model in models for source in "BC" for seed in (1, 2)
    }
    assert all(one.run.data.domains == one.source for one in asked)
    assert {one.run.model.variant for one in asked} == {"trivial", "patchcore", "draem", "horizontal"}
    banded = next(one for one in asked if one.model.startswith("draem"))
    assert values_of(banded)["fault_source"] == "band"

    asked.clear()
    content = json.loads(Path(file).read_text())
    content["experiment_conditions"].pop()
    (tmp_path / "three.json").write_text(json.dumps(content))
    start(single_domain, conditions_file=str(tmp_path / "three.json"))
    assert [one.model for one in asked] == ["first", "second", "masked"]
