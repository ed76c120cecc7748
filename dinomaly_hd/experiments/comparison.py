"""Run the members of a comparison, one after another or as jobs, and report on them, under one parent."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dinomaly_hd.config import RunConfig
from dinomaly_hd.errors import CheckpointError, ComparisonError, ConfigError, NonFiniteError
from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.runs.context import Context
from dinomaly_hd.experiments.members import Joined, read_member
from dinomaly_hd.experiments.parent import Parent, parent_run
from dinomaly_hd.experiments.reporting import Question, Report, flat_means, write_report
from dinomaly_hd.experiments.run import Outcome, execute
from dinomaly_hd.models.build import check_model

ENDS_A_MEMBER_ONLY = (NonFiniteError, CheckpointError)
Gather = Callable[[list[MemberRun]], Joined]
Then = Callable[["dict[Member, Outcome]"], "list[Member]"]
RunMembers = Callable[["Sequence[Member]", Context, Parent], "Ran"]
Places = Callable[["Sequence[Member]"], "Mapping[Member, str]"]
ONE_REPORT = ""


class Member(NamedTuple):
    """One run of a comparison; those of one label and different seeds are averaged.

    ``place`` is the name of its folder below the comparison's.
    """

    label: str
    run: RunConfig
    place: str

    @property
    def title(self) -> str:
        """What a failure is told by."""
        return f"{self.label}, seed {self.run.seed}"


class Ran(NamedTuple):
    """Finished members with what they left, and by title why the others are not."""

    outcomes: dict[Member, Outcome]
    failed: dict[Member, str]


class Done(NamedTuple):
    """Finished members with what they left, and the reports by their folders below the comparison's."""

    outcomes: dict[Member, Outcome]
    reports: dict[str, Report]

    @property
    def report(self) -> Report | None:
        """The one report on all members, if any run could be reported on."""
        return self.reports.get(ONE_REPORT)


def member(label: str, run: RunConfig) -> Member:
    """Return a member whose folder is named by label and seed."""
    return Member(label, run, f"{re.sub(r'[^A-Za-z0-9._=,-]', '_', label)}_seed{run.seed}")


def no_more(outcomes: Mapping[Member, Outcome]) -> list[Member]:
    """Return no further members."""
    del outcomes
    return []


def as_they_are(members: list[MemberRun]) -> Joined:
    """Return every finished run for itself."""
    return Joined(members, {})


def together(members: Sequence[Member]) -> dict[Member, str]:
    """Return one place for the report on all members."""
    return dict.fromkeys(members, ONE_REPORT)


def check_members(members: Sequence[Member]) -> None:
    """Refuse members' settings before the first one is run.

    Raises:
        ConfigError: A model's settings do not fit together, or two members have one place.
    """
    places: dict[str, Member] = {}
    for one in members:
        try:
            check_model(one.run)
        except ConfigError as error:
            raise ConfigError(f"{one.label}: {error}") from error
        other = places.setdefault(one.place.casefold(), one)
        if other is not one:
            raise ConfigError(f"{one.title} and {other.title}: both would lie in {one.place}; rename one")


def run_comparison(
    members: Sequence[Member],
    context: Context,
    *,
    kind: str,
    question: Question,
    gather: Gather = as_they_are,
    then: Then = no_more,
    run_members: RunMembers | None = None,
    places: Places = together,
    detail: str = "",
) -> Done:
    """Run all members, then write and log the report on them.

    ``gather`` may make one run of several; ``then`` makes further members of those that are finished, and
    ``detail`` names what it makes, as part of what tells this comparison from others. ``run_members`` is how
    they are run (None: ``one_after_another``), and ``places`` says in which subfolder each is reported on;
    members of different places cannot be compared.

    What members share is done once: encoder outputs, and a training of which another is the continuation or
    which differs only in what comes after it. A member that is finished already, in this comparison or
    another, is not run again.

    Raises:
        DinomalyHDError: What would end every member (bad data, no encoder weights, a full disk).
        ComparisonError: Some members failed; the report is written all the same and names them.
    """
    run_members = run_members or one_after_another
    check_members(members)
    first = {one.place: one.run for one in members}
    with parent_run(first, context, kind=kind, detail=detail) as parent:
        ran = run_members(members, context, parent)
        more = then(ran.outcomes)
        if more:
            check_members([*members, *more])
            later = run_members(more, context, parent)
            ran = Ran({**ran.outcomes, **later.outcomes}, {**ran.failed, **later.failed})
        reports = _reports(ran, context, parent, question=question, gather=gather, places=places)
        if ran.failed:
            lines = [f"{one.title}: {reason}" for one, reason in ran.failed.items()]
            raise ComparisonError(
                f"{len(lines)} of {len(lines) + len(ran.outcomes)} members failed: {'; '.join(lines)}"
            )
    return Done(ran.outcomes, reports)


def one_after_another(members: Sequence[Member], context: Context, parent: Parent) -> Ran:
    """Run members in this process; one that diverges does not stop the others."""
    outcomes: dict[Member, Outcome] = {}
    failed: dict[Member, str] = {}
    for number, one in enumerate(members, start=1):
        context.say(f"\n== {number}/{len(members)}: {one.label}, seed {one.run.seed}")
        siblings = [outcome.folder for other, outcome in outcomes.items() if other.run.seed == one.run.seed]
        own = replace(parent.member(one.place, config=one.label), donors=tuple(siblings))
        try:
            outcomes[one] = execute(one.run, own)
        except ENDS_A_MEMBER_ONLY as error:
            failed[one] = str(error)
            context.say(f"{type(error).__name__}: {error}")
    return Ran(outcomes, failed)


def _reports(
    ran: Ran, context: Context, parent: Parent, *, question: Question, gather: Gather, places: Places
) -> dict[str, Report]:
    """Write and log a report on the finished members of each place."""
    reports: dict[str, Report] = {}
    place_of = places([*ran.outcomes, *ran.failed])
    for place in dict.fromkeys(place_of.values()):
        done, lacking = gather(
            [
                read_member(outcome.folder, label=one.label, name=outcome.mlflow_run_id)
                for one, outcome in ran.outcomes.items()
                if place_of[one] == place
            ]
        )
        failed = {one.title: reason for one, reason in ran.failed.items() if place_of[one] == place}
        if done:
            reports[place] = _report(
                done, context, parent, place=place, question=question, failed={**failed, **lacking}
            )
    if reports:
        parent.note(
            "\n\n".join(report.markdown for report in reports.values()),
            runs=[outcome.mlflow_run_id for outcome in ran.outcomes.values()],
        )
    return reports


def _report(
    members: Sequence[MemberRun],
    context: Context,
    parent: Parent,
    *,
    place: str,
    question: Question,
    failed: dict[str, str],
) -> Report:
    if place:
        question = question._replace(title=f"{question.title}: {Path(place).name.replace('_', ' ')}")
    context.say(f"\n== report on {len(members)} runs")
    report = write_report(
        members,
        parent.folder / place,
        question=question,
        command=context.command,
        failed=failed,
        tick=context.guard.check,
    )
    for path in report.files:
        folder = path.parent.relative_to(parent.folder)
        parent.artifact(path, folder=None if str(folder) == "." else str(folder))
    parent.metrics(flat_means(report.comparison))
    for line in report.markdown.splitlines():
        context.say(line)
    context.say(f"report: {parent.folder / place / 'report.html'}")
    return report
