"""Finished runs as members of a comparison: read, and joined where each is a part of one member."""

from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dinomaly_hd.config.base import names_in
from dinomaly_hd.config.run import ALL_DOMAINS
from dinomaly_hd.config.variants import config_label
from dinomaly_hd.errors import ConfigError, DataError
from dinomaly_hd.evaluation.comparison_members import MemberRun, leaves
from dinomaly_hd.runs.folder import RESULTS, SCORES, read_results
from dinomaly_hd.trivial import PREFIX, TRIVIAL

UNIFIED, SINGLE = "multiclass_unified", "singleclass"
BETWEEN_RUNS = ", "  # between the names of the runs that a joint member is made of
Joined = tuple[list[MemberRun], dict[str, str]]  # members, and by title why another was left out


def read_member(folder: Path, *, label: str | None = None, name: str | None = None) -> MemberRun:
    """Read a finished run, by default under its own label, named by its folder; else a DataError."""
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
    label = config_label(label or str(result.get("label") or result.get("variant")))
    return MemberRun(label, int(result["seed"]), name or str(folder), result, pd.concat(tables), (folder,))


def on_scored_domains(members: Sequence[MemberRun]) -> Joined:
    """Return the members without the domains that one of them could not score, each named with who and why.

    Means of members over different domains would be no means of one thing.
    """
    failed: dict[str, str] = {}
    for member in members:
        for domain, why in member.result.get("transfer", {}).get("missing_targets", {}).items():
            if domain not in member.result["per_domain_metrics"]:
                failed.setdefault(domain, f"left out for all: not scored by {member.title}: {why}")
    kept = [[name for name in one.result["per_domain_metrics"] if name not in failed] for one in members]
    return [_only(one, names) for one, names in zip(members, kept, strict=True)], failed


def _only(member: MemberRun, domains: Sequence[str]) -> MemberRun:
    blocks = {name: member.result["per_domain_metrics"][name] for name in domains}
    scores = member.scores[member.scores["domain"].isin(domains)]
    return member._replace(result={**member.result, "per_domain_metrics": blocks}, scores=scores)


def joined(parts: Sequence[MemberRun], *, label: str, data_digest: str | None) -> MemberRun:
    """Return runs of one seed as one: every domain's results are those of the run that was trained on it.

    ``data_digest`` is that of all data together, where they are another run's; None joins the parts'.
    """
    own = []
    for part in parts:
        trained = str(leaves(part.result.get("config", {})).get("train_domains", ALL_DOMAINS))
        names = names_in(trained)  # a config may shorten domain_A to A
        tested = part.result["domains"]
        mine = [name for name in tested if name in names or name.removeprefix("domain_") in names]
        own.append(_only(part, tested if trained == ALL_DOMAINS else mine))
    blocks = {name: block for one in own for name, block in one.result["per_domain_metrics"].items()}
    digests = "+".join(str(part.result.get("data_digest"))[:16] for part in parts)
    result = {"domains": list(blocks), "per_domain_metrics": blocks, "data_digest": data_digest or digests}
    name, scores = BETWEEN_RUNS.join(part.name for part in parts), pd.concat(one.scores for one in own)
    folders = tuple(folder for part in parts for folder in part.folders)
    return MemberRun(label, parts[0].seed, name, {**parts[0].result, **result}, scores, folders)


def join_domains(members: Sequence[MemberRun], labels: Container[str] = (SINGLE,)) -> Joined:
    """Join the runs of one seed that have one of these labels; all others stay as they are.

    One that lacks a domain is left out and named: means over different domains are no means of one thing. Two
    runs of a domain and seed are a ConfigError.
    """
    others = [member for member in members if member.label not in labels]
    groups: dict[tuple[str, int], list[MemberRun]] = {}
    for member in members:
        if member.label in labels:
            groups.setdefault((member.label, member.seed), []).append(member)
    unified = {member.seed: member for member in others if member.label == UNIFIED}
    whole = [one for group in groups.values() for one in group] + list(unified.values())
    every = dict.fromkeys(domain for one in whole for domain in one.result["domains"])
    joint, failed = [], {}
    for (label, seed), parts in groups.items():
        have = [domain for part in parts for domain in part.result["domains"]]
        lacking = [domain for domain in every if domain not in have]
        if lacking:
            failed[f"{label}, seed {seed}"] = f"no finished run of {', '.join(lacking)}; the others left out"
            continue
        if len(parts) == 1:
            joint += parts
            continue
        for domain in have:
            first, *more = [part.name for part in parts if domain in part.result["domains"]]
            if more:
                raise ConfigError(
                    f"{label}, seed {seed}: {domain} has two runs, {first} and {more[0]}; leave one out"
                )
        joint.append(joined(parts, label=label, data_digest=_common_digest(parts, unified.get(seed))))
    return [*others, *joint], failed


def _common_digest(parts: Sequence[MemberRun], unified: MemberRun | None) -> str | None:
    """Return the unified run's digest if the parts were tested on its images by the trivial scores, which
    need no model; else None.
    """
    if unified is None:
        return None
    columns = [PREFIX + name for name in TRIVIAL if PREFIX + name in unified.scores]
    theirs = pd.concat([part.scores for part in parts]).set_index("path")
    own = unified.scores.set_index("path")
    if not columns or not set(columns) <= set(theirs.columns) or set(own.index) != set(theirs.index):
        return None
    same = np.allclose(own[columns].to_numpy(), theirs.loc[own.index, columns].to_numpy(), rtol=1e-6, atol=0)
    return str(unified.result.get("data_digest")) if same else None
