"""What a study is: the same for everyone who works on it, and checked before its first trial."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinomaly_hd import provenance
from dinomaly_hd.config import WITHOUT_EFFECT, RunConfig, flatten
from dinomaly_hd.errors import ConfigError, NonFiniteError, nearest
from dinomaly_hd.evaluation.summary import flat_metrics
from dinomaly_hd.evaluation.synthetic import FIGURES, flat_synthetic
from dinomaly_hd.runs.context import Context
from dinomaly_hd.experiments.checks import Ready, check
from dinomaly_hd.tuning.methods import Pruning, make_sampler
from dinomaly_hd.tuning.space import Space
from dinomaly_hd.tuning.storage import Address
from dinomaly_hd.tuning.study import Terms, check_name

SYNTHETIC, TEST = "synthetic", "test"
OBJECTIVES = (SYNTHETIC, TEST)
MOST_METRICS = 2
SHOWN_BESIDE = ("mean/auroc",)
FOLDER = "tune"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study as its flags ask for it.

    Attributes:
        study: Its name.
        address: Where it lies.
        trials: Finished or given up, after which it is over.
        config: Text of the config that is searched around.
        space: What is searched.
        objective: "synthetic" or "test".
        metrics: One or two figures that are maximised, such as "domain_C/tpr_at_fpr_1".
        seeds: Each trial is the mean of them.
        sampler: Name of what suggests.
        pruner: "auto" or "none".
        heartbeat_s: Between two signs of life of a trial.
        build: Makes the run of a config's text and a seed.
    """

    study: str
    address: Address
    trials: int
    config: str
    space: Space
    objective: str
    metrics: tuple[str, ...]
    seeds: tuple[int, ...]
    sampler: str
    pruner: str
    heartbeat_s: int
    build: Callable[[str, int], RunConfig]

    @property
    def base(self) -> RunConfig:
        """The run that is searched around, with the first seed."""
        return self.build(self.config, self.seeds[0])

    @property
    def pruning(self) -> Pruning:
        """When a trial is given up."""
        training = flatten(self.base)
        return Pruning(
            self.pruner,
            seeds=len(self.seeds),
            objectives=len(self.metrics),
            steps=int(training["max_steps"]),
            watched=self.objective == SYNTHETIC and training["val_check_interval"] > 0,
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """The objectives' names in MLflow."""
        return tuple(self.key(metric) for metric in self.metrics)

    def key(self, metric: str) -> str:
        """Return what MLflow calls a figure on the data of the objective."""
        return f"{SYNTHETIC}/{metric}" if self.objective == SYNTHETIC else metric

    def folder(self, result_dir: Path) -> Path:
        """Return where the study's trials lie."""
        return result_dir / FOLDER / self.study


def check_plan(plan: Plan, context: Context) -> Terms:
    """Refuse a study that could not run, and return what all its workers must have alike.

    Raises:
        ConfigError: A setting is wrong, or the data have no such domain.
        DinomalyHDError: Data or weights cannot be had (``ready.check``).
    """
    check_name(plan.study)
    make_sampler(plan.sampler, seed=0)
    for name, number in (("trials", plan.trials), ("heartbeat_s", plan.heartbeat_s)):
        if number < 1:
            raise ConfigError(f"{name}={number}: expected 1 or more")
    if plan.objective not in OBJECTIVES:
        raise ConfigError(f"objective={plan.objective!r}: unknown.{nearest(plan.objective, OBJECTIVES)}")
    _ = plan.pruning  # refuses an unknown pruner
    _check_form(plan.metrics)
    base = plan.base
    if plan.objective == SYNTHETIC and not base.evaluation.synthetic_copies:
        raise ConfigError("synthetic_copies=0 leaves objective=synthetic without faults; give 1 or more")
    ready = check(base, context)
    _check_metrics(plan, ready)
    return Terms(provenance.code_digest(), _settings(plan, ready))


def figures_of(results: Mapping[str, Any]) -> dict[str, float]:
    """Return a run's AUROC and TPR of domains and mean by their MLflow names, on test and synthetic."""
    flat = flat_metrics(results)
    shown = {name: value for name, value in flat.items() if _is_figure(name)}
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


def _is_figure(name: str) -> bool:
    domain, _, figure = name.partition("/")
    return figure in FIGURES.values() and domain != "pooled"


def _check_form(metrics: Sequence[str]) -> None:
    if not 1 <= len(metrics) <= MOST_METRICS or len(set(metrics)) < len(metrics):
        raise ConfigError(f"metrics={','.join(metrics)!r}: expected one or two figures, each once")
    for metric in metrics:
        figure = metric.rpartition("/")[2]
        if figure not in FIGURES.values():
            hint = nearest(figure, FIGURES.values())
            raise ConfigError(f"metrics={metric!r}: expected DOMAIN/FIGURE; unknown {figure!r}.{hint}")


def _check_metrics(plan: Plan, ready: Ready) -> None:
    records = ready.manifest.records
    trained = {records[int(i)].domain for i in ready.split.train}
    tested = trained if plan.objective == SYNTHETIC else set(ready.manifest.domains)
    places = [*sorted(tested), "mean"]
    for metric in plan.metrics:
        place = metric.rpartition("/")[0]
        if place not in places:
            raise ConfigError(f"metrics={metric}: there is no {place!r}; known: {', '.join(places)}")


def _settings(plan: Plan, ready: Ready) -> dict[str, Any]:
    ignored = {*WITHOUT_EFFECT, *plan.space.dimensions, "seed"}
    fixed = {name: value for name, value in flatten(ready.run).items() if name not in ignored}
    return {
        **fixed,
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
