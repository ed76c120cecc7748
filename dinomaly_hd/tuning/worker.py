"""A worker: takes trials from a study's queue until the study is over, whatever happens to other workers."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import optuna
from optuna import Trial
from optuna.exceptions import OptunaError
from sqlalchemy.exc import SQLAlchemyError

from dinomaly_hd.errors import CheckpointError, DinomalyHDError, NonFiniteError, OutOfMemory, Pruned
from dinomaly_hd.randomness import derive
from dinomaly_hd.tuning.space import Space
from dinomaly_hd.tuning.storage import clear_outage, exclusive, quiet
from dinomaly_hd.tuning.study import (
    FAILED,
    SETTING,
    Counts,
    Joined,
    chain_of,
    counts_of,
    fill,
    make_sampler,
    mend,
)

ENDS_A_TRIAL_ONLY = (NonFiniteError, CheckpointError)
LONGEST_PAUSE_S = 5.0


class Attempt:
    """One start of a trial, whose ``number`` is that of the first start: it names folder and MLflow run.

    ``point`` holds the searched values as flags' text, ``setting`` the name of the known setting that it is,
    None for a suggested point. What is noted on ``trial`` is there for later starts and for the report.
    """

    def __init__(self, trial: Trial, *, space: Space) -> None:
        record = trial.storage.get_trial(trial._trial_id)
        self.number = chain_of(record)
        self.setting: str | None = record.user_attrs.get(SETTING)
        self.point = space.suggest(trial)
        self.trial, self._reported = trial, set(record.intermediate_values)

    def report(self, value: float, *, step: int) -> None:
        """Say how good it is so far, or raise Pruned where it cannot become the best any more.

        A retry's reports at the steps of its first start count once; known settings are brought to their end.
        """
        if step not in self._reported:
            self._reported.add(step)
            self.trial.report(value, step)
        if self.setting is None and self.trial.should_prune():
            raise Pruned(f"trial {self.number} is given up at {value:.4g} after {step}")


Evaluate = Callable[[Attempt], Sequence[float]]


def work(
    joined: Joined, *, evaluate: Evaluate, tick: Callable[[], None], on_count: Callable[[Counts], None]
) -> Counts:
    """Run trials until the study's number is finished or given up, and return what became of all.

    ``evaluate`` runs a trial and returns its objectives; where it raises what would end others, too, the
    trial goes back to the queue. ``tick`` is called while waiting for others, ``on_count`` with every count.
    """
    plan, study = joined.plan, joined.study
    while True:
        tick()
        with clear_outage(plan.address), ExitStack() as held:
            held.enter_context(exclusive(plan.address))
            mend(study, joined.storage)
            fill(study, trials=plan.trials, references={})
            counts = counts_of(study)
            on_count(counts)
            if counts.valid >= plan.trials or not (counts.waiting or counts.running):
                return counts
            if counts.waiting:
                _take(joined, evaluate, taken=held.close)
                continue
        end = time.monotonic() + min(LONGEST_PAUSE_S, plan.heartbeat_s)
        while time.monotonic() < end:
            tick()
            time.sleep(0.2)


def _take(joined: Joined, evaluate: Evaluate, *, taken: Callable[[], None]) -> None:
    """Run one trial of the queue, and let go of the study once it is taken.

    A worker that others took for dead has no say any more: its trial's retry has the same folder.
    """
    plan, study = joined.plan, joined.study
    overtaken = False

    def objective(trial: Trial) -> Sequence[float]:
        nonlocal overtaken
        taken()  # before, two workers that saw one waiting trial would make a second one
        # A suggestion is a function of the seed, the trial's number and what is known by then.
        seed = derive(plan.seeds[0], "trial", trial.number) % 2**32
        study.sampler = make_sampler(plan.sampler, seed=seed)
        try:
            return evaluate(Attempt(trial, space=plan.space))
        except (Pruned, OutOfMemory) as error:  # a point that does not fit is given up, not tried again
            raise optuna.TrialPruned(str(error)) from error
        except (OptunaError, SQLAlchemyError):
            raise
        except Exception as error:
            # What would fail again wherever it is tried is noted.
            if isinstance(error, ENDS_A_TRIAL_ONLY) or not isinstance(error, DinomalyHDError):
                trial.set_user_attr(FAILED, str(error) or type(error).__name__)
            raise
        finally:
            overtaken = joined.storage.get_trial(trial._trial_id).state.is_finished()

    try:
        with quiet():
            study.optimize(objective, n_trials=1, catch=ENDS_A_TRIAL_ONLY)
    except Exception:
        if not overtaken:
            raise
