"""What became of a study's trials, as plain rows without Optuna."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from dinomaly_hd.tuning.dimensions import Native
from dinomaly_hd.tuning.queue import FAILED, SETTING, VALID, chain_of, failures

COMPLETE, PRUNED, FAILURE = "complete", "pruned", "failed"
STATES = {TrialState.COMPLETE: COMPLETE, TrialState.PRUNED: PRUNED, TrialState.FAIL: FAILURE}


class Row(NamedTuple):
    """One trial, however often it was started.

    Attributes:
        number: Names its folder and MLflow run.
        state: "complete", "pruned" or "failed".
        setting: Name of the known setting that it is, "" for a suggested point.
        params: Searched values.
        values: Its objectives; empty for a failed one, the last one reported for a pruned one.
        notes: What it noted: config, figures by seed, test figures, reason of a failure.
    """

    number: int
    state: str
    setting: str
    params: dict[str, Native]
    values: tuple[float, ...]
    notes: dict[str, Any]


def rows_of(study: Study) -> list[Row]:
    """Return the trials that are over, those given up and failed ones included, by number."""
    trials = study.get_trials(deepcopy=False)
    over = [*(trial for trial in trials if trial.state in VALID), *failures(trials)]
    return sorted((_row(trial) for trial in over), key=lambda row: row.number)


def best_of(rows: Sequence[Row]) -> list[Row]:
    """Return the complete row with the largest objective, or with two those that no other beats in both."""
    complete = [row for row in rows if row.state == COMPLETE]
    if not complete:
        return []
    if len(complete[0].values) == 1:
        return [max(complete, key=lambda row: row.values)]
    return [row for row in complete if not any(_beats(other, row) for other in complete)]


def _beats(one: Row, other: Row) -> bool:
    return one.values != other.values and all(a >= b for a, b in zip(one.values, other.values, strict=True))


def _row(trial: FrozenTrial) -> Row:
    notes = dict(trial.user_attrs)
    return Row(
        number=chain_of(trial),
        state=STATES[trial.state],
        setting=str(notes.get(SETTING, "")),
        params=dict(trial.params),
        values=tuple(trial.values or ()) if FAILED not in notes else (),
        notes=notes,
    )
