"""Training on one domain: failed targets are named, sources do as well as alone, flags mean what they say."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dinomaly_hd.config import RunConfig, flatten
from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.data.hdmap import Indices
from dinomaly_hd.errors import ComparisonError, ConfigError, LayoutError, NonFiniteError, SignalGuard
from dinomaly_hd.experiments import comparison, protocols
from dinomaly_hd.experiments.protocols import Trial, run_multi_domain, run_single_domain
from dinomaly_hd.experiments.run import Outcome, execute
from dinomaly_hd.experiments.score import Examined, Scorer
from dinomaly_hd.runs.folder import Context
from entry_points import multi_domain, single_domain

from .conftest import project
from .light_runs import SMALL, without_pictures


def build(model: str, **values: str) -> RunConfig:
    return resolve_model(model, {**SMALL[model], **values})


def scores(folder: Path, domain: str) -> pd.DataFrame:
    return pd.read_csv(folder / "scores" / f"{domain}.csv")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """Give all runs of this file one project, so that data and MLflow's store are made once."""
    with project(tmp_path_factory.mktemp("domains")) as context:
        yield context


@pytest.fixture
def own(place: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """Return the project with a result folder for one test alone; its runs draw nothing."""
    without_pictures(monkeypatch)
    return replace(place, result_dir=tmp_path / "results")


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


def test_with_every_target_failed_the_source_is_still_reported(
    own: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_on(monkeypatch, "domain_B")
    outcome = execute(build("trivial"), own)
    transfer = json.loads((outcome.folder / "results.json").read_text())["transfer"]
    assert list(transfer["missing_targets"]) == ["domain_B"]
    assert transfer["average_target_auroc"] is None
    assert transfer["source_auroc"] == outcome.results["per_domain_metrics"]["domain_A"]["auroc"]


def test_a_failing_source_ends_the_run(own: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_on(monkeypatch, "domain_A")
    with pytest.raises(NonFiniteError, match="domain_A/test/"):
        execute(build("trivial"), own)


@pytest.mark.parametrize("model", ["trivial", "draem"])
def test_the_source_does_as_well_with_targets_as_alone(model: str, own: Context) -> None:
    together = execute(build(model), replace(own, result_dir=own.result_dir / "multi"))
    alone = execute(build(model, domains="A", train_domains="all"), own)
    ours, theirs = scores(together.folder, "domain_A"), scores(alone.folder, "domain_A")
    assert ours["path"].tolist() == theirs["path"].tolist()
    np.testing.assert_allclose(ours["score"], theirs["score"], rtol=0, atol=1e-6)
    assert "transfer" not in alone.results


def trials(model: str, sources: str, seeds: tuple[int, ...], **values: str) -> list[Trial]:
    return [
        Trial(model, source, build(model, train_domains=source, seed=str(seed), **values))
        for seed in seeds
        for source in sources
    ]


def test_pairs_of_source_and_target_are_a_heat_map_and_tables(own: Context) -> None:
    lines: list[str] = []
    done = run_multi_domain(trials("trivial", "AB", (1, 2)), replace(own, say=lines.append))
    assert done is not None
    assert done.report is not None
    assert done.report.comparison.labels == ("trivial from A", "trivial from B")
    folder = done.report.files[0].parent
    assert (folder / "plots" / "transfer_1.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (folder / "tables").iterdir()} >= {"means.csv", "differences.csv"}
    assert "2 seeds" in done.report.markdown
    for member, outcome in done.outcomes.items():
        assert outcome.results["transfer"]["source_domains"] == [f"domain_{member.label[-1]}"]


def test_one_trial_is_an_ordinary_run(own: Context) -> None:
    assert run_multi_domain(trials("trivial", "A", (1,)), own) is None
    (results,) = own.result_dir.rglob("results.json")
    assert "transfer" in json.loads(results.read_text())


def single(model: str, source: str, seed: int = 42) -> Trial:
    return Trial(model, source, build(model, domains=source, train_domains="all", seed=str(seed)))


def test_single_sources_are_joined_model_by_model(own: Context) -> None:
    done = run_single_domain([single("trivial", source) for source in "AB"], own)
    assert done is not None
    assert done.report is not None
    assert done.report.comparison.labels == ("trivial",)
    means = done.report.comparison.means
    found = means[(means["metric"] == "auroc") & (means["condition"] == "all")].set_index("domain")["mean"]
    for member, outcome in done.outcomes.items():
        (domain,) = outcome.results["per_domain_metrics"]
        assert member.place.endswith(domain.removeprefix("domain_"))
        assert found[domain] == outcome.results["per_domain_metrics"][domain]["auroc"]


def test_a_run_that_failed_is_named_and_its_model_left_out(
    own: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(run: RunConfig, context: Context) -> Outcome:
        if run.model.model_type == "draem" and run.data.domains == "B":
            raise NonFiniteError("step 1: loss nan")
        return execute(run, context)

    monkeypatch.setattr(comparison, "execute", diverge)
    members = [single(model, source) for model in ("trivial", "draem") for source in "AB"]
    with pytest.raises(ComparisonError, match=r"1 of 4 members failed: draem, seed 42: step 1: loss nan"):
        run_single_domain(members, own)
    (report,) = own.result_dir.rglob("report.md")
    assert "draem, seed 42 (no finished run of domain_B; the others left out)" in report.read_text()


def test_a_member_with_a_failed_target_is_reported_on(own: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both models fail on B; what they find on A and C is compared."""
    fail_on(monkeypatch, "domain_B")
    values = {"domains": "A,B,C"}
    done = run_multi_domain(
        [*trials("trivial", "A", (1,), **values), *trials("patchcore", "A", (1,), **values)], own
    )
    assert done is not None
    assert done.report is not None
    assert "domain_B" in done.report.markdown


# From flags and conditions to trials.

CONDITIONS = {
    "experiment_conditions": [
        {
            "name": "first",
            "config": {
                "model_type": "draem",
                "source_domain": "domain_A",
                "learning_rate": 0.5,
                "batch_size": 3,
                "seed": 7,
            },
        },
        {"name": "second", "config": {"model_type": "trivial", "source_domain": "domain_A"}},
        {
            "name": "transfer",
            "config": {
                "model_type": "trivial",
                "source_domain": "domain_B",
                "target_domains": ["domain_C", "domain_A"],
                "trivial_score": "std",
            },
        },
    ]
}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "conditions.json"
    path.write_text(json.dumps(CONDITIONS))
    return str(path)


def write(path: Path, **config: Any) -> str:
    path.write_text(json.dumps({"experiment_conditions": [{"name": "own", "config": config}]}))
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


def values_of(trial: Trial) -> Mapping[str, Any]:
    return flatten(trial.run)


def test_without_flags_it_is_a_dinomaly_on_a(asked: list[Trial]) -> None:
    start(single_domain)
    start(multi_domain)
    own, transfer = asked
    assert (own.model, own.source, own.run.seed, own.run.data.domains) == ("dinomaly", "A", 42, "A")
    assert own.run.data.train_domains == "all"
    assert (transfer.run.data.domains, transfer.run.data.train_domains) == ("A,B,C,D", "A")
    assert own.run.evaluation.maps_per_group == 10


def test_models_sources_and_seeds_are_all_combined(asked: list[Trial]) -> None:
    models = ("trivial", "patchcore:context=2+3", "draem:fault_source=band", "horizontal")
    start(single_domain, model_type=",".join(models), source_domain="B,C", seeds="1,2")
    assert {(one.model, one.source, one.run.seed) for one in asked} == {
        (model, source, seed) for model in models for source in "BC" for seed in (1, 2)
    }
    assert all(one.run.data.domains == one.source for one in asked)
    assert {one.run.model.variant for one in asked} == {"trivial", "patchcore", "draem", "horizontal"}
    banded = next(one for one in asked if one.model.startswith("draem"))
    assert values_of(banded)["fault_source"] == "band"


def test_all_sources_are_the_domains_there_are(asked: list[Trial]) -> None:
    start(single_domain, model_type="trivial", source_domain="all")
    assert [one.source for one in asked] == ["A", "B", "C", "D"]
    asked.clear()
    start(multi_domain, model_type="trivial", source_domain="all", domains="X,Y,Z")
    assert [(one.run.data.domains, one.run.data.train_domains) for one in asked] == [
        ("X,Y,Z", source) for source in "XYZ"
    ]


def test_targets_can_be_chosen(asked: list[Trial]) -> None:
    start(multi_domain, model_type="trivial", source_domain="C", target_domains="D,A")
    (one,) = asked
    assert (one.run.data.domains, one.run.data.train_domains) == ("A,C,D", "C")


def test_flags_reach_every_trial(asked: list[Trial]) -> None:
    start(single_domain, model_type="draem,draem_sevnet", learning_rate="0.25", batch_size="5")
    assert [(one.run.training.learning_rate, one.run.training.batch_size) for one in asked] == [(0.25, 5)] * 2


def test_several_trials_draw_fewer_maps_unless_the_user_says_how_many(asked: list[Trial]) -> None:
    start(single_domain, model_type="trivial", seeds="1,2")
    start(single_domain, model_type="trivial", seeds="1,2", maps_per_group="7")
    assert [one.run.evaluation.maps_per_group for one in asked] == [2, 2, 7, 7]


def test_conditions_become_trials(asked: list[Trial], file: str) -> None:
    start(single_domain, conditions_file=file, condition="first,second")
    first, second = asked
    assert (first.model, first.source, first.run.seed) == ("first", "A", 7)
    assert (first.run.training.learning_rate, first.run.training.batch_size) == (0.5, 3)
    assert (second.model, second.run.seed, second.run.model.model_type) == ("second", 42, "trivial")


def test_a_condition_with_targets_is_a_transfer(asked: list[Trial], file: str) -> None:
    start(multi_domain, conditions_file=file, condition="transfer")
    (one,) = asked
    assert (one.model, one.source) == ("transfer", "B")
    assert (one.run.data.domains, one.run.data.train_domains) == ("A,B,C", "B")
    assert values_of(one)["trivial_score"] == "std"


def test_the_users_flag_wins_over_the_conditions_and_auto_does_not(asked: list[Trial], file: str) -> None:
    start(single_domain, conditions_file=file, condition="first", learning_rate="0.25", batch_size="auto")
    (one,) = asked
    assert (one.run.training.learning_rate, one.run.training.batch_size) == (0.25, 3)


def test_the_users_seeds_win_over_the_conditions(asked: list[Trial], file: str) -> None:
    start(single_domain, conditions_file=file, condition="first", seeds="1,2")
    assert [one.run.seed for one in asked] == [1, 2]


def test_without_names_all_conditions_are_meant(asked: list[Trial], tmp_path: Path) -> None:
    path = tmp_path / "two.json"
    path.write_text(json.dumps({"experiment_conditions": CONDITIONS["experiment_conditions"][:2]}))
    start(single_domain, conditions_file=str(path))
    assert [one.model for one in asked] == ["first", "second"]


def test_a_conditions_variant_is_the_one_that_is_run(asked: list[Trial], tmp_path: Path) -> None:
    own = {"model_type": "dinomaly", "source_domain": "A", "variant": "row_mask", "row_radius": 1}
    start(single_domain, conditions_file=write(tmp_path / "own.json", **own))
    (one,) = asked
    assert one.run.model.variant == "row_mask"
    assert values_of(one)["row_radius"] == "1"


def test_steps_that_the_user_gives_are_not_overruled_by_epochs(asked: list[Trial], tmp_path: Path) -> None:
    own = {"model_type": "draem", "source_domain": "A", "max_epochs": 50}
    start(single_domain, conditions_file=write(tmp_path / "own.json", **own), max_steps="20")
    (one,) = asked
    assert (one.run.training.max_epochs, one.run.training.max_steps) == (0, 20)


FILE = "FILE"
WRONG: dict[str, tuple[Any, dict[str, str], str]] = {
    "unknown model": (single_domain, {"model_type": "dream"}, "model_type 'dream': unknown.*draem"),
    "model twice": (single_domain, {"model_type": "draem,draem"}, "model_type='draem,draem'.*each once"),
    "no model": (single_domain, {"model_type": ","}, "model_type=','.*one or more"),
    "no source": (single_domain, {"source_domain": ","}, "source_domain=','.*one or more"),
    "unknown change": (
        single_domain,
        {"model_type": "draem:fault_sauce=band"},
        "'fault_sauce=band' is not name=value.*fault_source",
    ),
    "unknown domain": (multi_domain, {"source_domain": "E"}, "'E' is not one of domains=A,B,C,D"),
    "unknown target": (multi_domain, {"target_domains": "B,F"}, "'F' is not one of domains=A,B,C,D"),
    "source as target": (
        multi_domain,
        {"target_domains": "A,B"},
        "target_domains='A,B'.*other domains than A",
    ),
    "no target": (multi_domain, {"domains": "A"}, "expected one or more other domains than A"),
    "condition without file": (
        single_domain,
        {"condition": "first"},
        "condition=first: give the conditions_file",
    ),
    "unknown condition": (
        single_domain,
        {"conditions_file": FILE, "condition": "frist"},
        "condition='frist': not in .*first",
    ),
    "no such file": (single_domain, {"conditions_file": "none.json"}, "none.json: cannot be read"),
    "model beside a file": (
        single_domain,
        {"conditions_file": FILE, "model_type": "draem"},
        "model_type and conditions_file: the condition says it",
    ),
    "source beside a file": (
        multi_domain,
        {"conditions_file": FILE, "source_domain": "B"},
        "source_domain and conditions_file",
    ),
    "transfer alone": (
        single_domain,
        {"conditions_file": FILE, "condition": "transfer"},
        "condition transfer: expected source_domain and no target_domains; for others there is multi_domain",
    ),
    "alone as transfer": (
        multi_domain,
        {"conditions_file": FILE, "condition": "first"},
        "condition first: expected source_domain and target_domains; for others there is single_domain",
    ),
    "rate of a bank": (
        single_domain,
        {"model_type": "patchcore", "learning_rate": "0.1"},
        "learning_rate does not apply to patchcore as it is set, only to .*draem",
    ),
    "encoder of draem": (
        single_domain,
        {"model_type": "draem", "encoder": "resnet18"},
        "encoder.* draem",
    ),
    "another fault's value": (
        single_domain,
        {"model_type": "draem", "patch_count": "2"},
        "patch_count does not apply to draem as it is set.*fault_source=patch",
    ),
    "value of another kind": (
        single_domain,
        {"model_type": "draem", "width": "0"},
        "width='0': .*greater than 0",
    ),
    "flag of a condition": (
        single_domain,
        {"conditions_file": FILE, "condition": "second", "width": "1"},
        "width does not apply to trivial",
    ),
    "targets of single_domain": (single_domain, {"target_domains": "B"}, "unknown flag --target_domains"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_use_is_one_clear_line(wrong: str, asked: list[Trial], file: str) -> None:
    module, flags, message = WRONG[wrong]
    with pytest.raises(ConfigError, match=message) as caught:
        start(module, **{name: file if value == FILE else value for name, value in flags.items()})
    assert "\n" not in str(caught.value)
    assert not asked


def test_an_unknown_domain_of_the_data_is_refused(own: Context) -> None:
    with pytest.raises(LayoutError, match=r"unknown domain 'E'\. Known: domain_A"):
        run_single_domain([single("trivial", "E")], own)
