"""Train on all domains, then fine-tune on each: what is gained there, and what is forgotten elsewhere."""

from dinomaly_hd.config.base import PositiveCount, doc, names_in
from dinomaly_hd.config.run import ALL_DOMAINS
from entry_points.common import ConfigOptions, Start, entry_point, launch, of_members


class Options(ConfigOptions):
    finetune_domains: str = doc(ALL_DOMAINS, "domains to fine-tune on, each from the same start; all")
    finetune_steps: PositiveCount = doc(200, "optimizer steps of each fine-tuning")
    finetune_learning_rate: float = doc(0.0002, "of each, after a tenth of its steps as warm-up", gt=0, lt=1)


def finetune(start: Start[Options]) -> None:
    options, context = start.options, start.context()
    chosen = options.finetune_domains
    from dinomaly_hd.experiments.protocols import run_finetune

    run_finetune(
        [start.member(options.config, seed) for seed in options.seeds],
        context,
        steps=options.finetune_steps,
        learning_rate=options.finetune_learning_rate,
        domains=None if chosen == ALL_DOMAINS else names_in(chosen),
    )


COMMAND, main = entry_point("finetune", __doc__, Options, finetune, runs=of_members())

if __name__ == "__main__":
    raise SystemExit(launch(main))
