"""A study is checked before its first trial, and its figures are named the same for all who work on it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinomaly_hd.config import WITHOUT_EFFECT, flatten
from dinomaly_hd.errors import ConfigError, NonFiniteError, nearest
from dinomaly_hd.evaluation.synthetic import FIGURES, flat_synthetic
from dinomaly_hd.evaluation.tables import flat_metrics
from dinomaly_hd.experiments.checks import Ready, check
from dinomaly_hd.runs.folder import Context
from dinomaly_hd.tuning.study import SYNTHETIC, TEST, Plan, check_name, make_sampler

OBJECTIVES = (SYNTHETIC, TEST)
MOST_METRICS = 2
SHOWN_BESIDE = ("mean/auroc",)


def check_plan(plan: Plan, context: Context) -> dict[str, Any]:
    """Refuse a study that could not run, and return the settings that all its workers must have alike.

    Raises:
        ConfigError: A setting is wrong, or the data have no such domain.
        DinomalyHDError: Data or weights cannot be had (``checks.check``).
    """
    check_name(plan.study)
    make_sampler(plan.sampler, seed=0)
    for name, number in (("trials", plan.trials), ("heartbeat_s", plan.heartbeat_s)):
        if number < 1:
            raise ConfigError(f"{name}={number}: expected 1 or more")
    if plan.objective not in OBJECTIVES:
        raise ConfigError(f"objective={plan.objective!r}: unknown.{nearest(plan.objective, OBJECTIVES)}")
    _ = plan.pruning  # refuses an unknown pruner
    if not 1 <= len(plan.metrics) <= MOST_METRICS or len(set(plan.metrics)) < len(plan.metrics):
        raise ConfigError(f"metrics={','.join(plan.metrics)!r}: expected one or two figures, each once")
    for metric in plan.metrics:
        figure = metric.rpartition("/")[2]
        if figure not in FIGURES.values():
            hint = nearest(figure, FIGURES.values())
            raise ConfigError(f"metrics={metric!r}: expected DOMAIN/FIGURE; unknown {figure!r}.{hint}")
    if plan.objective == SYNTHETIC and not plan.base.evaluation.synthetic_copies:
        raise ConfigError("synthetic_copies=0 leaves objective=synthetic without faults; give 1 or more")
    ready = check(plan.base, context)
    records = ready.manifest.records
    trained = {records[int(i)].domain for i in ready.split.train}
    tested = trained if plan.objective == SYNTHETIC else set(ready.manifest.domains)
    places = [*sorted(tested), "mean"]
    for metric in plan.metrics:
        place = metric.rpartition("/")[0]
        if place not in places:
            raise ConfigError(f"metrics={metric}: there is no {place!r}; known: {', '.join(places)}")
    return _settings(plan, ready)


def _settings(plan: Plan, ready: Ready) -> dict[str, Any]:
    ignored = {*WITHOUT_EFFECT, *plan.space.dimensions, "seed"}
    return {name: value for name, value in flatten(ready.run).items() if name not in ignored} | {
        "config": plan.config,
        "space": ",".join(plan.space.dimensions),
        "objective": plan.objective,
        "metrics": ",".join(plan.metrics),
        "seeds": ",".join(map(str, plan.seeds)),
        "sampler": plan.sampler,
        "pruner": plan.pruner,
        "data": ready.manifest.digest,
        "encoder weights": ready.weights.digest,
    }


def figures_of(results: Mapping[str, Any]) -> dict[str, float]:
    """Return a run's AUROC and TPR of domains and mean by their MLflow names, on test and synthetic."""
    shown = {}
    for name, value in flat_metrics(results).items():
        domain, _, figure = name.partition("/")
        if figure in FIGURES.values() and domain != "pooled":
            shown[name] = value
    return shown | (flat_synthetic(results[SYNTHETIC]) if SYNTHETIC in results else {})


def means_of(figures: Sequence[Mapping[str, float]], *, needed: Sequence[str]) -> dict[str, float]:
    """Return the mean over seeds of every figure that all have.

    Raises:
        NonFiniteError: A needed one cannot be had.
    """
    common = [name for name in figures[0] if all(name in other for other in figures)]
    means = {name: float(np.mean([one[name] for one in figures])) for name in common}
    for name in needed:
        if not np.isfinite(means.get(name, np.nan)):
            raise NonFiniteError(f"{name} cannot be had: too few images, or scores that are not finite")
    return means


def beside(plan: Plan) -> tuple[str, ...]:
    """Return the test figures that are shown beside the objectives, and never used."""
    names = (*plan.metrics, *SHOWN_BESIDE)
    return tuple(dict.fromkeys(name for name in names if name not in plan.keys))
