"""A worker: takes trials from a study's queue until the study is over, whatever happens to other workers."""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna import Trial
from optuna.exceptions import ExperimentalWarning, OptunaError
from sqlalchemy.exc import SQLAlchemyError

from dinomaly_hd.errors import CheckpointError, DinomalyHDError, NonFiniteError, OutOfMemory, Pruned
from dinomaly_hd.randomness import derive
from dinomaly_hd.tuning.methods import make_sampler
from dinomaly_hd.tuning.queue import (
    FAILED,
    QUEUED,
    SETTING,
    SURPLUS,
    Counts,
    Keeper,
    chain_of,
    counts_of,
    fill,
)
from dinomaly_hd.tuning.space import Space
from dinomaly_hd.tuning.storage import clear_outage, exclusive
from dinomaly_hd.tuning.study import Joined

ENDS_A_TRIAL_ONLY = (NonFiniteError, CheckpointError)
LONGEST_PAUSE_S = 5.0


class Attempt:
    """One start of a trial.

    Attributes:
        number: Names the trial's folder and MLflow run: that of the first start.
        point: Searched values as flags' text.
        setting: Name of the known setting that it is, None for a suggested point.
    """

    def __init__(self, trial: Trial, *, space: Space) -> None:
        record = trial.study._storage.get_trial(trial._trial_id)
        self.number = chain_of(record)
        self.setting: str | None = trial.user_attrs.get(SETTING)
        self.point = space.suggest(trial)
        self._trial, self._reported = trial, set(record.intermediate_values)

    def report(self, value: float, *, step: int) -> None:
        """Say how good it is so far; a retry's reports at the steps of its first start count once.

        Raises:
            Pruned: It cannot become the best any more. Known settings are always brought to their end.
        """
        if step not in self._reported:
            self._reported.add(step)
            self._trial.report(value, step)
        if self.setting is None and self._trial.should_prune():
            raise Pruned(f"trial {self.number} is given up at {value:.4g} after {step}")

    def remembered(self, name: str) -> Any:
        """Return what this or an earlier start of the trial has noted, None if nothing."""
        return self._trial.user_attrs.get(name)

    def remember(self, name: str, value: Any) -> None:
        """Note something for later starts and for the report."""
        self._trial.set_user_attr(name, value)


Evaluate = Callable[[Attempt], Sequence[float]]


class Surplus(Exception):
    """Two workers saw one waiting trial: the slower one made another that nobody asked for."""


def work(
    joined: Joined,
    *,
    trials: int,
    space: Space,
    sampler: str,
    seed: int,
    evaluate: Evaluate,
    tick: Callable[[], None],
    on_count: Callable[[Counts], None],
) -> Counts:
    """Run trials until ``trials`` are finished, and return what became of all.

    Args:
        joined: The study.
        trials: Finished or given up.
        space: What is suggested from.
        sampler: Name of what suggests.
        seed: Suggestions are a function of it, the trial's number and what is known by then.
        evaluate: Runs a trial and returns its objectives.
        tick: Called while waiting for others; may raise.
        on_count: Called with every count.

    Raises:
        DinomalyHDError: What ended a trial and would end others; that trial goes back to the queue.
        TrackingError: The database failed.
    """
    keeper = Keeper(joined.study, joined.storage)
    assert joined.storage.heartbeat_interval is not None, "studies have heartbeats"
    pause_s = min(LONGEST_PAUSE_S, float(joined.storage.heartbeat_interval))
    while True:
        tick()
        with exclusive(joined.address), clear_outage(joined.address):
            keeper.mend()
            fill(joined.study, trials=trials, references={})
            counts = counts_of(joined.study)
        on_count(counts)
        if counts.valid >= trials or not (counts.waiting or counts.running):
            return counts
        if counts.waiting:
            with clear_outage(joined.address):
                _take(joined, space=space, sampler=sampler, seed=seed, evaluate=evaluate)
        else:
            _pause(pause_s, tick)


def _take(joined: Joined, *, space: Space, sampler: str, seed: int, evaluate: Evaluate) -> None:
    """Run one trial of the queue.

    A worker that others took for dead has no say any more: its trial's retry has the same folder.
    """
    study = joined.study
    overtaken = False

    def objective(trial: Trial) -> Sequence[float]:
        nonlocal overtaken
        if QUEUED not in trial.user_attrs:
            trial.set_user_attr(SURPLUS, "another worker was faster")
            raise Surplus
        study.sampler = make_sampler(sampler, seed=derive(seed, "trial", trial.number) % 2**32)
        try:
            return _evaluated(trial, space, evaluate)
        finally:
            overtaken = joined.storage.get_trial(trial._trial_id).state.is_finished()

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.optimize(objective, n_trials=1, catch=(Surplus, *ENDS_A_TRIAL_ONLY))
    except Exception:
        if not overtaken:
            raise


def _evaluated(trial: Trial, space: Space, evaluate: Evaluate) -> Sequence[float]:
    """Evaluate a trial; what would fail again wherever it is tried is noted."""
    try:
        return evaluate(Attempt(trial, space=space))
    except (Pruned, OutOfMemory) as error:  # a point that does not fit is given up, not tried again
        raise optuna.TrialPruned(str(error)) from error
    except (OptunaError, SQLAlchemyError):
        raise
    except Exception as error:
        if isinstance(error, ENDS_A_TRIAL_ONLY) or not isinstance(error, DinomalyHDError):
            trial.set_user_attr(FAILED, str(error) or type(error).__name__)
        raise


def _pause(seconds: float, tick: Callable[[], None]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        tick()
        time.sleep(min(0.2, seconds))
