"""A study as all its workers know it, and its queue: none of its trials is lost when a worker dies.

A trial is one link of a chain: where its worker died it ends as FAIL, and its retry goes on in the same
folder and MLflow run. Optuna's own way (``heartbeat_stale_trial_callback``) has two holes: a worker that dies
between writing FAIL and queueing the retry loses it, and a trial whose worker died before its first heartbeat
is taken for alive for ever. So nothing is done at the FAIL, and whoever holds the study puts it right.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import sqlalchemy
from optuna.pruners import BasePruner, MedianPruner, NopPruner, WilcoxonPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.tuning.space import Space
from dinomaly_hd.tuning.storage import Address, Storage, clear_outage, connect, exclusive, quiet

SYNTHETIC, TEST = "synthetic", "test"
FOLDER = "tune"
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}"
CODE, SETTINGS, PARENT = "code", "settings", "mlflow_parent"
SHOWN_DIFFERENCES = 3
# What is noted on a trial: which known setting it is, and why it is not tried again.
SETTING, FAILED = "setting", "failed"
MOST_RETRIES = 30
VALID = (TrialState.COMPLETE, TrialState.PRUNED)
STARTUP_TRIALS = 8  # finished ones, the authors' settings among them, before a sampler learns from them
PRUNE_AFTER = 0.25  # share of a training before which no trial is given up
P_THRESHOLD = 0.1

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, group=True),
    "gp": lambda seed: GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False),
    "random": lambda seed: RandomSampler(seed=seed),
}
PRUNERS = ("auto", "none")


def make_sampler(name: str, *, seed: int) -> BaseSampler:
    """Return a sampler whose draws are those of ``seed``."""
    if name not in SAMPLERS:
        raise ConfigError(f"sampler={name!r}: unknown.{nearest(name, SAMPLERS)}")
    with quiet():
        return SAMPLERS[name](seed)


class Pruning:
    """How trials are given up: ``by`` "steps" within a seed, "seeds", or "nothing"; ``text`` says it.

    It depends on the ``seeds`` of a trial, and whether the objective is ``watched`` during its ``steps``.
    """

    def __init__(self, name: str, *, seeds: int, objectives: int, steps: int, watched: bool) -> None:
        if name not in PRUNERS:
            raise ConfigError(f"pruner={name!r}: unknown.{nearest(name, PRUNERS)}")
        self.by, self.text = "nothing", "no trial is given up"
        self.pruner: BasePruner = NopPruner()
        if name == "none" or objectives > 1:
            return
        if seeds == 1 and watched:
            first = int(PRUNE_AFTER * steps)
            self.by, self.pruner = "steps", MedianPruner(n_warmup_steps=first)
            self.text = f"a trial is given up below the median of the others, after step {first}"
        elif seeds > 2:
            with quiet():
                self.by, self.pruner = "seeds", WilcoxonPruner(p_threshold=p_threshold(seeds))
            rule = f"p < {p_threshold(seeds):.3g}"
            self.text = f"a trial is given up after seeds that are worse than the best trial's, {rule}"


def p_threshold(seeds: int) -> float:
    """Return .1, or with few seeds what all but the last can just reach: they must all be worse.

    n pairs that all differ in one direction have a one-sided p-value of 2^-n in the signed-rank test.

    >>> p_threshold(10), round(p_threshold(3), 3)
    (0.1, 0.253)
    """
    return max(P_THRESHOLD, 1.01 * 2.0 ** -(seeds - 1))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study as its flags ask for it; the help of `tune` says what each is."""

    study: str
    address: Address
    trials: int
    config: str  # text of the config that is searched around
    space: Space
    objective: str
    metrics: tuple[str, ...]  # one or two figures that are maximised, such as "domain_C/tpr_at_fpr_1"
    seeds: tuple[int, ...]
    sampler: str
    pruner: str
    heartbeat_s: int
    build: Callable[[str, int], RunConfig]  # makes the run of a config's text and a seed

    @property
    def base(self) -> RunConfig:
        """The run that is searched around, with the first seed."""
        return self.build(self.config, self.seeds[0])

    @property
    def pruning(self) -> Pruning:
        training = self.base.training
        return Pruning(
            self.pruner,
            seeds=len(self.seeds),
            objectives=len(self.metrics),
            steps=training.max_steps,
            watched=self.objective == SYNTHETIC and getattr(training, "val_check_interval", 0) > 0,
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """The objectives' names in MLflow."""
        return tuple(f"{SYNTHETIC}/{name}" if self.objective == SYNTHETIC else name for name in self.metrics)

    def folder(self, result_dir: Path) -> Path:
        return result_dir / FOLDER / self.study


class Joined(NamedTuple):
    """A study with its database; ``parent`` is its MLflow run, None where MLflow did not answer."""

    plan: Plan
    study: optuna.Study
    storage: Storage
    parent: str | None


class Counts(NamedTuple):
    """A study's trials: finished ones, those in the queue and at work, and chains that ended in a failure.

    What is to be tried again counts as in the queue before it is.
    """

    valid: int
    waiting: int
    running: int
    failed: int


def check_name(name: str) -> None:
    """Refuse a name that cannot be a folder's."""
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"study={name!r}: expected 1 to 80 letters, digits, _ . -; a letter or digit first")


def join(
    plan: Plan, *, code: str, settings: Mapping[str, Any], parent: Callable[[str | None], str | None]
) -> Joined:
    """Make a study, or join the one of this name, if ``code`` and ``settings`` are those it was made on.

    ``parent`` is called with the study's MLflow run, None for a new study, and returns the one it is to have.
    """
    with exclusive(plan.address), clear_outage(plan.address):
        storage = connect(plan.address, heartbeat_s=plan.heartbeat_s)
        if plan.study not in optuna.get_all_study_names(storage):
            storage.create_new_study([StudyDirection.MAXIMIZE] * len(plan.metrics), plan.study)
        study = optuna.load_study(
            study_name=plan.study,
            storage=storage,
            sampler=make_sampler("random", seed=0),
            pruner=plan.pruning.pruner,
        )
        known = study.user_attrs
        _check(plan.study, known, code=code, settings=settings)
        for key, value in ((CODE, code), (SETTINGS, dict(settings))):
            if key not in known:
                study.set_user_attr(key, value)
        run_id = parent(known.get(PARENT))
        if run_id is not None and run_id != known.get(PARENT):
            study.set_user_attr(PARENT, run_id)
        fill(study, trials=plan.trials, references=plan.space.references())
    return Joined(plan, study, storage, run_id)


def _check(name: str, known: Mapping[str, Any], *, code: str, settings: Mapping[str, Any]) -> None:
    if known.get(CODE, code) != code:
        raise ConfigError(
            f"study {name}: its trials were run by code {known[CODE]}, here it is {code}; use the same "
            "version on every machine, or another study"
        )
    theirs = known.get(SETTINGS, settings)
    different = [key for key in sorted({*theirs, *settings}) if theirs.get(key) != settings.get(key)]
    if different:
        shown = [f"{key}={theirs.get(key)} (here {settings.get(key)})" for key in different]
        more = f" and {len(shown) - SHOWN_DIFFERENCES} more" if len(shown) > SHOWN_DIFFERENCES else ""
        del shown[SHOWN_DIFFERENCES:]
        raise ConfigError(f"study {name} has {', '.join(shown)}{more}; give the same, or another study")


def chain_of(trial: FrozenTrial) -> int:
    """Return the number of the first trial of a chain of retries: it names folder and MLflow run."""
    return int(trial.system_attrs.get("failed_trial", trial.number))


def counts_of(study: optuna.Study) -> Counts:
    trials = study.get_trials(deepcopy=False)
    states, final = [trial.state for trial in trials], len(failures(trials))
    return Counts(
        valid=sum(state in VALID for state in states),
        waiting=states.count(TrialState.WAITING) + len(_ends(trials)) - final,
        running=states.count(TrialState.RUNNING),
        failed=final,
    )


def failures(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the failed trials that are not tried again."""
    return [trial for trial in _ends(trials) if _is_final(trial)]


def fill(study: optuna.Study, *, trials: int, references: Mapping[str, Mapping[str, Any]]) -> None:
    """Put known settings, then free trials into the queue until the study has ``trials``; call it alone.

    What is there already counts, so that a later start with more trials adds only the difference, and one
    that died half-way is made up for.
    """
    known = {trial.user_attrs.get(SETTING) for trial in study.get_trials(deepcopy=False)}
    counts = counts_of(study)
    room = trials - counts.valid - counts.waiting - counts.running
    for setting, values in references.items():
        if setting not in known and room > 0:
            study.enqueue_trial(dict(values), user_attrs={SETTING: setting})
            room -= 1
    if counts.failed <= max(3, trials // 4):  # so many failed trials are replaced
        for _ in range(room):
            study.enqueue_trial({})


def mend(study: optuna.Study, storage: Storage) -> None:
    """Fail what dead workers left behind, and queue the retries that are missing; call it alone."""
    running = [one._trial_id for one in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
    query = sqlalchemy.text("SELECT trial_id FROM trial_heartbeats WHERE trial_id IN :ids")
    with storage.engine.connect() as connection:
        ids: sqlalchemy.BindParameter[int] = sqlalchemy.bindparam("ids", running, expanding=True)
        beating = set(connection.scalars(query.bindparams(ids)))
    for trial_id in set(running) - beating:
        storage.record_heartbeat(trial_id)  # without a first one, Optuna would never miss the next
    with quiet():
        optuna.storages.fail_stale_trials(study)
        retry = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
        for trial in _ends(study.get_trials()):
            if not _is_final(trial):
                retry(study, trial)


def _ends(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the FAIL trials that no retry follows."""
    followed = {number for trial in trials for number in trial.system_attrs.get("retry_history", [])}
    return [trial for trial in trials if trial.state == TrialState.FAIL and trial.number not in followed]


def _is_final(trial: FrozenTrial) -> bool:
    return FAILED in trial.user_attrs or len(trial.system_attrs.get("retry_history", [])) >= MOST_RETRIES
