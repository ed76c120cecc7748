"""Ablation: configs x seeds on equal terms, all differences to the first config."""

from collections.abc import Callable, Sequence

from dinomaly_hd.config import RunConfig
from dinomaly_hd.experiments.comparison import Done, member, run_comparison
from dinomaly_hd.experiments.context import Context
from dinomaly_hd.experiments.reporting import Question

QUESTION = (
    "Which of these changes to Dinomaly find more damaged teeth? Every config starts from the same weights "
    "and sees the same images in the same order; class tokens are removed in all."
)


def run_ablation(
    configs: Sequence[str],
    seeds: Sequence[int],
    context: Context,
    *,
    build: Callable[[str, int], RunConfig],
) -> Done:
    """Run every config with every seed, seed by seed; ``build`` makes a config's run.

    Raises:
        DinomalyHDError: As ``run_comparison``.
    """
    members = [member(config, build(config, seed)) for seed in seeds for config in configs]
    title = f"Ablation of {len(configs)} configs, seeds {', '.join(map(str, seeds))}"
    return run_comparison(members, context, kind="ablation", question=Question(title, QUESTION))
