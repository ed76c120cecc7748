"""Studies: trials by many workers, here and elsewhere, then the report on what they found."""

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from dinomaly_hd import provenance
from dinomaly_hd.config.base import flatten
from dinomaly_hd.config.run import WITHOUT_EFFECT
from dinomaly_hd.errors import ComparisonError, ConfigError, nearest
from dinomaly_hd.evaluation.results import FIGURES
from dinomaly_hd.experiments.checks import check
from dinomaly_hd.experiments.comparison import open_parent
from dinomaly_hd.experiments.study_report import report_study
from dinomaly_hd.experiments.trial import Runner
from dinomaly_hd.files import make_dated_folder
from dinomaly_hd.jobs.engines import ONE_SLOT, check_engine
from dinomaly_hd.jobs.job import Ended, Job, Slots, write_progress
from dinomaly_hd.jobs.running import run_jobs
from dinomaly_hd.runs.folder import Context
from dinomaly_hd.runs.tracker import Tracker
from dinomaly_hd.tuning.storage import VARIABLE, clear_outage
from dinomaly_hd.tuning.study import (
    SYNTHETIC,
    TEST,
    Counts,
    Joined,
    Plan,
    check_name,
    counts_of,
    join,
    make_sampler,
)
from dinomaly_hd.tuning.worker import work

STARTS = 20  # of a worker: each may be killed that often
RUN_OF_MLFLOW = "MLFLOW_RUN_ID"
OBJECTIVES = (SYNTHETIC, TEST)
MOST_METRICS = 2


def run_study(plan: Plan, context: Context, *, slots: Slots, flags: Mapping[str, str]) -> None:
    """Make a study or join it, run its trials with others, and report on it.

    Workers in ``slots`` are started with ``flags``, and find the storage in their environment. That trials
    failed and too few were finished is a ComparisonError; the report is written all the same.
    """
    if not slots.number:
        raise ConfigError(f"workers={slots.number}: expected 1 or more")
    check_engine(slots)
    context = replace(context, manifests={})
    folder = plan.folder(context.result_dir)
    with ExitStack() as stack:
        pages: list[Tracker] = []

        def parent(known: str | None) -> str | None:
            return _open_parent(plan, context, known, stack=stack, pages=pages)

        joined = _join(plan, context, parent=parent)
        context.say(f"study {plan.study}: {plan.address.shown}; {plan.pruning.text}")
        if plan.objective == TEST:
            context.say(
                "warning: objective=test chooses by test labels: what is found looks better than it is"
            )
        if slots == ONE_SLOT:
            _work(context, joined)
        else:
            _start_workers(plan, context, slots, flags)
        with clear_outage(plan.address):
            counts = counts_of(joined.study)
            if pages:
                report_study(joined, context, pages[0])
            else:
                context.say(f"another process reports on this study: {folder}")
        if counts.valid < plan.trials:
            raise ComparisonError(
                f"study {plan.study}: {counts.valid} of {plan.trials} trials finished, {counts.failed} "
                f"failed; see {folder}"
            )


def run_worker(plan: Plan, context: Context, *, folder: Path) -> None:
    """Run trials of a study that is made already, as a job in ``folder``."""

    def progress(done: int, total: int, seconds_left: float) -> None:
        write_progress(folder, step=done, steps=total, seconds_left=seconds_left)

    told = replace(context, on_progress=progress, manifests={})
    _work(told, _join(plan, told, parent=lambda known: known))


def check_plan(plan: Plan, context: Context) -> dict[str, Any]:
    """Refuse a study that could not run, and return the settings that all its workers must have alike."""
    check_name(plan.study)
    make_sampler(plan.sampler, seed=0)
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


def _join(plan: Plan, context: Context, *, parent: Callable[[str | None], str | None]) -> Joined:
    settings = check_plan(plan, context)
    return join(plan, code=provenance.code_digest(), settings=settings, parent=parent)


def _open_parent(
    plan: Plan, context: Context, known: str | None, *, stack: ExitStack, pages: list[Tracker]
) -> str | None:
    """Open the study's folder and MLflow run; leave both to the process here that has them already."""
    if known is not None and os.environ.pop(RUN_OF_MLFLOW, ""):  # its trials stay below one run
        context.say(f"the study's pages are those of the MLflow run {known}")
    opening = open_parent(
        context,
        identity=["study", plan.study],
        name=context.run_name or f"study-{plan.study}",
        tags={"kind": "study", "variant": plan.space.variant, "config": plan.config},
        folder=plan.folder(context.result_dir),
        resumed=known,
    )
    try:
        _, tracker = stack.enter_context(opening)
    except ConfigError:  # another `tune` on this disk
        os.environ.pop(RUN_OF_MLFLOW, "")  # else the first trial would take it
        return known
    pages.append(tracker)
    tracker.params({"study": plan.study, "config": plan.config, "space": ",".join(plan.space.dimensions)})
    return tracker.run_id or known


def _work(context: Context, joined: Joined) -> None:
    plan, last = joined.plan, list[Counts]()

    def tell(counts: Counts) -> None:
        if last != [counts]:
            last[:] = [counts]
            context.say(
                f"study {plan.study}: {counts.valid} of {plan.trials} trials finished, {counts.running} "
                f"at work, {counts.waiting} waiting, {counts.failed} failed"
            )

    runner = Runner(plan=plan, context=context, parent=joined.parent)
    work(joined, evaluate=runner, tick=context.guard.check, on_count=tell)


def _start_workers(plan: Plan, context: Context, slots: Slots, flags: Mapping[str, str]) -> None:
    folder = make_dated_folder((plan.folder(context.result_dir) / "workers").absolute())
    failed: list[str] = []

    def ended(job: Job, how: Ended) -> None:
        if how.status == "FAILED":
            failed.append(f"{job.name}: {how.reason}")

    os.environ[VARIABLE] = plan.address.text  # not a flag: it may hold a password
    content: dict[str, Any] = {"flags": dict(flags), "code_digest": provenance.code_digest()}
    names = [f"worker_{number}" for number in range(1, (slots.number or 0) + 1)]
    run_jobs(
        [Job(name, "entry_points.tune_worker", folder / name, content, STARTS) for name in names],
        slots,
        tick=context.guard.check,
        say=context.say,
        on_ended=ended,
    )
    if len(failed) == len(names):
        raise ComparisonError(f"study {plan.study}: every worker failed: {failed[0]}; logs: {folder}")
