"""Multi-class protocol: one model for all domains, one model a domain, and the two compared by domain."""

from collections.abc import Sequence

from dinomaly_hd.config import ALL_DOMAINS, RunConfig, with_values
from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.experiments.comparison import Member, run_comparison
from dinomaly_hd.runs.context import Context
from dinomaly_hd.experiments.members import SINGLE, UNIFIED, join_single_domains
from dinomaly_hd.experiments.reporting import Question
from dinomaly_hd.experiments.run import execute

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
        ConfigError: Unknown mode, or domains to train on that its single-domain models have no use for.
        DinomalyHDError: As ``run_comparison``.
    """
    if mode not in MODES:
        raise ConfigError(f"mode={mode!r}: unknown.{nearest(mode, MODES)}")
    if mode == "multiclass" and len(seeds) == 1:
        execute(with_values(run, {"seed": seeds[0]}), context)
        return
    unified, single = MODES[mode]
    if single and run.data.train_domains != ALL_DOMAINS:
        raise ConfigError(
            f"train_domains={run.data.train_domains}: mode={mode} trains a model on each domain; leave it out"
        )
    members = []
    for seed in seeds:
        seeded, suffix = with_values(run, {"seed": seed}), f"_seed{seed}" if len(seeds) > 1 else ""
        members += [Member(UNIFIED, seeded, f"{UNIFIED}{suffix}")] if unified else []
        for domain in run.data.domain_names if single else ():
            own = with_values(seeded, {"domains": domain})
            members.append(Member(SINGLE, own, f"{SINGLE}_{domain}{suffix}"))
    question = QUESTION if mode == "compare" else QUESTION._replace(reference=None)
    run_comparison(members, context, kind=mode, question=question, gather=join_single_domains)
