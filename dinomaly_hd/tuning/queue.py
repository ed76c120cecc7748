"""A study's queue of trials: made at once, kept full, and none lost when a worker dies.

A trial is one link of a chain: where its worker died it ends as FAIL, and its retry goes on in the same
folder and MLflow run. Where Optuna makes the retry itself, a worker that dies between writing FAIL and
queueing loses it; here nothing is done at the FAIL, and whoever holds the study (``storage.exclusive``) makes
the retries that are missing.
"""

import time
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import optuna
import sqlalchemy
from optuna import Study
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from dinomaly_hd.tuning.dimensions import Native
from dinomaly_hd.tuning.storage import GRACE_HEARTBEATS, Storage

QUEUED, SETTING, FAILED, SURPLUS = "queued", "setting", "failed", "surplus"
"""Names of what is noted on a trial: taken from the queue, which known setting, why it is not tried again."""
MOST_RETRIES = 30
VALID = (TrialState.COMPLETE, TrialState.PRUNED)


class Counts(NamedTuple):
    """A study's trials: finished ones, those in the queue and at work, and chains that ended in a failure.

    What is to be tried again counts as in the queue before it is.
    """

    valid: int
    waiting: int
    running: int
    failed: int

    def allows_more_failures(self, trials: int) -> bool:
        """Tell whether failed trials may still be replaced: a quarter of the study, but three at least."""
        return self.failed <= max(3, trials // 4)


def chain_of(trial: FrozenTrial) -> int:
    """Return the number of the first trial of a chain of retries: it names folder and MLflow run."""
    return int(trial.system_attrs.get("failed_trial", trial.number))


def counts_of(study: Study) -> Counts:
    """Count a study's trials."""
    trials = study.get_trials(deepcopy=False)
    states = [trial.state for trial in trials]
    final = len(failures(trials))
    return Counts(
        valid=sum(state in VALID for state in states),
        waiting=states.count(TrialState.WAITING) + len(_ends(trials)) - final,
        running=states.count(TrialState.RUNNING),
        failed=final,
    )


def failures(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the failed trials that are not tried again."""
    return [trial for trial in _ends(trials) if _is_final(trial)]


def fill(study: Study, *, trials: int, references: Mapping[str, Mapping[str, Native]]) -> None:
    """Put known settings, then free trials into the queue until the study has ``trials``; call it alone.

    What is there already counts, so that a later start with more trials adds only the difference, and one
    that died half-way is made up for.
    """
    known = {trial.user_attrs.get(SETTING) for trial in study.get_trials(deepcopy=False)}
    counts = counts_of(study)
    room = trials - counts.valid - counts.waiting - counts.running
    for setting, values in references.items():
        if setting not in known and room > 0:
            study.enqueue_trial(dict(values), user_attrs={QUEUED: True, SETTING: setting})
            room -= 1
    for _ in range(room if counts.allows_more_failures(trials) else 0):
        study.enqueue_trial({}, user_attrs={QUEUED: True})


class Keeper:
    """Puts a study right: trials of dead workers become FAIL, and every FAIL that may be retried is."""

    def __init__(self, study: Study, storage: Storage) -> None:
        self.study, self.storage = study, storage
        assert storage.heartbeat_interval is not None, "studies have heartbeats"
        self._grace_s = float(GRACE_HEARTBEATS * storage.heartbeat_interval)
        self._first_seen: dict[int, float] = {}

    def mend(self) -> None:
        """Fail what is left behind and queue the retries that are missing; call it alone."""
        self._fail_unborn()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)
            retry = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
            for trial in _ends(self.study.get_trials()):
                if not _is_final(trial):
                    retry(self.study, trial)

    def _fail_unborn(self) -> None:
        """Fail trials whose worker died before its first heartbeat, which Optuna takes for alive for ever.

        They are watched by this process's own clock, since machines' clocks differ.
        """
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        beating = self._with_heartbeat([trial._trial_id for trial in running])
        unborn = [trial._trial_id for trial in running if trial._trial_id not in beating]
        now = time.monotonic()
        self._first_seen = {number: self._first_seen.get(number, now) for number in unborn}
        for number, seen in self._first_seen.items():
            if now - seen > self._grace_s:
                try:
                    self.storage.set_trial_state_values(number, state=TrialState.FAIL)
                except UpdateFinishedTrialError:
                    continue

    def _with_heartbeat(self, trial_ids: list[int]) -> set[int]:
        query = sqlalchemy.text("SELECT trial_id FROM trial_heartbeats WHERE trial_id IN :ids").bindparams(
            sqlalchemy.bindparam("ids", expanding=True)
        )
        with self.storage.engine.connect() as connection:
            return {int(row[0]) for row in connection.execute(query, {"ids": trial_ids})}


def _ends(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the FAIL trials that no retry follows, without those that were never meant to be."""
    followed = {number for trial in trials for number in trial.system_attrs.get("retry_history", [])}
    return [
        trial
        for trial in trials
        if trial.state == TrialState.FAIL and trial.number not in followed and SURPLUS not in trial.user_attrs
    ]


def _is_final(trial: FrozenTrial) -> bool:
    return FAILED in trial.user_attrs or len(trial.system_attrs.get("retry_history", [])) >= MOST_RETRIES
