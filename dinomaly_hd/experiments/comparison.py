"""Run the members of a comparison, one after another or as jobs, and report on them, under one parent."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from dinomaly_hd.config.base import flatten
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.config.variants import config_label
from dinomaly_hd.data.features import FeatureCache
from dinomaly_hd.errors import CheckpointError, ComparisonError, ConfigError, NonFiniteError
from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.evaluation.comparison_pages import Question
from dinomaly_hd.experiments.members import Joined, read_member
from dinomaly_hd.experiments.reporting import Report, description, log, which_labels, write_report
from dinomaly_hd.experiments.run import Outcome, asked_domains, execute, short_domains
from dinomaly_hd.models.build import check_model
from dinomaly_hd.names import LONGEST_FOLDER, as_folder
from dinomaly_hd.runs.folder import Context, open_folder
from dinomaly_hd.runs.pages import members_line, shown_of_detectors, these_runs
from dinomaly_hd.runs.tracker import Tracker, tracked

ENDS_A_MEMBER_ONLY = (NonFiniteError, CheckpointError)
ONE_REPORT = ""
REPORT = "report.html"


class Member(NamedTuple):
    """One run of a comparison; those of one label and different seeds are averaged.

    ``place`` is the name of its folder below the comparison's.
    """

    label: str
    run: RunConfig
    place: str

    @property
    def title(self) -> str:
        return f"{self.label}, seed {self.run.seed}"


# Finished members with what they left, and why the others are not.
Ran = tuple[dict[Member, Outcome], dict[Member, str]]


class Done(NamedTuple):
    """Finished members with what they left, and the one report on all, where there is one."""

    outcomes: dict[Member, Outcome]
    report: Report | None


@dataclass(frozen=True)
class Parent:
    """A comparison at work: its folder, its run in MLflow, and the encoder outputs that members share."""

    folder: Path
    tracker: Tracker
    context: Context
    features: FeatureCache = field(default_factory=FeatureCache)

    def member(self, one: Member) -> Context:
        """Return the surroundings of a member: a subfolder here, a child run in MLflow."""
        return replace(
            self.context,
            folder=self.folder / one.place,
            parent_run_id=self.tracker.run_id,
            run_name=None,
            resume="auto",
            tags={**self.context.tags, "config": one.label, "sweep": self.folder.name},
            features=self.features,
        )


RunMembers = Callable[[Sequence[Member], Context, Parent], Ran]


def one_after_another(members: Sequence[Member], context: Context, parent: Parent) -> Ran:
    """Run members in this process; one that diverges does not stop the others."""
    outcomes: dict[Member, Outcome] = {}
    failed: dict[Member, str] = {}
    for number, one in enumerate(members, start=1):
        context.say(f"\n== {number}/{len(members)}: {one.label}, seed {one.run.seed}")
        siblings = [outcome.folder for other, outcome in outcomes.items() if other.run.seed == one.run.seed]
        try:
            outcomes[one] = execute(one.run, replace(parent.member(one), donors=tuple(siblings)))
        except ENDS_A_MEMBER_ONLY as error:
            failed[one] = str(error)
            context.say(f"{type(error).__name__}: {error}")
    return outcomes, failed


class Protocol(NamedTuple):
    """What a comparison asks and how; ``kind`` names its folder and its tag in MLflow.

    ``gather`` may make one run of several, and says why others are left out. ``then`` makes further members
    of those that are finished, and ``detail`` tells by them this comparison from others. ``places`` says in
    which subfolder each is reported on, None all together in the comparison's own: members of different
    places cannot be compared.
    """

    kind: str
    question: Question
    gather: Callable[[list[MemberRun]], Joined] = lambda members: (members, {})
    then: Callable[[dict[Member, Outcome]], list[Member]] = lambda _: []
    detail: str = ""
    run_members: RunMembers = one_after_another
    places: Mapping[Member, str] | None = None


def member(label: str, run: RunConfig) -> Member:
    """Return a member whose folder is named by label and seed."""
    label = config_label(label)
    return Member(label, run, f"{as_folder(label)}_seed{run.seed}")


def check_members(members: Sequence[Member]) -> None:
    """Refuse settings that do not fit together, and two members of one place, before the first one is run."""
    places: dict[str, Member] = {}
    for one in members:
        try:
            check_model(one.run)
        except ConfigError as error:
            raise ConfigError(f"{one.label}: {error}") from error
        other = places.setdefault(one.place.casefold(), one)
        if other is not one:
            raise ConfigError(f"{one.title} and {other.title}: both would lie in {one.place}; rename one")


def run_comparison(members: Sequence[Member], context: Context, protocol: Protocol) -> Done:
    """Run all members, then write and log the report on them.

    What members share is done once: encoder outputs, and a training of which another is the continuation or
    which differs only in what comes after it. A member that is finished already, in this comparison or
    another, is not run again.

    What would end every member (bad data, no encoder weights, a full disk) is raised as it is. Where some
    failed, the report is written all the same and names them, before a ComparisonError.
    """
    check_members(members)
    with _parent(members, context, protocol) as parent:
        outcomes, failed = protocol.run_members(members, context, parent)
        more = protocol.then(outcomes)
        if more:
            check_members([*members, *more])
            later, later_failed = protocol.run_members(more, context, parent)
            outcomes, failed = {**outcomes, **later}, {**failed, **later_failed}
        reports = _reports((outcomes, failed), parent, protocol)
        if failed:
            lines = [f"{one.title}: {reason}" for one, reason in failed.items()]
            raise ComparisonError(
                f"{len(lines)} of {len(lines) + len(outcomes)} members failed: {'; '.join(lines)}"
            )
    return Done(outcomes, reports.get(ONE_REPORT))


@contextmanager
def _parent(members: Sequence[Member], context: Context, protocol: Protocol) -> Iterator[Parent]:
    """Open a comparison's folder and MLflow run, or go on with an unfinished one of the same runs."""
    first, kind, flats = members[0].run, protocol.kind, [flatten(one.run) for one in members]
    identity = [
        (one.place, one.run.digest(), one.run.data.data_root, one.run.training.start_from) for one in members
    ]
    seeds = "-".join(dict.fromkeys(str(one.run.seed) for one in members))
    domains = as_folder(asked_domains(first))
    with open_parent(
        context,
        identity=[kind, protocol.detail, identity],
        name=f"{kind}-{short_domains(first.data.domain_names)}-s{seeds}",
        asked=f"{which_labels([one.label for one in members])}_on_{domains[:LONGEST_FOLDER]}",
        tags={"kind": kind, "variant": first.model.variant},
        seed=first.seed,
        resume=context.resume,
    ) as (folder, tracker):
        tracker.params({n: v for n, v in flats[0].items() if all(n in own and own[n] == v for own in flats)})
        yield Parent(folder, tracker, context)


@contextmanager
def open_parent(
    context: Context,
    *,
    identity: object,
    name: str,
    tags: Mapping[str, str],
    asked: str | None = None,
    folder: Path | None = None,
    seed: int = 0,
    resume: str = "auto",
    resumed: str | None = None,
    wait_s: float = 0.0,
) -> Iterator[tuple[Path, Tracker]]:
    """Lock the folder and copy to MLflow what has runs below it: a comparison, a study, a trial.

    ``folder`` None is a dated one, below what is ``asked``; ``resumed`` is the MLflow run of an earlier
    start, maybe on another machine. Where another process works in the folder for more than ``wait_s`` it is
    a ConfigError.
    """
    config_hash = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    with open_folder(
        context.result_dir / tags["kind"],
        variant=asked or tags["variant"],
        seed=seed,
        config_hash=config_hash,
        resume=resume,
        folder=folder,
        of_members=True,
        wait_s=wait_s,
        tick=context.guard.check,
    ) as opened:
        if opened.finished:
            opened.set_state(status="RUNNING")
        own = {"sweep": opened.path.name, **tags}
        with tracked(opened, context, name=name, tags=own, resumed=resumed) as tracker:
            yield opened.path, tracker


def _reports(ran: Ran, parent: Parent, protocol: Protocol) -> dict[str, Report]:
    """Write and log a report on the finished members of each place."""
    reports: dict[str, Report] = {}
    (outcomes, not_run), tracker, context = ran, parent.tracker, parent.context
    place_of = protocol.places or dict.fromkeys([*outcomes, *not_run], ONE_REPORT)
    for place in dict.fromkeys(place_of.values()):
        done, lacking = protocol.gather(
            [
                read_member(outcome.folder, label=one.label, name=outcome.mlflow_run_id)
                for one, outcome in outcomes.items()
                if place_of[one] == place
            ]
        )
        failed = {one.title: reason for one, reason in not_run.items() if place_of[one] == place} | lacking
        if not done:
            continue
        folder, question = parent.folder / place, protocol.question
        if place:
            question = question._replace(title=f"{question.title}: {folder.name.replace('_', ' ')}")
        context.say(f"\n== report on {len(done)} runs")
        report = reports[place] = write_report(
            done, folder, question=question, command=context.command, failed=failed, tick=context.guard.check
        )
        log(tracker, report, parent.folder)
        for line in [*report.markdown.splitlines(), f"report: {folder / REPORT}"]:
            context.say(line)
    if reports:
        runs = [outcome.mlflow_run_id for outcome in outcomes.values() if outcome.mlflow_run_id]
        # a suite has a report in each of its subfolders instead
        whole = REPORT if (parent.folder / REPORT).is_file() else None
        links = members_line(tracker.experiment_id, tracker.run_id, runs, what="runs", report=whole)
        tracker.note(description(list(reports.values()), links=links))
        domains = dict.fromkeys(name for report in reports.values() for name in report.comparison.domains)
        which = these_runs(runs, sweep=parent.folder.name, kind="train")
        tracker.view(which, name=None, group_by="config", **shown_of_detectors(list(domains)))
    return reports
