"""One trial of a study: a point of the space run with every seed, below an MLflow run of its own."""

import os
import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from dinomaly_hd.config.variants import config_label
from dinomaly_hd.data.features import FeatureCache
from dinomaly_hd.errors import ConfigError, DinomalyHDError, NonFiniteError
from dinomaly_hd.evaluation.metrics import known
from dinomaly_hd.evaluation.report import flat_synthetic, normals_of, resolution_lines
from dinomaly_hd.evaluation.results import FIGURES
from dinomaly_hd.experiments.comparison import open_parent
from dinomaly_hd.experiments.run import execute
from dinomaly_hd.runs.folder import Context
from dinomaly_hd.tuning.results import BY_SEED, CONFIG, TEST
from dinomaly_hd.tuning.study import SYNTHETIC, Plan
from dinomaly_hd.tuning.worker import Attempt

LOCK_WAIT_S = 120.0  # a trial whose worker is taken for dead may still be stopping somewhere
SHOWN_BESIDE = ("mean/auroc",)
# Names of what a trial notes for its retries, beside what the report reads.
RUN_ID, WORKER, COARSE = "mlflow_run_id", "worker", "resolution"


class Busy(DinomalyHDError):
    """Another process is at work in the folder of a trial, whose worker is taken for dead."""

    exit_code: ClassVar[int] = 75


@dataclass(kw_only=True)
class Runner:
    """Runs a worker's trials, which share what was read and encoded.

    An encoder that takes statistics from training images is another one for each seed, whose held-out normals
    differ, so each seed has its own memory.
    """

    plan: Plan
    context: Context
    parent: str | None
    features: defaultdict[int, FeatureCache] = field(default_factory=lambda: defaultdict(FeatureCache))

    def __call__(self, attempt: Attempt) -> list[float]:
        plan = self.plan
        config, name = plan.space.config(attempt.point), f"trial_{attempt.number:04d}"
        folder = plan.folder(self.context.result_dir) / name
        shown = ", ".join(f"{key}={text}" for key, text in attempt.point.items())
        setting = config_label(attempt.setting or "")
        self.context.say(f"\n== {name}{f' ({setting})' if setting else ''}: {shown}")
        attempt.trial.set_user_attr(CONFIG, config)
        attempt.trial.set_user_attr(WORKER, f"{socket.gethostname()} {os.getpid()}")
        tags = {"config": config_label(config), "sweep": plan.study}
        own = replace(self.context, parent_run_id=self.parent, tags={**self.context.tags, **tags})
        tags |= {"trial": str(attempt.number)} | ({"setting": setting} if setting else {})
        opening = open_parent(
            own,
            identity=["trial", name],
            name=f"{plan.study}-{name}",
            tags={"kind": "trial", "variant": config.partition(":")[0], **tags},
            folder=folder,
            resumed=attempt.trial.user_attrs.get(RUN_ID),
            wait_s=LOCK_WAIT_S,
        )
        with ExitStack() as stack:
            try:
                _, page = stack.enter_context(opening)
            except ConfigError as error:
                raise Busy(f"{folder}: another process is at work in it; wait for it or stop it") from error
            if page.run_id is not None:
                attempt.trial.set_user_attr(RUN_ID, page.run_id)
            page.params(attempt.point)
            own = replace(own, parent_run_id=page.run_id)
            figures = {
                seed: self._run_seed(attempt, config, replace(own, folder=folder / f"seed{seed}"), seed=seed)
                for seed in plan.seeds
            }
            means = means_of(list(figures.values()), needed=plan.keys)
            by_seed = {str(seed): [one[key] for key in plan.keys] for seed, one in figures.items()}
            attempt.trial.set_user_attr(BY_SEED, by_seed)
            attempt.trial.set_user_attr(TEST, {name: means[name] for name in beside(plan) if name in means})
            page.metrics(means, step=0)
            page.note(f"**{name}** of {plan.study}, seeds {', '.join(map(str, plan.seeds))}: `{config}`")
        return [means[key] for key in plan.keys]

    def _run_seed(self, attempt: Attempt, config: str, context: Context, *, seed: int) -> dict[str, float]:
        plan, key, by = self.plan, self.plan.keys[0], self.plan.pruning.by

        def observe(metrics: Mapping[str, float], step: int) -> None:
            if key in metrics:
                attempt.report(metrics[key], step=step)

        own = replace(
            context,
            run_name=None,
            resume="auto",
            features=self.features[seed],
            lock_wait_s=LOCK_WAIT_S,
            observe=observe if by == "steps" else None,
        )
        results = execute(plan.build(config, seed), own).results
        figures = figures_of(results)
        attempt.trial.set_user_attr(COARSE, resolution_lines(normals_of(results, plan.objective)))
        if by == "seeds":
            attempt.report(figures.get(key, float("nan")), step=plan.seeds.index(seed))
        return figures


def figures_of(results: Mapping[str, Any]) -> dict[str, float]:
    """Return a run's AUROC and TPR of domains and mean by their MLflow names, on test and synthetic."""
    blocks = {"mean": results["mean_metrics"], **results["per_domain_metrics"]}
    shown = {f"{name}/{FIGURES[own]}": block[own] for name, block in blocks.items() for own in FIGURES}
    return known(shown) | (flat_synthetic(results[SYNTHETIC]) if SYNTHETIC in results else {})


def means_of(figures: Sequence[Mapping[str, float]], *, needed: Sequence[str]) -> dict[str, float]:
    """Return the mean over seeds of every figure that all have; a NonFiniteError where a needed one lacks."""
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
