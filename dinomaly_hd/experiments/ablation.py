"""Ablation: configs x seeds on equal terms, all differences to the first config."""

from collections.abc import Callable, Sequence

from dinomaly_hd.config import RunConfig
from dinomaly_hd.experiments.comparison import Done, member, run_comparison
from dinomaly_hd.runs.context import Context
from dinomaly_hd.experiments.members_as_jobs import as_jobs, check_for_jobs
from dinomaly_hd.experiments.reporting import Question
from dinomaly_hd.jobs import ONE_SLOT, Slots

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
    slots: Slots = ONE_SLOT,
) -> Done:
    """Run every config with every seed, seed by seed; ``build`` makes a config's run.

    One slot runs them one after another in this process, more as jobs that share the machine's GPUs or cores.

    Raises:
        DinomalyHDError: As ``run_comparison``.
    """
    members = [member(config, build(config, seed)) for seed in seeds for config in configs]
    title = f"Ablation of {len(configs)} configs, seeds {', '.join(map(str, seeds))}"
    run_members = None
    if slots != ONE_SLOT:
        run_members = as_jobs(check_for_jobs(members, context, slots=slots), slots=slots)
    return run_comparison(
        members, context, kind="ablation", question=Question(title, QUESTION), run_members=run_members
    )
