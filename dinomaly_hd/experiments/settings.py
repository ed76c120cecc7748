"""Comparisons of one setting at all else equal: encoders, and numbers of steps of one training."""

from collections.abc import Callable, Sequence

from dinomaly_hd.config import RunConfig
from dinomaly_hd.experiments.comparison import Done, member, run_comparison
from dinomaly_hd.runs.context import Context
from dinomaly_hd.experiments.reporting import Question

ENCODERS = Question(
    "Encoders at equal settings",
    "Which frozen encoder serves Dinomaly best here? All else is equal: size of the images, steps, seeds.",
    compared=("encoder", "encoder_digest"),
)
STEPS = Question(
    "One training, evaluated at several numbers of steps",
    "How long should one train? All rows of a seed are points of one training, whose learning rate falls "
    "until the last of them: an earlier point is not what a training of that length would have reached.",
    compared=("stop_step",),
)


def run_encoders(
    encoders: Sequence[str], seeds: Sequence[int], context: Context, *, build: Callable[[str, int], RunConfig]
) -> Done:
    """Train with every encoder and seed; all are compared with the first encoder.

    Raises:
        DinomalyHDError: As ``run_comparison``.
    """
    members = [member(encoder, build(encoder, seed)) for seed in seeds for encoder in encoders]
    return run_comparison(members, context, kind="encoders", question=ENCODERS)


def run_steps(
    steps: Sequence[int], seeds: Sequence[int], context: Context, *, build: Callable[[int, int], RunConfig]
) -> Done:
    """Train every seed once to the last step and evaluate it at each; ``build`` makes the run of a step.

    Each evaluation is a member that goes on where the one before it stopped.

    Raises:
        DinomalyHDError: As ``run_comparison``.
    """
    members = [member(f"step {step}", build(step, seed)) for seed in seeds for step in sorted(steps)]
    return run_comparison(members, context, kind="steps", question=STEPS)
