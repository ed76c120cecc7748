"""Train on one source domain and test it on the others, with any model family."""

from collections.abc import Sequence

from dinomaly_hd.config.command import Command
from dinomaly_hd.training.signals import SignalGuard
from entry_points.common import context_of, launch
from entry_points.families import INSTEAD, TransferOptions, family_fields, trials_of

COMMAND = Command("multi_domain", __doc__, TransferOptions, family_fields, INSTEAD)


def main(argv: Sequence[str], guard: SignalGuard) -> None:
    asked = COMMAND.parse(argv)
    trials, context = trials_of(asked), context_of(asked, guard)
    from dinomaly_hd.experiments.protocols import run_multi_domain

    run_multi_domain(trials, context)


if __name__ == "__main__":
    raise SystemExit(launch(main))
