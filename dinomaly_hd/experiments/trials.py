"""Which runs single_domain, multi_domain and suite are asked for: conditions, of flags or a file, x seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dinomaly_hd.config.base import names_in
from dinomaly_hd.config.conditions_file import Condition, read_conditions, without_prefix
from dinomaly_hd.config.resolve import FIRST_SEED, MEMBERS, resolve_model
from dinomaly_hd.config.run import ALL_DOMAINS, RunConfig
from dinomaly_hd.errors import ConfigError, nearest


class Trial(NamedTuple):
    """One model on one source domain with one seed."""

    model: str
    source: str
    run: RunConfig


def trials_of(
    conditions: Sequence[Condition], seeds: Sequence[int] | None, given: Mapping[str, str]
) -> list[Trial]:
    """Return a run of each condition with each seed, else its own; what is given goes over what it says."""
    common = MEMBERS if len(conditions) * len(seeds or "1") > 1 else {}
    trials = []
    for seed in seeds or (None,):
        for one in conditions:
            values = {**common, "seed": str(FIRST_SEED), **one.values}
            # Steps and epochs are two ways to say one thing, of which the user's wins.
            if "max_steps" in given:
                values.pop("max_epochs", None)
            if given.get("max_epochs", "0") != "0":
                values.pop("max_steps", None)
            model = values.pop("variant", one.model_type)
            values |= {**given, **({} if seed is None else {"seed": str(seed)})}
            trials.append(Trial(one.name, str(one.source_domain), resolve_model(model, values)))
    return trials


def conditions_of_file(path: Path, names: Sequence[str] | None) -> list[Condition]:
    """Return the conditions of a file that have these names, in that order, or all of them."""
    known = {one.name: one for one in read_conditions(path)}
    for name in names or ():
        if name not in known:
            raise ConfigError(f"condition={name!r}: not in {path}.{nearest(name, known)}")
    return [known[name] for name in names or known]


def check_comparable(conditions: Sequence[Condition], *, with_targets: bool) -> None:
    """Refuse conditions that have no targets, or have some, or that differ in their domains."""
    for one in conditions:
        if one.source_domain is None or bool(one.target_domains) != with_targets:
            wanted = f"source_domain and {'' if with_targets else 'no '}target_domains"
            other = "single_domain" if with_targets else "multi_domain"
            raise ConfigError(f"condition {one.name}: expected {wanted}; for others there is {other}")
    if len({(one.source_domain, one.target_domains) for one in conditions}) > 1:
        raise ConfigError(
            f"condition={','.join(one.name for one in conditions)}: they have different domains and cannot "
            "be compared; name conditions of one source"
        )


def conditions_of_flags(
    models: Sequence[str], sources: Sequence[str], every: Sequence[str], *, targets: str | None
) -> list[Condition]:
    """Return models x sources, tested on their own domains or, beside those, on ``targets`` of ``every``."""
    sources = every if tuple(sources) == (ALL_DOMAINS,) else _short(sources, every)
    own = {
        source: {"domains": source} if targets is None else _pair(source, targets, every)
        for source in sources
    }
    if targets is not None and len({pair["domains"] for pair in own.values()}) > 1:
        raise ConfigError(
            f"source_domain={','.join(sources)}: several sources are compared on all domains; leave "
            "target_domains out, or give one source"
        )
    return [Condition(model, "", model, source, (), own[source]) for model in models for source in sources]


def _pair(source: str, text: str, every: Sequence[str]) -> dict[str, str]:
    """Return the values of a run that is trained on ``source`` and tested on it and its targets."""
    others = tuple(name for name in every if name != source)
    targets = others if text == ALL_DOMAINS else _short(names_in(text), every)
    for name in (source, *targets):
        if name not in every:
            raise ConfigError(f"{name!r} is not one of domains={','.join(every)}.{nearest(name, every)}")
    if source in targets or not targets:
        raise ConfigError(f"target_domains={text!r}: expected one or more other domains than {source}")
    return {"domains": ",".join(n for n in every if n == source or n in targets), "train_domains": source}


def _short(names: Sequence[str], every: Sequence[str]) -> tuple[str, ...]:
    """Return names as they are called in ``every``, where domain_A may be A."""
    return tuple(name if name in every else without_prefix(name) for name in names)
