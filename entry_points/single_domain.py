"""Train and test one domain with any model family; several models, domains or seeds are compared."""

from collections.abc import Sequence

from dinomaly_hd.config.command import Command
from dinomaly_hd.training.signals import SignalGuard
from entry_points.common import context_of, launch
from entry_points.families import INSTEAD, FamilyOptions, family_fields, trials_of

COMMAND = Command(
    "single_domain", __doc__, FamilyOptions, family_fields, {**INSTEAD, "domains": "source_domain"}
)


def main(argv: Sequence[str], guard: SignalGuard) -> None:
    asked = COMMAND.parse(argv)
    trials, context = trials_of(asked), context_of(asked, guard)
    from dinomaly_hd.experiments.protocols import run_single_domain

    run_single_domain(trials, context)


if __name__ == "__main__":
    raise SystemExit(launch(main))
