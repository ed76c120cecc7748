"""What suggests points, and what gives a trial up before its end: a row of a table each."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, MedianPruner, NopPruner, WilcoxonPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from dinomaly_hd.errors import ConfigError, nearest

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

STARTUP_TRIALS = 8
"""Finished trials, the authors' settings among them, before a sampler learns from them."""
PRUNE_AFTER = 0.25
"""Share of a training before which no trial is given up."""
P_THRESHOLD = 0.1


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, group=True)


def _gp(seed: int) -> BaseSampler:
    return GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": _tpe,
    "gp": _gp,
    "random": lambda seed: RandomSampler(seed=seed),
}
PRUNERS = ("auto", "none")


def make_sampler(name: str, *, seed: int) -> BaseSampler:
    """Return a sampler whose draws are those of ``seed``.

    Raises:
        ConfigError: Unknown name.
    """
    if name not in SAMPLERS:
        raise ConfigError(f"sampler={name!r}: unknown.{nearest(name, SAMPLERS)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return SAMPLERS[name](seed)


class Pruning:
    """How trials are given up: by steps within a seed, by seeds, or not at all.

    Attributes:
        by: "steps", "seeds" or "nothing".
        text: The rule in words.
        pruner: Optuna's.
    """

    def __init__(self, name: str, *, seeds: int, objectives: int, steps: int, watched: bool) -> None:
        """Choose the rule.

        Args:
            name: One of ``PRUNERS``.
            seeds: Of a trial.
            objectives: 1 or 2.
            steps: Optimizer steps of a training.
            watched: Whether the objective is measured during training.

        Raises:
            ConfigError: Unknown name.
        """
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
            self.by, self.pruner = "seeds", _wilcoxon(p_threshold(seeds))
            rule = f"p < {p_threshold(seeds):.3g}"
            self.text = f"a trial is given up after seeds that are worse than the best trial's, {rule}"


def _wilcoxon(threshold: float) -> BasePruner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return WilcoxonPruner(p_threshold=threshold)


def p_threshold(seeds: int) -> float:
    """Return .1, or with few seeds what all but the last can just reach: they must all be worse.

    n pairs that all differ in one direction have a one-sided p-value of 2^-n in the signed-rank test.

    >>> p_threshold(10), round(p_threshold(3), 3)
    (0.1, 0.253)
    """
    return max(P_THRESHOLD, 1.01 * 2.0 ** -(seeds - 1))


def importances(study: "Study") -> dict[str, float]:
    """Return the share of each parameter in the first objective's variance, largest first.

    Only parameters that every trial has can be compared; empty for too few trials. Optuna's fANOVA, seeded.
    """
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    many = len(study.directions) > 1

    def first(trial: "FrozenTrial") -> float:
        return float(trial.values[0])

    try:
        found = optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=first if many else None
        )
    except (RuntimeError, ValueError):  # fewer than two finished trials, or no parameter common to all
        return {}
    return {name: float(share) for name, share in found.items()}
