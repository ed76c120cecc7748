"""What became of a study's trials: plain rows without Optuna, and Optuna's pictures of them."""

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import optuna
from matplotlib import pyplot
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import TrialState
from optuna.visualization import matplotlib as plots

from dinomaly_hd.evaluation.report import Picture
from dinomaly_hd.tuning.space import Native
from dinomaly_hd.tuning.study import FAILED, SETTING, VALID, chain_of, failures

COMPLETE, PRUNED, FAILURE = "complete", "pruned", "failed"
STATES = {TrialState.COMPLETE: COMPLETE, TrialState.PRUNED: PRUNED, TrialState.FAIL: FAILURE}
# What a trial notes for its report.
BY_SEED, TEST, CONFIG = "by_seed", "test", "config"
CAPTIONS = {
    "history": "objective of each trial",
    "parallel_coordinates": "a line a trial, the best the darkest; None where a value did nothing",
    "slices": "objective against each value, darker is later",
    "importances": "share of the variance of the objective (fANOVA), of the values that all trials have",
    "pareto_front": "red: no other trial is better in both",
}


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


def rows_of(study: optuna.Study) -> list[Row]:
    """Return the trials that are over, those given up and failed ones included, by number."""
    trials = study.get_trials(deepcopy=False)
    rows = []
    for trial in (*(trial for trial in trials if trial.state in VALID), *failures(trials)):
        notes = dict(trial.user_attrs)
        values = () if FAILED in notes else tuple(trial.values or ())
        setting, params = str(notes.get(SETTING, "")), dict(trial.params)
        rows.append(Row(chain_of(trial), STATES[trial.state], setting, params, values, notes))
    return sorted(rows, key=lambda row: row.number)


def best_of(rows: Sequence[Row]) -> list[Row]:
    """Return the complete row with the largest objective, or with two those that no other beats in both."""
    complete = [row for row in rows if row.state == COMPLETE]

    def beats(one: Row, other: Row) -> bool:
        return one.values != other.values and all(np.greater_equal(one.values, other.values))

    front = [row for row in complete if not any(beats(other, row) for other in complete)]
    return front if front and len(front[0].values) > 1 else front[:1]


def study_pictures(
    study: optuna.Study, *, names: Sequence[str], objectives: Sequence[str]
) -> dict[str, Picture]:
    """Return every picture by its file stem; none without a complete trial."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return {}
    params = [name for name in names if any(name in trial.params for trial in complete)]
    named: dict[str, Any] = {"target_name": objectives[0]}
    # Given one objective of two; without it the best so far and the best colour are drawn, too.
    first = named | ({"target": lambda trial: trial.values[0]} if len(objectives) > 1 else {})
    fanova = {"evaluator": FanovaImportanceEvaluator(seed=0), **first}
    draws: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "history": (plots.plot_optimization_history, first),
        "parallel_coordinates": (plots.plot_parallel_coordinate, {"params": params, **named}),
        "slices": (plots.plot_slice, {"params": params, **first}),
        "importances": (plots.plot_param_importances, fanova),
    }
    if len(objectives) > 1:
        draws["pareto_front"] = (plots.plot_pareto_front, {"target_names": list(objectives)})
    found = {}
    # Optuna draws with pyplot, sets the style of the whole process, and remarks that it is experimental.
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")
        pyplot.switch_backend("agg")
        for name, (draw, options) in draws.items():
            try:
                figure = np.ravel(draw(study, **options))[0].figure
            except (RuntimeError, ValueError):  # no importances without trials that differ
                continue
            if name == "parallel_coordinates":
                figure.set_size_inches(3 + 1.3 * len(params), 5)
            stream = io.BytesIO()
            figure.savefig(stream, format="png", bbox_inches="tight")
            found[name] = Picture(CAPTIONS[name], stream.getvalue())
        pyplot.close("all")
    return found
