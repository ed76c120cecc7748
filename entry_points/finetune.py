"""Train on all domains, then fine-tune on each: what is gained there, and what is forgotten elsewhere."""

from collections.abc import Sequence

from dinomaly_hd.config.base import PositiveCount, doc
from dinomaly_hd.config.run import ALL_DOMAINS
from dinomaly_hd.config.texts import names_in
from dinomaly_hd.errors import SignalGuard
from entry_points.common import ConfigOptions, comparison, context_of, launch, member_of


class Options(ConfigOptions):
    finetune_domains: str = doc(
        ALL_DOMAINS, "domains to fine-tune on, one after another from the same start; all"
    )
    finetune_steps: PositiveCount = doc(200, "optimizer steps of each fine-tuning")
    finetune_learning_rate: float = doc(
        0.0002, "of each fine-tuning, after a tenth of its steps as warm-up", gt=0, lt=1
    )


COMMAND = comparison("finetune", __doc__, Options)


def main(argv: Sequence[str], guard: SignalGuard) -> None:
    asked = COMMAND.parse(argv)
    options, context = asked.options, context_of(asked, guard)
    chosen = options.finetune_domains
    from dinomaly_hd.experiments.protocols import run_finetune

    run_finetune(
        [member_of(asked, options.config, seed) for seed in options.seeds],
        context,
        steps=options.finetune_steps,
        learning_rate=options.finetune_learning_rate,
        domains=None if chosen == ALL_DOMAINS else names_in(chosen),
    )


if __name__ == "__main__":
    raise SystemExit(launch(main))
