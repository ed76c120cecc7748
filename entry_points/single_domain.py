"""Train and test one domain with any model family; several models, domains or seeds are compared."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from entry_points import families
from entry_points.common import launch

if TYPE_CHECKING:
    from dinomaly_hd.training.guards import SignalGuard

SWITCHES = families.SWITCHES


def main(argv: Sequence[str], guard: "SignalGuard") -> None:
    """Run the experiment."""
    trials, context = families.prepare_trials("single_domain", argv, guard, doc=__doc__, switches=SWITCHES)
    from dinomaly_hd.experiments.protocols import run_single_domain

    run_single_domain(trials, context)


if __name__ == "__main__":
    launch(main)
