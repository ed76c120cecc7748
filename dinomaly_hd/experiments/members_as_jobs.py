"""Members of a comparison as jobs: several at once, each run once, whatever is killed and started again."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dinomaly_hd import provenance
from dinomaly_hd.errors import CheckpointError, ConfigError, DataError, EncoderError
from dinomaly_hd.experiments.comparison import Member, Ran, RunMembers, check_members
from dinomaly_hd.runs.context import Context
from dinomaly_hd.experiments.checks import ManifestMemory
from dinomaly_hd.experiments.member_job import member_job
from dinomaly_hd.experiments.parent import Parent
from dinomaly_hd.experiments.checks import check
from dinomaly_hd.runs.folder import finished_runs, read_results, read_state
from dinomaly_hd.experiments.record import complete_in_mlflow
from dinomaly_hd.experiments.session import short_domains
from dinomaly_hd.experiments.run import Outcome
from dinomaly_hd.jobs import Ended, Job, Slots, check_engine, run_jobs
from dinomaly_hd.jobs.job import LOG

REFUSALS = (ConfigError, DataError, EncoderError, CheckpointError)


class Checked(NamedTuple):
    """What is known of a member once its data were read.

    Attributes:
        config_hash: Its identity as a run.
        data: What it is tested on and learns from; members of one ``data`` can be compared.
        place: The domains, as a report's folder is named by them.
    """

    config_hash: str
    data: tuple[str, ...]
    place: str


def check_for_jobs(members: Sequence[Member], context: Context, *, slots: Slots) -> dict[Member, Checked]:
    """Check everything before the first job starts, each data set once.

    Raises:
        ConfigError: An engine that cannot be had, settings that do not fit, or two members in one place.
        DinomalyHDError: Data or weights that cannot be used.
    """
    check_engine(slots)
    check_members(members)
    reading = replace(context, manifests=ManifestMemory())
    checked = {one: _checked(one, reading) for one in members}
    context.say(f"{len(members)} members, checked")
    return checked


def as_jobs(checked: Mapping[Member, Checked], *, slots: Slots) -> RunMembers:
    """Return what runs members that were checked.

    Finished members, of this comparison or of any other run here, are not run again; interrupted ones go on;
    one that fails is started once more and then named, and does not stop the others.
    """

    def run_members(members: Sequence[Member], context: Context, parent: Parent) -> Ran:
        return _run_in_jobs(members, context, parent, checked=checked, slots=slots)

    return run_members


def _checked(one: Member, context: Context) -> Checked:
    try:
        ready = check(one.run, context)
    except REFUSALS as error:
        raise type(error)(f"{one.label}: {error}") from error
    data = one.run.data
    trained = short_domains(data.train_domain_names)
    others = tuple(name for name in data.domain_names if name not in data.train_domain_names)
    place = f"{trained}_to_{short_domains(others)}" if others else trained
    return Checked(ready.config_hash, (ready.manifest.digest, *data.train_domain_names), place)


def _run_in_jobs(
    members: Sequence[Member],
    context: Context,
    parent: Parent,
    *,
    checked: Mapping[Member, Checked],
    slots: Slots,
) -> Ran:
    """Run what is not finished as jobs; members of equal settings are one run."""
    before = _finished(context)
    reused = [one for one in members if checked[one].config_hash in before]
    rest = {checked[one].config_hash: one for one in reversed(members) if one not in reused}
    jobs = [
        member_job(one.place, one.run, parent.member(one.place, config=one.label))
        for one in members
        if rest.get(checked[one].config_hash) is one
    ]
    context.say(f"{len(reused)} finished before, {len(jobs)} to run")
    ended = run_jobs(
        jobs,
        slots,
        tick=context.guard.check,
        say=context.say,
        on_ended=lambda job, how: _say_failure(job, how, context),
        reused=[one.place for one in reused],
    )
    after = {**before, **_finished(context)}
    outcomes: dict[Member, Outcome] = {}
    failed: dict[Member, str] = {}
    for one in members:
        digest = checked[one].config_hash
        if digest in after:
            if after[digest].is_relative_to(parent.folder):
                complete_in_mlflow(after[digest], context)
            outcomes[one] = _outcome(after[digest])
        else:
            failed[one] = ended[rest[digest].place].reason or "it left no results"
    return Ran(outcomes, failed)


def _finished(context: Context) -> dict[str, Path]:
    return finished_runs(context.result_dir, code=provenance.code_digest())


def _outcome(folder: Path) -> Outcome:
    return Outcome(folder, read_results(folder) or {}, read_state(folder).get("mlflow_run_id"))


def _say_failure(job: Job, how: Ended, context: Context) -> None:
    if how.status == "FAILED":
        context.say(f"{job.name}: failed after {how.starts} starts: {how.reason} (log: {job.folder / LOG})")
