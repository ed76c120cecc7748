"""What became of a study's trials: rows, Optuna's pictures of them, and a found setting to start again."""

import io
import json
import shlex
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import optuna
import yaml
from matplotlib import pyplot
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import TrialState
from optuna.visualization import matplotlib as plots

from dinomaly_hd.config.base import flatten, names_in, text_of
from dinomaly_hd.config.conditions_file import keys_of
from dinomaly_hd.config.presets import PRESETS, every_parameter
from dinomaly_hd.config.resolve import resolve_model
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.evaluation.report import Picture
from dinomaly_hd.tuning.space import WITHOUT_TOPK, Native
from dinomaly_hd.tuning.study import FAILED, SETTING, VALID, chain_of, failures

SPELT = ("class_token", "domains", "seed")
OF_A_STUDY = ("maps_per_group",)  # what a study draws less of than a run by itself; it changes no number
NOT_OF_A_CONDITION = ("gpu", "num_workers")  # flags that belong to a machine, not to an experiment
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
    """One trial, however often it was started."""

    number: int  # names its folder and MLflow run
    state: str  # "complete", "pruned" or "failed"
    setting: str  # name of the known setting that it is, "" for a suggested point
    params: dict[str, Native]
    values: tuple[float, ...]  # its objectives; none of a failed one, the last one reported of a pruned one
    notes: dict[str, Any]  # config, figures by seed, test figures, reason of a failure

    @property
    def rounded(self) -> tuple[float, ...]:
        """The objectives without the last bits of their sums, so that trials that score alike are equal."""
        return tuple(round(value, 9) for value in self.values)


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
        return one.rounded != other.rounded and all(np.greater_equal(one.rounded, other.rounded))

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


class Recipe(NamedTuple):
    """A run as an entry point of its variant and flags as text."""

    entry_point: str
    flags: Mapping[str, str]

    def command(self, seeds: Sequence[int]) -> str:
        """Return the exact ``mlflow run`` command of the run with these seeds."""
        seeded = {"seed": str(seeds[0])} if len(seeds) == 1 else {"seeds": ",".join(map(str, seeds))}
        flags = {name: text for name, text in self.flags.items() if name != "seed"} | seeded
        words = [word for name, text in flags.items() for word in ("-P", f"{name}={text}")]
        return shlex.join(["mlflow", "run", ".", "-e", self.entry_point, *words])


def recipe_of(run: RunConfig, *, spelt: Collection[str]) -> Recipe:
    """Return entry point and flags of a run: those that differ from the defaults, and ``spelt`` ones."""
    plain = WITHOUT_TOPK.get(run.model.variant)
    entry_point = plain or run.model.variant
    start = {"preset": run.preset, **({"use_topk": "true"} if plain else {})}
    usual, told = flatten(resolve_model(entry_point, start)), {*spelt, *SPELT}
    known = every_parameter()
    flags = {
        name: text_of(value)
        for name, value in flatten(run).items()
        if name in known and name not in OF_A_STUDY and (value != usual.get(name) or name in told)
    }
    found = Recipe(entry_point, {**start, **flags})
    assert resolve_model(entry_point, found.flags).digest() == run.digest(), "the flags say the whole run"
    return found


def condition_of(run: RunConfig, *, name: str, description: str, spelt: Collection[str]) -> dict[str, Any]:
    """Return a run as an entry of a conditions file.

    It stands for itself: what the presets have differently is written out, since a file names no preset.
    """
    flats = [flatten(resolve_model(run.model.variant, {"preset": preset})) for preset in PRESETS]
    by_preset = [key for key in flats[0] if flats[0][key] != flats[1].get(key) and key != "preset"]
    flags = dict(recipe_of(run, spelt=(*spelt, *by_preset)).flags)
    family = run.model.model_type
    keys = keys_of(family).model_fields
    config: dict[str, Any] = {"model_type": family, "domains": list(names_in(flags.pop("domains")))}
    if family == "dinomaly":
        config["variant"] = run.model.variant  # it says use_topk
    left_out = {*NOT_OF_A_CONDITION, "use_topk", *(["max_epochs"] if flags.get("max_epochs") == "0" else [])}
    config |= {flag: _plain(flags[flag]) for flag in flags if flag in keys and flag not in left_out}
    return {"name": name, "description": description, "config": config}


def conditions_text(conditions: Sequence[Mapping[str, Any]], *, comment: Sequence[str]) -> str:
    head = "".join(f"# {line}\n" for line in comment)
    content = {"experiment_conditions": list(conditions)}
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)


def _plain(text: str) -> Any:
    """Return a flag's text as the number or switch that it is, else as it stands."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text
