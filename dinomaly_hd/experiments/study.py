"""Studies: trials by many workers, here and elsewhere, then the report on what they found."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dinomaly_hd import provenance
from dinomaly_hd.errors import ComparisonError, ConfigError, OutputError
from dinomaly_hd.runs.context import Context
from dinomaly_hd.experiments.checks import ManifestMemory
from dinomaly_hd.experiments.study_page import Busy, study_page
from dinomaly_hd.experiments.study_plan import TEST, Plan, check_plan
from dinomaly_hd.experiments.study_report import report_study
from dinomaly_hd.experiments.trial import Runner
from dinomaly_hd.files import make_dated_folder
from dinomaly_hd.jobs import ONE_SLOT, Ended, Job, Slots, check_engine, run_jobs, write_progress
from dinomaly_hd.runs.tracker import Tracker
from dinomaly_hd.tuning.queue import Counts, counts_of
from dinomaly_hd.tuning.storage import Address, clear_outage
from dinomaly_hd.tuning.study import Joined, join
from dinomaly_hd.tuning.worker import work

STARTS = 20
"""Of a worker: each may be killed that often."""
STORAGE_FILE = "storage"
RUN_OF_MLFLOW = "MLFLOW_RUN_ID"


class Launch(NamedTuple):
    """How workers are started.

    Attributes:
        slots: Where, and how many at a time.
        content: What a worker's job.json says, without the storage.
    """

    slots: Slots
    content: Mapping[str, Any]


def run_study(plan: Plan, context: Context, *, launch: Launch) -> None:
    """Make a study or join it, run its trials with others, and report on it.

    Raises:
        ConfigError: A setting is wrong, or the study's are others.
        ComparisonError: Trials failed and too few were finished; the report is written all the same.
        DinomalyHDError: What would end every trial.
    """
    if not launch.slots.number:
        raise ConfigError(f"workers={launch.slots.number}: expected 1 or more")
    check_engine(launch.slots)
    context = replace(context, manifests=ManifestMemory())
    with ExitStack() as stack:
        pages: list[Tracker] = []
        joined = _join(plan, context, parent=partial(_open_parent, plan, context, stack=stack, pages=pages))
        context.say(f"study {plan.study}: {plan.address.shown}; {plan.pruning.text}")
        if plan.objective == TEST:
            context.say(
                "warning: objective=test chooses by test labels: what is found looks better than it is"
            )
        if launch.slots == ONE_SLOT:
            _work(plan, context, joined)
        else:
            _start_workers(plan, context, launch)
        with clear_outage(plan.address):
            counts = counts_of(joined.study)
            if pages:
                report_study(plan, context, joined, pages[0])
            else:
                context.say(f"another process reports on this study: {plan.folder(context.result_dir)}")
        if counts.valid < plan.trials:
            raise ComparisonError(
                f"study {plan.study}: {counts.valid} of {plan.trials} trials finished, {counts.failed} "
                f"failed; see {plan.folder(context.result_dir)}"
            )


def run_worker(plan: Plan, context: Context, *, folder: Path) -> None:
    """Run trials of a study that is made already, as a job in ``folder``.

    Raises:
        DinomalyHDError: What would end every trial.
    """

    def progress(done: int, total: int, seconds_left: float) -> None:
        write_progress(folder, step=done, steps=total, seconds_left=seconds_left)

    told = replace(context, on_progress=progress, manifests=ManifestMemory())
    _work(plan, told, _join(plan, told, parent=lambda known: known))


@contextmanager
def storage_file(address: Address, folder: Path) -> Iterator[Path]:
    """Keep an address with its password in a file that only this user can read, as long as jobs need it.

    Raises:
        OutputError: It cannot be written.
    """
    path = folder / STORAGE_FILE
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(address.text)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _join(plan: Plan, context: Context, *, parent: Callable[[str | None], str | None]) -> Joined:
    terms = check_plan(plan, context)
    return join(
        plan.study,
        plan.address,
        terms=terms,
        trials=plan.trials,
        objectives=len(plan.metrics),
        references={name: plan.space.native(point) for name, point in plan.space.references().items()},
        pruning=plan.pruning,
        heartbeat_s=plan.heartbeat_s,
        parent=parent,
    )


def _open_parent(
    plan: Plan, context: Context, known: str | None, *, stack: ExitStack, pages: list[Tracker]
) -> str | None:
    """Open the study's folder and MLflow run; leave both to the process here that has them already."""
    if known is not None and os.environ.pop(RUN_OF_MLFLOW, ""):  # its trials stay below one run
        context.say(f"the study's pages are those of the MLflow run {known}")
    page = study_page(
        plan.folder(context.result_dir),
        context,
        kind="study",
        name=context.run_name or f"study-{plan.study}",
        tags={"variant": plan.space.variant, "config": plan.config, "sweep": plan.study},
        resumed=known,
        wait_s=0.0,
    )
    try:
        tracker = stack.enter_context(page)
    except Busy:  # another `tune` on this disk
        os.environ.pop(RUN_OF_MLFLOW, "")  # else the first trial would take it
        return known
    pages.append(tracker)
    tracker.params({"study": plan.study, "config": plan.config, "space": ",".join(plan.space.dimensions)})
    return tracker.run_id or known


def _work(plan: Plan, context: Context, joined: Joined) -> None:
    last: list[Counts] = []

    def tell(counts: Counts) -> None:
        if last != [counts]:
            last[:] = [counts]
            context.say(
                f"study {plan.study}: {counts.valid} of {plan.trials} trials finished, {counts.running} "
                f"at work, {counts.waiting} waiting, {counts.failed} failed"
            )

    work(
        joined,
        trials=plan.trials,
        space=plan.space,
        sampler=plan.sampler,
        seed=plan.seeds[0],
        evaluate=Runner(plan=plan, context=context, parent=joined.parent),
        tick=context.guard.check,
        on_count=tell,
    )


def _start_workers(plan: Plan, context: Context, launch: Launch) -> None:
    folder = make_dated_folder((plan.folder(context.result_dir) / "workers").absolute())
    failed: list[str] = []

    def ended(job: Job, how: Ended) -> None:
        if how.status == "FAILED":
            failed.append(f"{job.name}: {how.reason}")

    with storage_file(plan.address, folder) as storage:
        content = {
            **launch.content,
            "storage_file": str(storage),
            "code_digest": provenance.code_digest(),
        }
        assert launch.slots.number is not None
        names = [f"worker_{number}" for number in range(1, launch.slots.number + 1)]
        run_jobs(
            [Job(name, "entry_points.tune_worker", folder / name, content, STARTS) for name in names],
            launch.slots,
            tick=context.guard.check,
            say=context.say,
            on_ended=ended,
        )
    if len(failed) == len(names):
        raise ComparisonError(f"study {plan.study}: every worker failed: {failed[0]}; logs: {folder}")
