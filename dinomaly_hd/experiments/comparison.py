"""Run the members of a comparison one after another and report on them, under one parent."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from dinomaly_hd.config import RunConfig
from dinomaly_hd.errors import CheckpointError, ComparisonError, ConfigError, NonFiniteError
from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.experiments.context import Context
from dinomaly_hd.experiments.members import Joined, read_member
from dinomaly_hd.experiments.parent import Parent, parent_run
from dinomaly_hd.experiments.reporting import Question, Report, flat_means, write_report
from dinomaly_hd.experiments.training_run import Outcome, execute
from dinomaly_hd.models.build import check_model

ENDS_A_MEMBER_ONLY = (NonFiniteError, CheckpointError)
Gather = Callable[[list[MemberRun]], Joined]
Then = Callable[["dict[Member, Outcome]"], "list[Member]"]


class Member(NamedTuple):
    """One run of a comparison; those of one label and different seeds are averaged.

    ``place`` is the name of its folder below the comparison's.
    """

    label: str
    run: RunConfig
    place: str


class Done(NamedTuple):
    """Finished members with what they left, and the report if any run could be reported on."""

    outcomes: dict[Member, Outcome]
    report: Report | None


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


def run_comparison(
    members: Sequence[Member],
    context: Context,
    *,
    kind: str,
    question: Question,
    gather: Gather = as_they_are,
    then: Then = no_more,
    detail: str = "",
) -> Done:
    """Run all members in their order, then write and log the report on them.

    ``gather`` may make one run of several; ``then`` makes further members of those that are finished, and
    ``detail`` names what it makes, as part of what tells this comparison from others.

    What members share is done once: encoder outputs, and a training of which another is the continuation or
    which differs only in what comes after it. A member that is finished already, in this comparison or
    another, is not run again.

    Raises:
        DinomalyHDError: What would end every member (bad data, no encoder weights, a full disk).
        ComparisonError: Some members failed; the report is written all the same and names them.
    """
    for one in members:
        _check(one)
    first = {one.place: one.run for one in members}
    with parent_run(first, context, kind=kind, detail=detail) as parent:
        outcomes, failed = _run_members(members, context, parent)
        more = then(outcomes)
        for one in more:
            _check(one)
        later = _run_members(more, context, parent)
        outcomes, failed = {**outcomes, **later[0]}, {**failed, **later[1]}
        members_done, lacking = gather(
            [
                read_member(outcome.folder, label=one.label, name=outcome.mlflow_run_id)
                for one, outcome in outcomes.items()
            ]
        )
        report = _report(members_done, context, parent, question=question, failed={**failed, **lacking})
        if failed:
            lines = [f"{name}: {reason}" for name, reason in failed.items()]
            raise ComparisonError(
                f"{len(lines)} of {len(lines) + len(outcomes)} members failed: {'; '.join(lines)}"
            )
    return Done(outcomes, report)


def _run_members(
    members: Sequence[Member], context: Context, parent: Parent
) -> tuple[dict[Member, Outcome], dict[str, str]]:
    """Run members; one that diverges does not stop the others."""
    outcomes: dict[Member, Outcome] = {}
    failed: dict[str, str] = {}
    for number, one in enumerate(members, start=1):
        context.say(f"\n== {number}/{len(members)}: {one.label}, seed {one.run.seed}")
        siblings = [outcome.folder for other, outcome in outcomes.items() if other.run.seed == one.run.seed]
        own = replace(parent.member(one.place, config=one.label), donors=tuple(siblings))
        try:
            outcomes[one] = execute(one.run, own)
        except ENDS_A_MEMBER_ONLY as error:
            failed[f"{one.label}, seed {one.run.seed}"] = str(error)
            context.say(f"{type(error).__name__}: {error}")
    return outcomes, failed


def _report(
    members: Sequence[MemberRun],
    context: Context,
    parent: Parent,
    *,
    question: Question,
    failed: dict[str, str],
) -> Report | None:
    if not members:
        return None
    context.say(f"\n== report on {len(members)} runs")
    report = write_report(
        members,
        parent.folder,
        question=question,
        command=context.command,
        failed=failed,
        tick=context.guard.check,
    )
    for path in report.files:
        folder = path.parent.relative_to(parent.folder)
        parent.artifact(path, folder=None if str(folder) == "." else str(folder))
    parent.metrics(flat_means(report.comparison))
    parent.note(report.markdown)
    for line in report.markdown.splitlines():
        context.say(line)
    context.say(f"report: {parent.folder / 'report.html'}")
    return report


def _check(one: Member) -> None:
    """Refuse a member's settings before the first member is run."""
    try:
        check_model(one.run)
    except ConfigError as error:
        raise ConfigError(f"{one.label}: {error}") from error
