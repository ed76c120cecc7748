"""Train the original Dinomaly: one model for all domains, one a domain, or both and their difference."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dinomaly_hd.flags import Option
from entry_points.common import launch, prepare

if TYPE_CHECKING:
    from dinomaly_hd.training.guards import SignalGuard

SWITCHES = {
    "mode": Option(
        "multiclass",
        "multiclass (one model), singleclass (one a domain), compare (both, and their difference)",
    )
}


def main(argv: Sequence[str], guard: "SignalGuard") -> None:
    """Run the mode asked for."""
    run, context, switches = prepare("baseline", argv, guard, doc=__doc__, switches=SWITCHES)
    from dinomaly_hd.experiments.multiclass import run_mode

    run_mode(run, context, mode=switches["mode"])


if __name__ == "__main__":
    launch(main)
