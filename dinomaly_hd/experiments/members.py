"""Finished runs as members of a comparison: read, named, and joined where each is a part of one member."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dinomaly_hd.config import ALL_DOMAINS, names_in
from dinomaly_hd.errors import ConfigError, DataError, nearest
from dinomaly_hd.evaluation.comparison_members import MemberRun, leaves
from dinomaly_hd.runs.folder import RESULTS, read_results
from dinomaly_hd.trivial import PREFIX, TRIVIAL

SCORES = "scores"
UNIFIED, SINGLE = "multiclass_unified", "singleclass"
BY_CONFIG, BY_VARIANT = "config", "variant"
BETWEEN_RUNS = ", "
"""Between the names of the runs that a joint member is made of."""


class Joined(NamedTuple):
    """Members, those of single domains as one a seed, and why a joint member was left out."""

    members: list[MemberRun]
    failed: dict[str, str]


def read_member(folder: Path, *, label: str | None = None, name: str | None = None) -> MemberRun:
    """Read a finished run.

    Args:
        folder: With results.json and scores/.
        label: What it is called in the comparison; None takes what the run was called in its own.
        name: For messages; None takes the folder.

    Raises:
        DataError: The folder holds no finished run.
    """
    result = read_results(folder)
    if result is None or not {"seed", "domains", "per_domain_metrics"} <= result.keys():
        raise DataError(f"{name or folder}: holds no readable {RESULTS}; the run did not finish")
    tables = []
    for domain in result["per_domain_metrics"]:
        path = folder / SCORES / f"{domain}.csv"
        try:
            tables.append(pd.read_csv(path).assign(domain=domain))
        except (OSError, ValueError) as error:
            raise DataError(f"{name or folder}: {path.name} cannot be read: {error}") from error
    label = label or str(result.get("label") or result.get("variant"))
    return MemberRun(label, int(result["seed"]), name or str(folder), result, pd.concat(tables))


def on_scored_domains(members: Sequence[MemberRun]) -> Joined:
    """Return the members without the domains that one of them could not score, each named with who and why.

    Means of members over different domains would be no means of one thing.
    """
    failed: dict[str, str] = {}
    for member in members:
        for domain, why in member.result.get("transfer", {}).get("missing_targets", {}).items():
            if domain not in member.result["per_domain_metrics"]:
                failed.setdefault(domain, f"left out for all: not scored by {member.title}: {why}")
    if not failed:
        return Joined(list(members), {})
    return Joined([_without(member, failed) for member in members], failed)


def _without(member: MemberRun, domains: Container[str]) -> MemberRun:
    blocks = member.result["per_domain_metrics"]
    kept = {name: block for name, block in blocks.items() if name not in domains}
    scores = member.scores[member.scores["domain"].isin(list(kept))]
    return member._replace(result={**member.result, "per_domain_metrics": kept}, scores=scores)


def joined(parts: Sequence[MemberRun], *, label: str, data_digest: str | None) -> MemberRun:
    """Return runs of one seed as one: every domain's results are those of the run that was trained on it.

    Args:
        parts: Runs whose training domains do not overlap.
        label: What the joint run is called.
        data_digest: Of all data together, where the caller knows them to be another run's; None puts the
            parts' digests together.
    """
    own = [_trained_domains(part.result) for part in parts]
    digests = "+".join(str(part.result.get("data_digest"))[:16] for part in parts)
    result = {
        **parts[0].result,
        "domains": [domain for domains in own for domain in domains],
        "per_domain_metrics": {
            domain: part.result["per_domain_metrics"][domain]
            for part, domains in zip(parts, own, strict=True)
            for domain in domains
        },
        "data_digest": digests if data_digest is None else data_digest,
    }
    tables = [
        part.scores[part.scores["domain"].isin(domains)] for part, domains in zip(parts, own, strict=True)
    ]
    name = BETWEEN_RUNS.join(part.name for part in parts)
    return MemberRun(label, parts[0].seed, name, result, pd.concat(tables))


def join_single_domains(members: Sequence[MemberRun]) -> Joined:
    """Join the runs called ``singleclass`` of one seed; all others stay as they are.

    A joint run counts as tested on a unified run's data where the two have the same test images by their
    trivial scores, which need no model. One that lacks a domain is left out and named: means over different
    domains are no means of one thing.

    Raises:
        ConfigError: A domain has two runs of one seed; both are named.
    """
    others = [member for member in members if member.label != SINGLE]
    groups: dict[int, list[MemberRun]] = {}
    for member in members:
        if member.label == SINGLE:
            groups.setdefault(member.seed, []).append(member)
    every = dict.fromkeys(domain for parts in groups.values() for domain in _domains(parts))
    every |= dict.fromkeys(domain for one in others if one.label == UNIFIED for domain in _domains([one]))
    joint, failed = [], {}
    for seed, parts in groups.items():
        have = _domains(parts)
        lacking = [domain for domain in every if domain not in have]
        if lacking:
            failed[f"{SINGLE}, seed {seed}"] = f"no finished run of {', '.join(lacking)}; the others left out"
        elif len(parts) == 1:
            joint += parts
        else:
            _check_apart(parts)
            unified = next((o for o in others if (o.label, o.seed) == (UNIFIED, seed)), None)
            joint.append(joined(parts, label=SINGLE, data_digest=_common_digest(parts, unified)))
    return Joined([*others, *joint], failed)


def relabelled(members: Sequence[MemberRun], *, label_by: str) -> list[MemberRun]:
    """Return the members called by their variant, or by a value of their config as in "q_percent=1".

    ``config`` leaves them as they are.

    Raises:
        ConfigError: No run has a value of this name.
    """
    if label_by == BY_CONFIG:
        return list(members)
    if label_by == BY_VARIANT:
        return [member._replace(label=str(member.result.get("variant"))) for member in members]
    values = [leaves(member.result.get("config", {})) for member in members]
    known = {name for own in values for name in own}
    if label_by not in known:
        raise ConfigError(
            f"label_by={label_by!r}: no value of these runs' configs."
            f"{nearest(label_by, [BY_CONFIG, BY_VARIANT, *known])}"
        )
    labels = [
        f"{label_by}={_shown(own[label_by])}" if label_by in own else f"no {label_by}" for own in values
    ]
    return [member._replace(label=label) for member, label in zip(members, labels, strict=True)]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _trained_domains(result: Mapping[str, Any]) -> list[str]:
    """Return those of a result's domains that its run was trained on; a config may shorten domain_A to A."""
    trained = str(leaves(result.get("config", {})).get("train_domains", ALL_DOMAINS))
    names = names_in(trained)
    return [
        domain
        for domain in result["domains"]
        if trained == ALL_DOMAINS or domain in names or domain.removeprefix("domain_") in names
    ]


def _domains(parts: Sequence[MemberRun]) -> list[str]:
    return [domain for part in parts for domain in part.result["domains"]]


def _check_apart(parts: Sequence[MemberRun]) -> None:
    owner: dict[str, MemberRun] = {}
    for part in parts:
        for domain in part.result["domains"]:
            if owner.setdefault(domain, part) is not part:
                raise ConfigError(
                    f"{SINGLE}, seed {part.seed}: {domain} has two runs, {owner[domain].name} and "
                    f"{part.name}; leave one out"
                )


def _common_digest(parts: Sequence[MemberRun], unified: MemberRun | None) -> str | None:
    """Return the unified run's digest if the parts were tested on its images, else None."""
    if unified is None:
        return None
    columns = [PREFIX + name for name in TRIVIAL if PREFIX + name in unified.scores]
    theirs = pd.concat([part.scores for part in parts]).set_index("path")
    own = unified.scores.set_index("path")
    if not columns or not set(columns) <= set(theirs.columns) or set(own.index) != set(theirs.index):
        return None
    same = np.allclose(own[columns].to_numpy(), theirs.loc[own.index, columns].to_numpy(), rtol=1e-6, atol=0)
    return str(unified.result.get("data_digest")) if same else None
