"""One trial of a study: a point of the space run with every seed, below an MLflow run of its own."""

import os
import socket
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from dinomaly_hd.data.features import FeatureCache
from dinomaly_hd.runs.context import Context
from dinomaly_hd.experiments.study_page import LOCK_WAIT_S, study_page
from dinomaly_hd.experiments.study_plan import Plan, beside, figures_of, means_of
from dinomaly_hd.experiments.run import execute
from dinomaly_hd.tuning.report import BY_SEED, CONFIG, TEST
from dinomaly_hd.tuning.worker import Attempt

RUN_ID, WORKER = "mlflow_run_id", "worker"
"""Names of what a trial notes for its retries, beside what the report reads."""


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
        """Run a trial and return its objectives.

        Raises:
            Pruned: It was given up.
            DinomalyHDError: Whatever ended one of its runs.
        """
        plan = self.plan
        config = plan.space.config(attempt.point)
        name = f"trial_{attempt.number:04d}"
        shown = ", ".join(f"{key}={text}" for key, text in attempt.point.items())
        self.context.say(f"\n== {name}{f' ({attempt.setting})' if attempt.setting else ''}: {shown}")
        attempt.remember(CONFIG, config)
        attempt.remember(WORKER, f"{socket.gethostname()} {os.getpid()}")
        tags = {"config": config, "sweep": plan.study, "trial": str(attempt.number)}
        tags |= {"setting": attempt.setting} if attempt.setting else {}
        own = replace(self.context, parent_run_id=self.parent, tags={**self.context.tags, **tags})
        with study_page(
            plan.folder(self.context.result_dir) / name,
            own,
            kind="trial",
            name=f"{plan.study}-{name}",
            tags={"variant": config.partition(":")[0], **tags},
            resumed=attempt.remembered(RUN_ID),
            wait_s=LOCK_WAIT_S,
        ) as page:
            if page.run_id is not None:
                attempt.remember(RUN_ID, page.run_id)
            page.params(attempt.point)
            figures = self._run_seeds(attempt, config, own, page.run_id)
            means = means_of(list(figures.values()), needed=plan.keys)
            attempt.remember(
                BY_SEED, {str(seed): [one[key] for key in plan.keys] for seed, one in figures.items()}
            )
            attempt.remember(TEST, {name: means[name] for name in beside(plan) if name in means})
            page.metrics(means, step=0)
            page.note(f"**{name}** of {plan.study}, seeds {', '.join(map(str, plan.seeds))}: `{config}`")
        return [means[key] for key in plan.keys]

    def _run_seeds(
        self, attempt: Attempt, config: str, context: Context, run_id: str | None
    ) -> dict[int, dict[str, float]]:
        plan, figures = self.plan, {}
        folder = plan.folder(context.result_dir) / f"trial_{attempt.number:04d}"
        for number, seed in enumerate(plan.seeds):
            own = replace(
                context,
                folder=folder / f"seed{seed}",
                parent_run_id=run_id,
                run_name=None,
                resume="auto",
                features=self.features[seed],
                lock_wait_s=LOCK_WAIT_S,
                observe=self._watch(attempt),
            )
            figures[seed] = figures_of(execute(plan.build(config, seed), own).results)
            if plan.pruning.by == "seeds":
                attempt.report(figures[seed].get(plan.keys[0], float("nan")), step=number)
        return figures

    def _watch(self, attempt: Attempt) -> Callable[[Mapping[str, float], int], None] | None:
        if self.plan.pruning.by != "steps":
            return None
        key = self.plan.keys[0]

        def observe(metrics: Mapping[str, float], step: int) -> None:
            if key in metrics:
                attempt.report(metrics[key], step=step)

        return observe
