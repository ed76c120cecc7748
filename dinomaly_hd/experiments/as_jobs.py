"""Members of a comparison as jobs: several at once, each run once, whatever is killed and started again."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dinomaly_hd import provenance
from dinomaly_hd.config.run import from_json
from dinomaly_hd.data.feature_files import FeaturePlace
from dinomaly_hd.errors import CheckpointError, ConfigError, DataError, EncoderError, SignalGuard
from dinomaly_hd.experiments.checks import Ready, check
from dinomaly_hd.experiments.comparison import Member, Parent, Ran, check_members
from dinomaly_hd.experiments.run import Outcome, execute, outcome_in
from dinomaly_hd.jobs.engines import check_engine
from dinomaly_hd.jobs.job import LOG, Ended, Job, Slots, read_job, write_progress
from dinomaly_hd.jobs.running import run_jobs
from dinomaly_hd.runs.folder import Context, finished_runs
from dinomaly_hd.runs.store import MODULES
from dinomaly_hd.runs.sync import complete_finished

REFUSALS = (ConfigError, DataError, EncoderError, CheckpointError)
MODULE = "entry_points.job"
IMPORTS = (__name__, *MODULES)
LOCK_WAIT_S = 120.0  # a member's last process may still be saving, on this machine or on one that was lost
PLAIN = ("experiment", "command", "entry_point", "run_name", "resume", "parent_run_id", "tags")
PATHS = ("root", "result_dir", "folder")


def check_for_jobs(members: Sequence[Member], context: Context, *, slots: Slots) -> dict[Member, Ready]:
    """Check engine, settings, data and weights before the first job starts, each data set once."""
    check_engine(slots)
    check_members(members)
    reading, checked = replace(context, manifests={}), {}
    for one in members:
        try:
            # Without textures, of which each member would keep its own in memory.
            checked[one] = check(one.run, reading)._replace(textures=None)
        except REFUSALS as error:
            raise type(error)(f"{one.label}: {error}") from error
    context.say(f"{len(members)} members, checked")
    return checked


def run_as_jobs(
    members: Sequence[Member],
    context: Context,
    parent: Parent,
    *,
    checked: Mapping[Member, Ready],
    slots: Slots,
) -> Ran:
    """Run members that were checked as jobs; members of equal settings are one run.

    Finished members, of this comparison or of any other run here, are not run again; interrupted ones go on;
    one that fails is started once more and then named, and does not stop the others.
    """
    code, first = provenance.code_digest(), dict[str, Member]()
    hashes = {one: checked[one].config_hash for one in members}
    for one in members:
        first.setdefault(hashes[one], one)
    before, jobs = finished_runs(context.result_dir, code=code), []
    for one in (one for config_hash, one in first.items() if config_hash not in before):
        surroundings = context_to_plain(parent.member(one))
        content = {"code_digest": code, "run": json.loads(one.run.to_json()), "context": surroundings}
        jobs.append(Job(one.place, MODULE, parent.folder / one.place, content, imports=IMPORTS))
    reused = [one.place for one in members if hashes[one] in before]
    context.say(f"{len(reused)} finished before, {len(jobs)} to run")

    def tell(job: Job, how: Ended) -> None:
        if how.status == "FAILED":
            log = job.folder / LOG
            context.say(f"{job.name}: failed after {how.starts} starts: {how.reason} (log: {log})")

    tick = context.guard.check
    ended = run_jobs(jobs, slots, tick=tick, say=context.say, on_ended=tell, reused=reused)
    after = {**before, **finished_runs(context.result_dir, code=code)}
    outcomes: dict[Member, Outcome] = {}
    failed: dict[Member, str] = {}
    for one in members:
        folder = after.get(hashes[one])
        if folder is None:
            failed[one] = ended[first[hashes[one]].place].reason or "it left no results"
            continue
        if folder.is_relative_to(parent.folder):
            complete_finished(folder, root=context.root, say=context.say)
        outcomes[one] = outcome_in(folder)
    return outcomes, failed


def run_job(path: Path, *, guard: SignalGuard, say: Callable[[str], None]) -> Outcome:
    """Execute the run of a ``job.json``; a ConfigError if there is none, or other code wrote it."""
    content = read_job(path, code_digest=provenance.code_digest())

    def progress(done: int, total: int, seconds_left: float) -> None:
        write_progress(path.parent, step=done, steps=total, seconds_left=seconds_left)

    context = context_from_plain(content["context"], guard=guard, say=say)
    context = replace(context, lock_wait_s=LOCK_WAIT_S, on_progress=progress)
    return execute(from_json(json.dumps(content["run"])), context)


def context_to_plain(context: Context) -> dict[str, Any]:
    """Return what JSON can hold of a context; another working directory finds the same paths."""
    paths, place = {name: getattr(context, name) for name in PATHS}, context.feature_place
    return {
        **{name: getattr(context, name) for name in PLAIN},
        **{name: path and str(path.absolute()) for name, path in paths.items()},
        "feature_place": place and [str(place.folder.absolute()), place.budget_gb],
    }


def context_from_plain(content: dict[str, Any], *, guard: SignalGuard, say: Callable[[str], None]) -> Context:
    """Return the context of which ``context_to_plain`` was made, for this process."""
    paths = {name: content[name] and Path(content[name]) for name in PATHS}
    place = content["feature_place"]
    place = place and FeaturePlace(Path(place[0]), place[1])
    return Context(guard=guard, say=say, **{**content, **paths, "feature_place": place})
