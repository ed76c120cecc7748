"""What the entry points of single domains and transfer share: any model family, or a condition of a file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dinomaly_hd.config import ALL_DOMAINS, names_in
from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.flag_texts import AUTO, OPTIONS, Option
from dinomaly_hd.flags import family_values, resolve_model
from entry_points import comparisons
from entry_points.comparisons import MEMBERS, Build, prepare

if TYPE_CHECKING:
    from dinomaly_hd.condition_files import Condition
    from dinomaly_hd.experiments.protocols import Trial
    from dinomaly_hd.runs.context import Context
    from dinomaly_hd.training.guards import SignalGuard

DEFAULT_SEED, DEFAULT_DOMAINS = 42, "A,B,C,D"
NO_FILE = "none"
DOMAIN_PREFIX = "domain_"
INSTEAD = {"seed": "seeds", "train_domains": "source_domain", "variant": "model_type"}
PER_TRIAL = ("seed", "domains", "train_domains", "stop_step", "start_from")
"""Values of a run that come from the trial."""
SWITCHES = {
    "model_type": Option(
        "dinomaly",
        "dinomaly, patchcore, draem, draem_sevnet, trivial, or a Dinomaly variant; several are compared with "
        "the first, changes behind colons: patchcore,patchcore:context=2,draem:fault_source=band",
    ),
    "source_domain": Option("A", "the domain trained on; several, or all, are trained one by one"),
    "seeds": Option(AUTO, "comma-separated; auto: the condition's, or 42; five: 42,43,44,123,456"),
    "conditions_file": Option(NO_FILE, "JSON or YAML with conditions, which then say models and domains"),
    "condition": Option(AUTO, "names of conditions in the file; auto: all of them"),
}
TARGETS = {
    "domains": Option(DEFAULT_DOMAINS, "all domains there are"),
    "target_domains": Option(ALL_DOMAINS, "domains that are tested beside the source; all: the other ones"),
}


class Prepared(NamedTuple):
    """The trials that the flags ask for, and their surroundings."""

    trials: "list[Trial]"
    context: "Context"


def defaults_of(switches: Mapping[str, Option]) -> dict[str, str]:
    """Return name -> default of every flag; what a model is made of is left to preset or condition."""
    own = {name: option.default for name, option in {**OPTIONS, **switches}.items()}
    return own | {name: AUTO for name in family_values() if name not in PER_TRIAL}


def prepare_trials(
    entry_point: str,
    argv: Sequence[str],
    guard: "SignalGuard",
    *,
    doc: str | None,
    switches: Mapping[str, Option],
) -> Prepared:
    """Turn flags into trials: models x sources x seeds, or the conditions of a file.

    Raises:
        ConfigError: A flag, value or condition is wrong.
    """
    targets = "target_domains" in switches
    flags = prepare(
        entry_point,
        argv,
        guard,
        doc=doc,
        switches=switches,
        resolve=resolve_model,
        defaults=defaults_of(switches),
        instead={**INSTEAD, **({} if targets else {"domains": "source_domain"})},
    )
    chosen = flags.switches
    if chosen["conditions_file"] in (NO_FILE, ""):
        if chosen["condition"] != AUTO:
            raise ConfigError(f"condition={chosen['condition']}: give the conditions_file that it stands in")
        trials = _from_flags(flags, targets=targets)
    else:
        for name in ("model_type", "source_domain", *(TARGETS if targets else ())):
            if chosen[name] != switches[name].default:
                raise ConfigError(f"{name} and conditions_file: the condition says it; leave one out")
        trials = _from_file(flags, targets=targets)
    return Prepared(trials, flags.context)


def _from_flags(flags: comparisons.Prepared, *, targets: bool) -> "list[Trial]":
    chosen, seeds = flags.switches, flags.seeds or (DEFAULT_SEED,)
    models = names_in(chosen["model_type"])
    every = names_in(chosen.get("domains", DEFAULT_DOMAINS))
    sources = every if chosen["source_domain"] == ALL_DOMAINS else _short(chosen["source_domain"], every)
    for name, values in (("model_type", models), ("source_domain", sources)):
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"{name}={chosen[name]!r}: expected one or more, each once")
    if not targets:
        own = {source: {"domains": source} for source in sources}
    else:
        own = {source: _pair(source, chosen["target_domains"], every) for source in sources}
        if len({pair["domains"] for pair in own.values()}) > 1:
            raise ConfigError(
                f"source_domain={chosen['source_domain']}: several sources are compared on all domains; "
                "leave target_domains out, or give one source"
            )
    common = {} if "maps_per_group" in flags.common else MEMBERS
    count = len(models) * len(sources) * len(seeds)
    return [
        _trial(flags.build, model, model, source, seed, {**(common if count > 1 else {}), **own[source]})
        for seed in seeds
        for model in models
        for source in sources
    ]


def _pair(source: str, text: str, every: Sequence[str]) -> dict[str, str]:
    """Return the values of a run that is trained on ``source`` and tested on it and its targets."""
    targets = tuple(name for name in every if name != source) if text == ALL_DOMAINS else _short(text, every)
    for name in (source, *targets):
        if name not in every:
            raise ConfigError(f"{name!r} is not one of domains={','.join(every)}.{nearest(name, every)}")
    if source in targets or not targets:
        raise ConfigError(f"target_domains={text!r}: expected one or more other domains than {source}")
    tested = [name for name in every if name == source or name in targets]
    return {"domains": ",".join(tested), "train_domains": source}


def _from_file(flags: comparisons.Prepared, *, targets: bool) -> "list[Trial]":
    conditions = chosen_conditions(flags.switches)
    _check_alike(conditions)
    return trials_of(conditions, flags, domains=lambda one: _domains(one, targets=targets))


def chosen_conditions(switches: Mapping[str, str]) -> "list[Condition]":
    """Return the conditions of ``conditions_file`` that ``condition`` names, in that order.

    Raises:
        ConfigError: The file is wrong, or holds no such condition.
    """
    from dinomaly_hd.condition_files import read_conditions

    text = switches["condition"]
    known = {one.name: one for one in read_conditions(Path(switches["conditions_file"]))}
    names = tuple(known) if text == AUTO else names_in(text)
    for name in names:
        if name not in known:
            raise ConfigError(
                f"condition={name!r}: not in {switches['conditions_file']}.{nearest(name, known)}"
            )
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"condition={text!r}: expected one or more, each once")
    return [known[name] for name in names]


def trials_of(
    conditions: "Sequence[Condition]",
    flags: comparisons.Prepared,
    *,
    domains: "Callable[[Condition], Mapping[str, str]]",
) -> "list[Trial]":
    """Return conditions x seeds; the user's flags go over what a condition says.

    Args:
        conditions: Of a file.
        flags: The user's; empty seeds leave them to the conditions.
        domains: Returns the values that a condition's domains become.
    """
    seeds, given, trials = flags.seeds, flags.common, []
    for one in conditions:
        values = {**MEMBERS, **one.values} if len(conditions) * max(1, len(seeds)) > 1 else dict(one.values)
        if "max_steps" in given:
            values.pop("max_epochs", None)
        if given.get("max_epochs", "0") != "0":
            values.pop("max_steps", None)
        model = values.pop("variant", one.model_type)
        values = {**values, **given, **domains(one)}
        own_seeds = seeds or (int(one.values.get("seed", DEFAULT_SEED)),)
        trials += [
            _trial(flags.build, one.name, model, str(one.source_domain), seed, values) for seed in own_seeds
        ]
    return trials


def _domains(one: "Condition", *, targets: bool) -> dict[str, str]:
    """Return the values that a condition's domains become; refused if they are not this entry point's."""
    if one.source_domain is None or bool(one.target_domains) != targets:
        wanted = "source_domain and target_domains" if targets else "source_domain and no target_domains"
        other = "single_domain" if targets else "multi_domain"
        raise ConfigError(f"condition {one.name}: expected {wanted}; for others there is {other}")
    return domains_of(one)


def domains_of(one: "Condition") -> dict[str, str]:
    """Return the values that a condition's domains become: all trained on, one, or one and its targets."""
    if one.source_domain is None:
        return {"domains": one.values["domains"]}
    if not one.target_domains:
        return {"domains": one.source_domain}
    every = sorted({one.source_domain, *one.target_domains})
    return {"domains": ",".join(every), "train_domains": one.source_domain}


def _check_alike(conditions: "Sequence[Condition]") -> None:
    """Refuse conditions that cannot stand in one comparison."""
    domains = {(one.source_domain, one.target_domains) for one in conditions}
    if len(domains) > 1:
        raise ConfigError(
            f"condition={','.join(one.name for one in conditions)}: they have different domains and cannot "
            "be compared; name conditions of one source"
        )


def _short(text: str, every: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a list as they are called in ``every``, where domain_A may be A."""
    names = names_in(text)
    return tuple(name if name in every else name.removeprefix(DOMAIN_PREFIX) for name in names)


def _trial(
    build: Build, label: str, model: str, source: str, seed: int, values: Mapping[str, str]
) -> "Trial":
    from dinomaly_hd.experiments.protocols import Trial

    return Trial(label, source, build(model, seed, values))
