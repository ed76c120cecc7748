"""Unified training, then one domain's fine-tuning from its weights: gain there, forgetting elsewhere."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from dinomaly_hd.config import RunConfig, with_values
from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.experiments.comparison import Done, Member, member, run_comparison
from dinomaly_hd.runs.context import Context
from dinomaly_hd.experiments.members import Joined, joined
from dinomaly_hd.experiments.reporting import Question
from dinomaly_hd.experiments.run import Outcome

UNIFIED, OWN = "unified", "fine-tuned, own domain"
QUESTION = Question(
    "Fine-tuning one domain after unified training",
    "What does a domain gain when the unified model is trained on for a while on this domain alone, and what "
    f'do the others lose? Row "{OWN}" has each domain from the model that was fine-tuned on it: its '
    'difference to the unified model is the gain. The rows "fine-tuned on X" show one model each on all '
    "domains: what they lose elsewhere is the forgetting.",
    compared=("train_domains", "max_steps", "learning_rate", "warmup_steps"),
    reference=UNIFIED,
)


class Tuning(NamedTuple):
    """Optimizer steps of a fine-tuning and its learning rate."""

    steps: int
    learning_rate: float

    @classmethod
    def parse(cls, *, steps: str, learning_rate: str) -> "Tuning":
        """Return the values of two flags.

        Raises:
            ConfigError: A number is missing or not above 0.
        """
        if not steps.isdecimal() or int(steps) == 0:
            raise ConfigError(f"finetune_steps={steps!r}: expected a whole number, 1 or more")
        try:
            rate = float(learning_rate)
        except ValueError:
            rate = 0.0
        if not 0 < rate < 1:
            raise ConfigError(f"finetune_learning_rate={learning_rate!r}: expected a number above 0, below 1")
        return cls(int(steps), rate)

    def values(self) -> dict[str, Any]:
        """Return the training values of a run that is fine-tuned: a tenth warm-up, cosine to a tenth."""
        return {
            "max_steps": self.steps,
            "learning_rate": self.learning_rate,
            "warmup_steps": self.steps // 10,
        }


def run_finetune(
    runs: Sequence[RunConfig], context: Context, *, tuning: Tuning, domains: Sequence[str] | None
) -> Done:
    """Train every run on all its domains, then fine-tune each on each domain alone.

    Args:
        runs: Alike but for their seeds.
        context: Surroundings.
        tuning: Steps and rate of the fine-tunings.
        domains: To fine-tune on; None for all.

    Raises:
        ConfigError: No domain, one twice, or one that is not among the runs'.
        DinomalyHDError: As ``run_comparison``.
    """
    known = runs[0].data.domain_names
    chosen = known if domains is None else tuple(domains)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ConfigError(f"finetune_domains: expected one or more of {', '.join(known)}, each once")
    for domain in chosen:
        if domain not in known:
            raise ConfigError(f"finetune_domains: {domain!r} is not trained on.{nearest(domain, known)}")

    def then(outcomes: dict[Member, Outcome]) -> list[Member]:
        return [
            member(
                f"fine-tuned on {domain}",
                with_values(
                    unified.run,
                    {**tuning.values(), "train_domains": domain, "start_from": str(outcome.folder)},
                ),
            )
            for unified, outcome in outcomes.items()
            for domain in chosen
        ]

    return run_comparison(
        [member(UNIFIED, run) for run in runs],
        context,
        kind="finetune",
        question=QUESTION,
        gather=_with_own_domains,
        then=then,
        detail=f"{tuning} {chosen}",
    )


def _with_own_domains(members: list[MemberRun]) -> Joined:
    """Put in, after the unified runs, each seed's own domains as one run; named where a domain is missing."""
    unified = [one for one in members if one.label == UNIFIED]
    tuned = [one for one in members if one.label != UNIFIED]
    joint, lacking = [], {}
    for start in unified:
        parts = [one for one in tuned if one.seed == start.seed]
        if len(parts) == len(start.result["domains"]):
            joint.append(joined(parts, label=OWN, data_digest=start.result["data_digest"]))
        elif parts:
            lacking[f"{OWN}, seed {start.seed}"] = "not every domain has a finished fine-tuning"
    return Joined([*unified, *joint, *tuned], lacking)
