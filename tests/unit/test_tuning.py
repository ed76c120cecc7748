"""Studies without training: what is searched, where it lies, and a queue that no dead worker can spoil."""

import shlex
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
import yaml
from optuna.distributions import CategoricalDistribution, IntDistribution

from dinomaly_hd.config.base import flatten, text_of
from dinomaly_hd.config.conditions_file import read_conditions
from dinomaly_hd.config.resolve import resolve_config, resolve_model
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.config.variants import ABLATION
from dinomaly_hd.errors import ConfigError, DataError, Interrupted, NonFiniteError, Pruned, TrackingError
from dinomaly_hd.models.build import check_model
from dinomaly_hd.tuning import study as studies
from dinomaly_hd.tuning.results import best_of, condition_of, conditions_text, recipe_of, rows_of
from dinomaly_hd.tuning.space import AUTHORS, DIMENSIONS, TOPK, Space, make_space
from dinomaly_hd.tuning.storage import VARIABLE, address_of, connect, exclusive
from dinomaly_hd.tuning.study import Counts, Joined, Plan, chain_of, counts_of, join
from dinomaly_hd.tuning.worker import Attempt, work
from tests.work import PATIENCE_S

NAMES = tuple(name for name in DIMENSIONS if not name.startswith("evidence_"))
Evaluate = Callable[[Attempt], Sequence[float]]


def build(text: str) -> RunConfig:
    return resolve_config(text, {"preset": "quick", "seed": "42"})


def space_of(*names: str, base: str = "F") -> Space:
    return make_space(names, base=base, build=build, check=lambda _: None)


# Where a study lies.


def test_the_storage_is_beside_the_project_or_what_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert address_of("auto", root=tmp_path).file == tmp_path / "optuna.db"
    monkeypatch.setenv(VARIABLE, "postgresql://me:secret@host/studies")
    assert address_of("auto", root=tmp_path).shown == "postgresql://me:***@host/studies"


def test_a_password_is_used_and_never_shown(tmp_path: Path) -> None:
    for text in ("postgresql://me:secret@host:5432/db", "postgresql://me@host/db?password=secret&sslmode=no"):
        address = address_of(text, root=tmp_path)
        assert address.has_password
        assert ("secret" in address.text, "secret" in address.shown) == (True, False)
    assert not address_of("postgresql://me@host/db", root=tmp_path).has_password
    for text in ("optuna.db", "sqlite://", "sqlite:///:memory:", "mysql://me:secret@host/db"):
        with pytest.raises(ConfigError, match=r"expected auto, sqlite:///FILE") as raised:
            address_of(text, root=tmp_path)
        assert "secret" not in str(raised.value)


def test_a_file_that_is_no_database_and_a_dead_server_are_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no database, and long enough to be read as a header " * 9)
    with pytest.raises(ConfigError, match="file is not a database"):
        connect(address_of(f"sqlite:///{tmp_path / 'notes.txt'}", root=tmp_path))
    dead = address_of("postgresql://me:secret@127.0.0.1:9/db", root=tmp_path)
    with (
        pytest.raises(TrackingError, match=r"storage postgresql://me:\*\*\*@.*refused") as raised,
        exclusive(dead),
    ):
        pass
    assert "\n" not in str(raised.value)


# What is searched.


@pytest.mark.parametrize("name", AUTHORS)
def test_the_authors_settings_are_points_of_the_space(name: str) -> None:
    space = space_of(*NAMES)
    point = {key: text_of(value) for key, value in space.references()[name].items()}
    ours, theirs = flatten(build(space.config(point)).model), flatten(build(name).model)
    if name == "A0":  # the same MLP with the same element dropout under another name
        theirs |= {"bottleneck": "segment", "elem_p": theirs.pop("bottleneck_dropout")}
        theirs |= {"variant": "horizontal", "disable_segment": True}
        theirs |= {key: ours[key] for key in ("row_p", "seg_len", "seg_drop_p")}
    assert ours == theirs
    assert name in ABLATION
    assert list(space.references()) == ["F", "G", "A0"]


def test_only_settings_that_lie_in_the_space_are_queued() -> None:
    assert set(space_of("row_p", "seg_len", "seg_drop_p", "elem_p", "q_percent").references()) == {"F", "G"}
    assert space_of("row_p").references() == {"F": {"row_p": 0.2}}
    assert space_of("q_percent", base="A").references() == {"A": {"q_percent": 2.0}}
    assert list(space_of("row_p", base="F:seg_len=4").references()) == ["F:seg_len=4"]
    assert space_of("q_percent", base="K100").references() == {}, "100 % lies outside the range"


def test_a_value_is_suggested_only_where_it_does_something() -> None:
    space, seen = space_of(*NAMES), set()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(40):
        point = space.suggest(study.ask())
        seen.add((point[TOPK], point["disable_segment"]))
        assert ("q_percent" in point) == ("tail_context" in point) == (point[TOPK] == "true")
        segments = {"row_p", "seg_len", "seg_drop_p"} & set(point)
        assert len(segments) == (3 if point["disable_segment"] == "false" else 0)
        flat = flatten(build(space.config(point)).model)
        assert all(flat[name] == yaml.safe_load(text) for name, text in point.items() if name != TOPK)
    assert len(seen) == 4


@pytest.mark.parametrize("name", NAMES)
def test_every_name_changes_the_run(name: str) -> None:
    space, range_ = space_of(name), DIMENSIONS[name]
    switch = isinstance(range_, CategoricalDistribution)
    ends = ("true", "false") if switch else (str(range_.low), str(range_.high))
    assert len({build(space.config({name: text})).digest() for text in ends}) == 2


@pytest.mark.parametrize(
    ("names", "base", "message"),
    [
        (("row_pp",), "F", r"space='row_pp': not a name that can be searched. Did you mean 'row_p'"),
        (("row_p", "row_p"), "F", "each once"),
        ((), "F", "one or more names"),
        (("row_p",), "A0", "space=row_p: changes nothing in config=A0"),
        (("row_p",), "F0", "space=row_p: changes nothing in config=F0"),
        (("q_percent",), "D", "space=q_percent: changes nothing in config=D"),
        (("use_topk",), "decoder_dropout", "space=use_topk: changes nothing"),
        (("row_p",), "Z", "config 'Z': unknown"),
    ],
)
def test_a_space_that_would_search_nothing_is_refused(
    names: tuple[str, ...], base: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        space_of(*names, base=base)


def test_a_switch_makes_a_value_count() -> None:
    space_of("q_percent", "use_topk", base="D")
    space_of("row_p", "disable_segment", base="F0")
    assert space_of("row_p", base="decoder_dropout").config({"row_p": "0.3"}) == "decoder_dropout:row_p=0.3"


def test_segments_are_no_longer_than_the_token_grid_is_wide() -> None:
    def narrow(text: str) -> RunConfig:
        return resolve_config(text, {"preset": "quick", "seed": "42", "image_size": "32"})

    space = make_space(("seg_len", "disable_segment"), base="F", build=narrow, check=check_model)
    assert space.dimensions["seg_len"] == IntDistribution(1, 4)


# A found setting again.


FOUND = ("F:row_p=0.31:q_percent=1.2", "A0", "F0", "decoder_dropout:row_p=0.4", "K100")


@pytest.mark.parametrize("text", FOUND)
def test_a_setting_is_one_command_and_one_condition(text: str, tmp_path: Path) -> None:
    own = {"preset": "quick", "seed": "43", "simulate_size": "tiny", "learning_rate": "0.001"}
    run = resolve_config(text, own)
    recipe = recipe_of(run, spelt=("elem_p",))
    assert resolve_model(recipe.entry_point, recipe.flags) == run
    words = shlex.split(recipe.command((43,)))
    assert words[:5] == ["mlflow", "run", ".", "-e", recipe.entry_point]
    told = dict(word.split("=", 1) for word in words[6::2])
    assert set(words[5::2]) == {"-P"}
    assert resolve_model(recipe.entry_point, told) == run
    assert "-P seeds=1,2" in recipe.command((1, 2))

    path = tmp_path / "best.yaml"
    entry = condition_of(run, name="best", description="found", spelt=("elem_p",))
    path.write_text(conditions_text([entry], comment=["how"]))
    (condition,) = read_conditions(path)
    assert condition.name == "best"
    for preset in ("quick", "full"):
        values = {**condition.values, "preset": preset, "variant": "auto"}
        again = resolve_model(condition.values["variant"], values)
        assert again.model_copy(update={"preset": "quick"}) == run


# The queue.

HEARTBEAT_S = 1000
"""None is missed, however busy the machine is."""


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinomaly_hd.tuning.worker.LONGEST_PAUSE_S", 0.1)


def joined(tmp_path: Path, *, trials: int, **changed: Any) -> Joined:
    plain = {"study": "s", "config": "F", "objective": "synthetic", "sampler": "random", "pruner": "none"}
    own = {"metrics": ("mean/auroc",), "seeds": (1,), "heartbeat_s": HEARTBEAT_S, "space": space_of("row_p")}
    address = address_of(f"sqlite:///{tmp_path / 'optuna.db'}", root=tmp_path)
    values: dict[str, Any] = {**plain, **own, "build": lambda text, _: build(text), **changed}
    plan = Plan(address=address, trials=trials, **values)
    return join(plan, code="code-1", settings={}, parent=lambda known: known or "run-1")


def run_trials(
    study: Joined, evaluate: Evaluate, *, on_count: Callable[[Counts], None] = lambda _: None
) -> Counts:
    return work(study, evaluate=evaluate, tick=lambda: None, on_count=on_count)


def row_p(attempt: Attempt) -> list[float]:
    return [float(attempt.point["row_p"])]


def test_a_queue_holds_known_settings_first_and_is_topped_up(tmp_path: Path) -> None:
    study = joined(tmp_path, trials=3)
    assert counts_of(study.study) == Counts(valid=0, waiting=3, running=0, failed=0)
    settings: list[str | None] = []

    def note(attempt: Attempt) -> list[float]:
        settings.append(attempt.setting)
        return row_p(attempt)

    assert run_trials(study, note) == Counts(3, 0, 0, 0)
    assert settings == ["F", None, None]
    again = joined(tmp_path, trials=5)
    assert again.parent == "run-1"
    assert counts_of(again.study) == Counts(3, 2, 0, 0)
    run_trials(again, row_p)
    rows = rows_of(again.study)
    assert [row.number for row in rows] == [0, 1, 2, 3, 4]
    assert best_of(rows)[0].values[0] == pytest.approx(max(row.params["row_p"] for row in rows))
    assert len({row.params["row_p"] for row in rows}) > 2


def test_suggestions_follow_from_seed_and_number(tmp_path: Path) -> None:
    def found(name: str) -> list[Any]:
        (tmp_path / name).mkdir()
        study = joined(tmp_path / name, trials=4)
        run_trials(study, row_p)
        return [row.params for row in rows_of(study.study)]

    assert found("one") == found("two")


def test_what_a_stopped_worker_began_is_taken_up_again_under_its_number(tmp_path: Path) -> None:
    def stopped(attempt: Attempt) -> list[float]:
        attempt.trial.set_user_attr("mlflow_run_id", "run-of-trial-0")
        attempt.report(0.5, step=0)
        raise Interrupted(15)

    study, seen = joined(tmp_path, trials=2), []
    for _ in range(2):
        with pytest.raises(Interrupted):
            run_trials(study, stopped)

    def goes_on(attempt: Attempt) -> list[float]:
        noted = attempt.trial.user_attrs.get("mlflow_run_id")
        seen.append((attempt.number, attempt.setting, attempt.point, noted))
        attempt.report(0.5, step=0)  # said before: no warning, no second value
        return row_p(attempt)

    assert run_trials(joined(tmp_path, trials=2), goes_on).valid == 2
    assert seen[0][:2] != seen[1][:2]
    assert (0, "F", {"row_p": "0.2"}, "run-of-trial-0") in seen
    states = [trial.state.name for trial in study.study.get_trials()]
    assert (states.count("COMPLETE"), states.count("RUNNING"), states.count("WAITING")) == (2, 0, 0)


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_worker_that_dies_between_failing_a_trial_and_queueing_its_retry_loses_nothing(
    tmp_path: Path,
) -> None:
    study = joined(tmp_path, trials=2)
    dead = study.study.ask()
    study.study.tell(dead, state=optuna.trial.TrialState.FAIL)  # and then the worker was gone
    assert run_trials(study, row_p).valid == 2
    chains = [chain_of(t) for t in study.study.get_trials() if t.state.name == "COMPLETE"]
    assert sorted(chains) == [0, 1]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
@pytest.mark.parametrize("beats", [False, True])
def test_a_trial_of_a_killed_worker_is_tried_again(tmp_path: Path, beats: bool) -> None:
    study = joined(tmp_path, trials=1)
    left = study.study.ask()
    if beats:
        study.storage.record_heartbeat(left._trial_id)
    told: list[Counts] = []

    def two_heartbeats_later(counts: Counts) -> None:
        told.append(counts)
        with study.storage.engine.begin() as connection:
            earlier = f"datetime(heartbeat, '-{2 * HEARTBEAT_S} seconds')"
            connection.execute(sqlalchemy.text(f"UPDATE trial_heartbeats SET heartbeat = {earlier}"))

    assert run_trials(study, row_p, on_count=two_heartbeats_later) == Counts(1, 0, 0, 0)
    assert told[:3] == [Counts(0, 0, 1, 0)] * 2 + [Counts(0, 1, 0, 0)], "alive for three heartbeats"
    first, retry = study.study.get_trials()
    assert (first.state.name, retry.state.name, chain_of(retry)) == ("FAIL", "COMPLETE", first.number)


def test_a_diverged_trial_is_not_tried_again_but_replaced(tmp_path: Path) -> None:
    study = joined(tmp_path, trials=3)

    def diverges_once(attempt: Attempt) -> list[float]:
        if attempt.number == 1:
            raise NonFiniteError("step 3: loss nan")
        return row_p(attempt)

    assert run_trials(study, diverges_once) == Counts(valid=3, waiting=0, running=0, failed=1)
    failed = next(row for row in rows_of(study.study) if row.state == "failed")
    assert failed.notes["failed"] == "step 3: loss nan"


@pytest.mark.parametrize(("starts", "ended"), [(1, Counts(1, 0, 0, 0)), (3, Counts(1, 0, 0, 1))])
def test_a_trial_that_ends_its_worker_is_left_to_others_and_given_up_after_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: int, ended: Counts
) -> None:
    monkeypatch.setattr(studies, "MOST_RETRIES", 2)
    study = joined(tmp_path, trials=1)

    def unreadable(_: Attempt) -> list[float]:
        raise DataError("no such folder here")

    for _ in range(starts):
        with pytest.raises(DataError):
            run_trials(study, unreadable)
    assert run_trials(study, row_p) == ended


def test_two_workers_that_see_one_waiting_trial_run_it_once(tmp_path: Path) -> None:
    studies_of_two = [joined(tmp_path, trials=3) for _ in range(2)]
    barrier = threading.Barrier(2, timeout=PATIENCE_S)

    def together(attempt: Attempt) -> list[float]:
        if attempt.number < 2:
            barrier.wait()  # both are at work, and look for the last one at the same moment
        return row_p(attempt)

    with ThreadPoolExecutor(2) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their filters are not kept by thread
        ended = list(pool.map(lambda study: run_trials(study, together), studies_of_two))
    assert ended == [Counts(3, 0, 0, 0)] * 2
    assert len(studies_of_two[0].study.get_trials()) == 3


def test_a_worker_that_others_took_for_dead_has_no_say(tmp_path: Path) -> None:
    study = joined(tmp_path, trials=1)
    starts: list[int] = []

    def overtaken(attempt: Attempt) -> list[float]:
        starts.append(attempt.number)
        if len(starts) == 1:
            number = attempt.trial._trial_id
            study.storage.set_trial_state_values(number, state=optuna.trial.TrialState.FAIL)
        return row_p(attempt)

    assert run_trials(study, overtaken) == Counts(1, 0, 0, 0)
    assert starts == [0, 0]


# What suggests, and what gives up.


@pytest.mark.parametrize("name", studies.SAMPLERS)
def test_every_sampler_suggests_with_one_and_two_objectives(name: str) -> None:
    space = space_of("row_p", "q_percent", "use_topk")
    for objectives in (1, 2):
        study = optuna.create_study(
            directions=["maximize"] * objectives, sampler=studies.make_sampler(name, seed=3)
        )
        for number in range(10):
            trial = study.ask()
            assert space.config(space.suggest(trial))
            study.tell(trial, [number / 10] * objectives)


def test_what_trials_are_given_up_by() -> None:
    def by(seeds: int, objectives: int, *, watched: bool = True) -> str:
        return studies.Pruning("auto", seeds=seeds, objectives=objectives, steps=40, watched=watched).by

    assert [by(1, 1), by(1, 1, watched=False), by(2, 1)] == ["steps", "nothing", "nothing"]
    assert [by(3, 1), by(3, 2)] == ["seeds", "nothing"]


@pytest.mark.parametrize("seeds", [3, 5])
def test_seeds_that_are_all_worse_end_a_trial_before_the_last(tmp_path: Path, seeds: int) -> None:
    study = joined(tmp_path, trials=3, pruner="auto", seeds=tuple(range(seeds)))
    reported: dict[int, int] = {}

    def evaluate(attempt: Attempt) -> list[float]:
        values = []
        for seed in range(seeds):
            values.append(0.9 - 0.3 * (attempt.number == 1) + 0.05 * seed * (attempt.number == 2))
            reported[attempt.number] = seed + 1
            attempt.report(values[-1], step=seed)
        return [sum(values) / seeds]

    run_trials(study, evaluate)
    states = {row.number: row.state for row in rows_of(study.study)}
    assert states == {0: "complete", 1: "pruned", 2: "complete"}
    assert reported[1] == seeds - 1
    assert studies.p_threshold(seeds) == pytest.approx(max(0.1, 1.01 / 2 ** (seeds - 1)))


def test_known_settings_are_never_given_up(tmp_path: Path) -> None:
    def watched(text: str, seed: int) -> RunConfig:
        return resolve_config(text, {"max_steps": "4", "val_check_interval": "1", "seed": str(seed)})

    joined(tmp_path, trials=8, pruner="auto", build=watched)
    late = space_of("row_p", base="F:row_p=0.3")
    again = joined(tmp_path, trials=9, pruner="auto", build=watched, space=late)
    pruned: list[str | None] = []

    def evaluate(attempt: Attempt) -> list[float]:
        value = 0.9 if attempt.number < 6 else 0.1
        try:
            attempt.report(value, step=3)
        except Pruned:
            pruned.append(attempt.setting)
            raise
        return [value]

    run_trials(again, evaluate)
    states = {row.setting: row.state for row in rows_of(again.study)}
    assert states["F:row_p=0.3"] == "complete"
    assert pruned == [None, None]


def test_of_two_objectives_the_front_is_the_best(tmp_path: Path) -> None:
    study = joined(tmp_path, trials=3, metrics=("mean/auroc", "domain_C/auroc"))
    values = {0: [0.5, 0.5], 1: [0.9, 0.1], 2: [0.4, 0.4]}
    run_trials(study, lambda attempt: values[attempt.number])
    assert [row.number for row in best_of(rows_of(study.study))] == [0, 1]
