"""What the entry points of single domains and transfer share: any model family, or a condition of a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dinomaly_hd.config.base import doc, names_in
from dinomaly_hd.config.conditions_file import Condition, read_conditions, without_prefix
from dinomaly_hd.config.presets import MODELS, Fields, any_of
from dinomaly_hd.config.resolve import Asked, Command, Names, Numbers, OrAuto, resolve_model
from dinomaly_hd.config.run import ALL_DOMAINS, SIMULATED
from dinomaly_hd.errors import ConfigError, nearest
from entry_points.common import MEMBERS, Main, RunOptions, Start, entry_point

if TYPE_CHECKING:
    from dinomaly_hd.experiments.protocols import Trial

DEFAULT_SEED, NO_FILE = 42, "none"
INSTEAD = {"seed": "seeds", "train_domains": "source_domain", "variant": "model_type"}
PER_TRIAL = ("seed", "domains", "train_domains", "stop_step", "start_from", "use_topk")
"""Values of a run that come from the trial."""


class ConditionOptions(RunOptions):
    conditions_file: str = doc(NO_FILE, "JSON or YAML with conditions, which then say models and domains")
    condition: OrAuto[Names] = doc(None, "names of conditions in the file; auto: all of them")
    seeds: OrAuto[Numbers] = doc(None, "comma-separated; auto: the condition's or 42; five: 42,43,44,123,456")


class FamilyOptions(ConditionOptions):
    model_type: Names = doc(
        ("dinomaly",),
        "dinomaly, patchcore, draem, draem_sevnet, row_evidence, trivial, or a variant; several are compared "
        "with the first, changes behind colons: patchcore,patchcore:context=2,draem:fault_source=band",
    )
    source_domain: Names = doc(("A",), "the domain trained on; several, or all, are trained one by one")


class TransferOptions(FamilyOptions):
    domains: Names = doc(("A", "B", "C", "D"), "all domains there are")
    target_domains: str = doc(ALL_DOMAINS, "domains that are tested beside the source; all: the other ones")


Family = TypeVar("Family", bound=FamilyOptions)


def single_source(
    name: str, doc: str | None, options: type[Family], **instead: str
) -> tuple[Command[Family], Main]:
    """Return command and main function of an entry point that trains any family on single domains."""
    return entry_point(name, doc, options, run_trials, runs=family_fields, instead={**INSTEAD, **instead})


def run_trials(start: Start[FamilyOptions]) -> None:
    """Run the trials that flags ask for, tested on their own domains or, with targets, on those too."""
    chosen, context = trials_of(start.asked), start.context()
    from dinomaly_hd.experiments import protocols

    with_targets = isinstance(start.options, TransferOptions)
    (protocols.run_multi_domain if with_targets else protocols.run_single_domain)(chosen, context)


def family_fields() -> Fields:
    """Return what an entry point of any family takes: whatever one has, and the trial does not say."""
    return any_of(MODELS, without=PER_TRIAL)


def trials_of(asked: Asked[FamilyOptions]) -> "list[Trial]":
    """Return the trials that flags ask for: models x sources x seeds, or the conditions of a file."""
    options = asked.options
    if options.conditions_file in (NO_FILE, ""):
        if options.condition is not None:
            raise ConfigError(
                f"condition={','.join(options.condition)}: give the conditions_file that it stands in"
            )
        return _from_flags(asked)
    for name in ("model_type", "source_domain", "domains", "target_domains"):
        if name in asked.given:
            raise ConfigError(f"{name} and conditions_file: the condition says it; leave one out")
    conditions = chosen_conditions(options)
    targets = isinstance(options, TransferOptions)
    for one in conditions:
        if one.source_domain is None or bool(one.target_domains) != targets:
            wanted = "source_domain and target_domains" if targets else "source_domain and no target_domains"
            other = "single_domain" if targets else "multi_domain"
            raise ConfigError(f"condition {one.name}: expected {wanted}; for others there is {other}")
    if len({(one.source_domain, one.target_domains) for one in conditions}) > 1:
        raise ConfigError(
            f"condition={','.join(one.name for one in conditions)}: they have different domains and cannot "
            "be compared; name conditions of one source"
        )
    return trials_of_conditions(conditions, asked)


def _from_flags(asked: Asked[FamilyOptions]) -> "list[Trial]":
    options, seeds = asked.options, asked.options.seeds or (DEFAULT_SEED,)
    transfer = options if isinstance(options, TransferOptions) else None
    every = _every(asked)
    sources = every if options.source_domain == (ALL_DOMAINS,) else _short(options.source_domain, every)
    if "source_domain" not in asked.given and not set(sources) <= set(every):
        sources = every[:1]  # there is no A
    own = {
        source: _pair(source, transfer.target_domains, every) if transfer else {"domains": source}
        for source in sources
    }
    if transfer and len({pair["domains"] for pair in own.values()}) > 1:
        raise ConfigError(
            f"source_domain={','.join(sources)}: several sources are compared on all domains; leave "
            "target_domains out, or give one source"
        )
    common = MEMBERS if len(options.model_type) * len(sources) * len(seeds) > 1 else {}
    return [
        _trial(model, model, source, seed, {**common, **asked.values, **own[source]})
        for seed in seeds
        for model in options.model_type
        for source in sources
    ]


def _every(asked: Asked[FamilyOptions]) -> tuple[str, ...]:
    """Return all domains: those given, else the usual four, else those that the data root holds."""
    options, root = asked.options, asked.values.get("data_root", SIMULATED)
    usual = options.domains if isinstance(options, TransferOptions) else TransferOptions().domains
    if root == SIMULATED or "domains" in asked.given:
        return usual
    from dinomaly_hd.data.tree import domains_in

    there = domains_in(Path(root).expanduser())
    return usual if not there or set(usual) <= set(there) else there


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


def chosen_conditions(options: ConditionOptions) -> list[Condition]:
    """Return the conditions of ``conditions_file`` that ``condition`` names, in that order."""
    known = {one.name: one for one in read_conditions(Path(options.conditions_file))}
    for name in options.condition or ():
        if name not in known:
            raise ConfigError(f"condition={name!r}: not in {options.conditions_file}.{nearest(name, known)}")
    return [known[name] for name in options.condition or known]


def trials_of_conditions(conditions: Sequence[Condition], asked: Asked[ConditionOptions]) -> "list[Trial]":
    """Return conditions x seeds; the user's flags go over what a condition says."""
    seeds, given = asked.options.seeds, asked.values
    trials = []
    for one in conditions:
        values = {**MEMBERS, **one.values} if len(conditions) * len(seeds or "1") > 1 else dict(one.values)
        # Steps and epochs are two ways to say one thing, of which the user's wins.
        if "max_steps" in given:
            values.pop("max_epochs", None)
        if given.get("max_epochs", "0") != "0":
            values.pop("max_steps", None)
        model = values.pop("variant", one.model_type)
        own_seeds = seeds or (int(values.get("seed", DEFAULT_SEED)),)
        trials += [
            _trial(one.name, model, str(one.source_domain), seed, {**values, **given}) for seed in own_seeds
        ]
    return trials


def _short(names: Sequence[str], every: Sequence[str]) -> tuple[str, ...]:
    """Return names as they are called in ``every``, where domain_A may be A."""
    return tuple(name if name in every else without_prefix(name) for name in names)


def _trial(label: str, model: str, source: str, seed: int, values: Mapping[str, str]) -> "Trial":
    from dinomaly_hd.experiments.protocols import Trial

    return Trial(label, source, resolve_model(model, {**values, "seed": str(seed)}))
