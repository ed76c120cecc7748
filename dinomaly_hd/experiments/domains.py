"""Train on one domain and test on it, or on others too, with any model family."""

from collections.abc import Sequence
from typing import NamedTuple

from dinomaly_hd.config import EncoderConfig, RunConfig, TrainingConfig
from dinomaly_hd.evaluation.comparison_members import MemberRun
from dinomaly_hd.evaluation.comparison_transfer import FROM
from dinomaly_hd.experiments.comparison import (
    Done,
    Gather,
    Member,
    as_they_are,
    member,
    run_comparison,
)
from dinomaly_hd.runs.context import Context
from dinomaly_hd.experiments.members import Joined, joined
from dinomaly_hd.experiments.reporting import Question
from dinomaly_hd.experiments.run import execute

OWN = ("model_type", "variant", "encoder_digest", *EncoderConfig.model_fields, *TrainingConfig.model_fields)
"""Settings in which model families differ by nature."""
SINGLE = Question(
    "Models on single domains",
    "Which model finds the faults of a domain when it has seen only normal images of that domain?",
    compared=OWN,
)
TRANSFER = Question(
    "From one domain to others",
    "How much of what a model finds on the domain it was trained on does it find on others, of which it has "
    "seen no image?",
    compared=(*OWN, "train_domains"),
)


class Trial(NamedTuple):
    """One model on one source domain with one seed."""

    model: str
    source: str
    run: RunConfig


def run_single_domain(trials: Sequence[Trial], context: Context) -> Done | None:
    """Train and test every trial's model on its own domain; several are compared, model by model.

    Several sources of one model and seed count as one member, tested on all their domains.

    Raises:
        DinomalyHDError: As ``run_comparison``.
    """
    many = _several_sources(trials)
    members = [_member(trial, label=trial.model, with_source=many) for trial in trials]
    gather = _join_sources if many else as_they_are
    return _run(members, context, kind="single_domain", question=SINGLE, gather=gather)


def run_multi_domain(trials: Sequence[Trial], context: Context) -> Done | None:
    """Train every trial's model on its source and test it on all its domains; several are compared.

    Raises:
        DinomalyHDError: As ``run_comparison``.
    """
    many = _several_sources(trials)
    members = [
        _member(trial, label=f"{trial.model}{FROM}{trial.source}" if many else trial.model, with_source=False)
        for trial in trials
    ]
    return _run(members, context, kind="multi_domain", question=TRANSFER, gather=as_they_are)


def _several_sources(trials: Sequence[Trial]) -> bool:
    return len({trial.source for trial in trials}) > 1


def _run(
    members: Sequence[Member], context: Context, *, kind: str, question: Question, gather: Gather
) -> Done | None:
    """Run one trial by itself, several as a comparison."""
    if len(members) == 1:
        execute(members[0].run, context)
        return None
    return run_comparison(members, context, kind=kind, question=question, gather=gather)


def _member(trial: Trial, *, label: str, with_source: bool) -> Member:
    own = member(label, trial.run)
    return own._replace(place=f"{own.place}_{trial.source}") if with_source else own


def _join_sources(members: list[MemberRun]) -> Joined:
    """Join the runs of one label and seed; a label that lacks a domain is left out and named."""
    groups: dict[tuple[str, int], list[MemberRun]] = {}
    for one in members:
        groups.setdefault((one.label, one.seed), []).append(one)
    every = {domain for one in members for domain in one.result["domains"]}
    joint, failed = [], {}
    for (label, seed), parts in groups.items():
        lacking = sorted(every - {domain for part in parts for domain in part.result["domains"]})
        if lacking:
            failed[f"{label}, seed {seed}"] = f"no finished run of {', '.join(lacking)}; the others left out"
        else:
            joint.append(joined(parts, label=label, data_digest=None))
    return Joined(joint, failed)
