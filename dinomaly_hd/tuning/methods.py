"""What suggests points, and what gives a trial up before its end: a row of a table each."""

from collections.abc import Callable

from optuna.pruners import BasePruner, MedianPruner, NopPruner, WilcoxonPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.tuning.storage import quiet

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
    """How trials are given up: by steps within a seed, by seeds, or not at all.

    Attributes:
        by: "steps", "seeds" or "nothing".
        text: The rule in words.
        pruner: Optuna's.
    """

    def __init__(self, name: str, *, seeds: int, objectives: int, steps: int, watched: bool) -> None:
        """Choose by ``seeds`` of a trial, and whether the objective is ``watched`` during its ``steps``."""
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
