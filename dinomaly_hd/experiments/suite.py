"""Many conditions with many seeds as jobs: each is run once, whatever is killed and started again."""

from collections.abc import Mapping, Sequence

from dinomaly_hd.experiments.comparison import ONE_REPORT, Done, Member, run_comparison
from dinomaly_hd.runs.context import Context
from dinomaly_hd.experiments.domains import OWN
from dinomaly_hd.experiments.members_as_jobs import Checked, as_jobs, check_for_jobs
from dinomaly_hd.experiments.reporting import Question
from dinomaly_hd.jobs import Slots

KIND, REPORTS = "suite", "reports"
QUESTION = Question(
    "Suite of conditions",
    "How do these conditions do on the same domains? All differences are to the first one.",
    compared=OWN,
)


def run_suite(members: Sequence[Member], context: Context, *, slots: Slots) -> Done:
    """Run members as jobs and report on those of each set of domains.

    Raises:
        ConfigError: An engine that cannot be had, settings that do not fit, or two members in one place.
        DinomalyHDError: Data or weights that cannot be used.
        ComparisonError: Some members failed; the reports on the others are written.
    """
    checked = check_for_jobs(members, context, slots=slots)
    return run_comparison(
        members,
        context,
        kind=KIND,
        question=QUESTION,
        run_members=as_jobs(checked, slots=slots),
        places=lambda those: report_places({one: checked[one] for one in those}),
    )


def report_places(checked: Mapping[Member, Checked]) -> dict[Member, str]:
    """Return the report's folder for each member: one for each set of data, none where there is one set."""
    numbers: dict[str, list[tuple[str, ...]]] = {}
    for one in checked.values():
        alike = numbers.setdefault(one.place, [])
        if one.data not in alike:
            alike.append(one.data)
    if sum(len(alike) for alike in numbers.values()) <= 1:
        return dict.fromkeys(checked, ONE_REPORT)

    def place(one: Checked) -> str:
        number = numbers[one.place].index(one.data) + 1
        return f"{REPORTS}/{one.place}" if number == 1 else f"{REPORTS}/{one.place}_data_{number}"

    return {member: place(one) for member, one in checked.items()}
