"""Multi-class protocol: one model for all domains, one model a domain, and the two compared by domain."""

from collections.abc import Sequence

import pandas as pd

from dinomaly_hd.config import RunConfig, with_values
from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.experiments.comparison import Member, run_comparison
from dinomaly_hd.experiments.context import Context
from dinomaly_hd.experiments.members import read_member
from dinomaly_hd.experiments.reporting import Question
from dinomaly_hd.experiments.training_run import Outcome, execute

UNIFIED, SINGLE = "multiclass_unified", "singleclass"
MODES = {"multiclass": (True, False), "singleclass": (False, True), "compare": (True, True)}
QUESTION = Question(
    "One model for all domains, or one a domain",
    "Does training on all domains help a domain, the hard one first of all? Both have the same settings and "
    "number of steps, so a single-domain model sees its images more often.",
    compared=("domains",),
    reference=SINGLE,
)


def run_mode(run: RunConfig, context: Context, *, mode: str, seeds: Sequence[int]) -> None:
    """Run ``multiclass``, ``singleclass`` or ``compare``; with several seeds always as a comparison.

    Raises:
        ConfigError: Unknown mode.
        DinomalyHDError: As ``run_comparison``.
    """
    if mode not in MODES:
        raise ConfigError(f"mode={mode!r}: unknown.{nearest(mode, MODES)}")
    if mode == "multiclass" and len(seeds) == 1:
        execute(with_values(run, {"seed": seeds[0]}), context)
        return
    unified, single = MODES[mode]
    members = []
    for seed in seeds:
        seeded, suffix = with_values(run, {"seed": seed}), f"_seed{seed}" if len(seeds) > 1 else ""
        members += [Member(UNIFIED, seeded, f"{UNIFIED}{suffix}")] if unified else []
        for domain in run.data.domain_names if single else ():
            own = with_values(seeded, {"domains": domain})
            members.append(Member(SINGLE, own, f"{SINGLE}_{domain}{suffix}"))
    question = QUESTION if mode == "compare" else QUESTION._replace(reference=None)
    run_comparison(members, context, kind=mode, question=question, gather=one_run_a_label)


def one_run_a_label(outcomes: dict[Member, Outcome]) -> list[MemberRun]:
    """Return the unified runs as they are and the single-domain runs of a seed as one.

    The joint run has every domain's results from the model that was trained on it. Its data digest is the
    unified run's, if there is one: that the test images are the same, the comparison checks by itself.
    """
    runs = {member: read_member(outcome.folder, label=member.label) for member, outcome in outcomes.items()}
    unified = {member.run.seed: runs[member] for member in runs if member.label == UNIFIED}
    joint = []
    for seed in dict.fromkeys(member.run.seed for member in runs):
        parts = [runs[member] for member in runs if member.label == SINGLE and member.run.seed == seed]
        if parts:
            joint.append(_joined(parts, unified.get(seed)))
    return [*unified.values(), *joint]


def _joined(parts: Sequence[MemberRun], unified: MemberRun | None) -> MemberRun:
    first = parts[0].result
    digests = ["+".join(str(part.result["data_digest"])[:16] for part in parts)]
    result = {
        **first,
        "domains": [domain for part in parts for domain in part.result["domains"]],
        "per_domain_metrics": {
            domain: block for part in parts for domain, block in part.result["per_domain_metrics"].items()
        },
        "data_digest": digests[0] if unified is None else unified.result["data_digest"],
    }
    name = ", ".join(part.name for part in parts)
    return MemberRun(SINGLE, parts[0].seed, name, result, pd.concat([part.scores for part in parts]))
