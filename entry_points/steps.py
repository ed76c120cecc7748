"""Train once and evaluate at several numbers of steps, without training again."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dinomaly_hd.errors import ConfigError
from dinomaly_hd.flag_texts import Option
from dinomaly_hd.flags import whole_numbers
from entry_points.common import launch
from entry_points.comparisons import CONFIG, SEEDS, prepare_variants

if TYPE_CHECKING:
    from dinomaly_hd.training.guards import SignalGuard

WITHOUT = ("max_steps",)
SWITCHES = {
    "steps": Option(
        "5000,10000,15000",
        "optimizer steps at which it is evaluated; training goes to the largest and has its schedule",
    ),
    "config": CONFIG,
    "seeds": SEEDS,
}


def main(argv: Sequence[str], guard: "SignalGuard") -> None:
    """Run the training and its evaluations."""
    build, seeds, context, switches, _ = prepare_variants(
        "steps", argv, guard, doc=__doc__, switches=SWITCHES, without=WITHOUT
    )
    steps = sorted(whole_numbers("steps", switches["steps"]))
    if steps[0] == 0:
        raise ConfigError("steps: 0 is no training; expected 1 or more")
    from dinomaly_hd.experiments.protocols import run_steps

    last = str(steps[-1])
    run_steps(
        steps,
        seeds,
        context,
        build=lambda step, seed: build(switches["config"], seed, {"max_steps": last, "stop_step": str(step)}),
    )


if __name__ == "__main__":
    launch(main)
