"""Train on all domains, then fine-tune on each: what is gained there, and what is forgotten elsewhere."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dinomaly_hd.config import names_in
from dinomaly_hd.flag_texts import Option
from entry_points.common import launch
from entry_points.comparisons import CONFIG, SEEDS, prepare_variants

if TYPE_CHECKING:
    from dinomaly_hd.training.guards import SignalGuard

ALL = "all"
SWITCHES = {
    "config": CONFIG,
    "finetune_domains": Option(ALL, "domains to fine-tune on, one after another from the same start; all"),
    "finetune_steps": Option("200", "optimizer steps of each fine-tuning"),
    "finetune_learning_rate": Option("0.0002", "of each fine-tuning, after a tenth of its steps as warm-up"),
    "seeds": SEEDS,
}


def main(argv: Sequence[str], guard: "SignalGuard") -> None:
    """Run the unified training and the fine-tunings."""
    build, seeds, context, switches, _ = prepare_variants(
        "finetune", argv, guard, doc=__doc__, switches=SWITCHES
    )
    from dinomaly_hd.experiments.protocols import run_finetune

    run_finetune(
        [build(switches["config"], seed, {}) for seed in seeds],
        context,
        steps=switches["finetune_steps"],
        learning_rate=switches["finetune_learning_rate"],
        domains=None if switches["finetune_domains"] == ALL else names_in(switches["finetune_domains"]),
    )


if __name__ == "__main__":
    launch(main)
