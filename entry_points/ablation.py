"""Train and compare configs with several seeds on equal terms: A0 A B C D E F G F0 K100, or a list."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dinomaly_hd.flag_texts import Option
from dinomaly_hd.flags import config_names
from entry_points.common import launch
from entry_points.comparisons import SEEDS, prepare_variants
from entry_points.slots import SLOTS, number_of_slots, slots_of

if TYPE_CHECKING:
    from dinomaly_hd.training.guards import SignalGuard

SWITCHES = {
    "configs": Option(
        "ablation",
        "ablation (A0 A B C D E F G F0 K100), directional, variants, or a list such as A0,F,F:q_percent=1; "
        "all are compared with the first",
    ),
    "seeds": SEEDS,
    "slots": SLOTS._replace(default="1", help=f"{SLOTS.help}; 1: one after another in this process"),
}


def main(argv: Sequence[str], guard: "SignalGuard") -> None:
    """Run the ablation."""
    build, seeds, context, switches, _ = prepare_variants(
        "ablation", argv, guard, doc=__doc__, switches=SWITCHES
    )
    configs = config_names(switches["configs"])
    slots = slots_of(switches, number=number_of_slots(switches["slots"]))
    from dinomaly_hd.experiments.protocols import run_ablation

    run_ablation(configs, seeds, context, build=lambda config, seed: build(config, seed, {}), slots=slots)


if __name__ == "__main__":
    launch(main)
