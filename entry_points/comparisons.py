"""What the entry points of comparisons share: common values for all members, configs and seeds as lists."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dinomaly_hd.flag_texts import AUTO, HELP, OPTIONS, Option
from dinomaly_hd.flags import common_defaults, parse, preset_name, resolve_config, whole_numbers
from entry_points.common import context_of, repeating_command

if TYPE_CHECKING:
    from dinomaly_hd.config import RunConfig
    from dinomaly_hd.runs.context import Context
    from dinomaly_hd.training.guards import SignalGuard

PER_MEMBER = ("seed", "class_token", "stop_step", "start_from", "train_domains")
"""Values of a run that a comparison sets for each member."""
SEEDS = Option("42", "comma-separated; the final comparison's five: 42,43,44,123,456")
MEMBERS = {"maps_per_group": "2"}
"""Defaults that differ from a single run's: a comparison draws fewer anomaly maps of each member."""


CONFIG = Option("D", "what is trained: a config of the ablation or a variant, e.g. A0 or F:q_percent=1")
Build = Callable[[str, int, Mapping[str, str]], "RunConfig"]
Resolve = Callable[[str, Mapping[str, str]], "RunConfig"]


class Prepared(NamedTuple):
    """What a comparison runs on.

    ``build`` makes the run of a text, a seed and the member's own values, which go over ``common``, the
    user's flags; ``seeds`` is empty where "auto" leaves them to the members.
    """

    build: "Build"
    seeds: tuple[int, ...]
    context: "Context"
    switches: dict[str, str]
    common: dict[str, str]


def defaults_of(switches: Mapping[str, Option], *, without: Sequence[str] = ()) -> dict[str, str]:
    """Return name -> default of every flag of a comparison's entry point."""
    own = {name: option.default for name, option in {**OPTIONS, **switches}.items()}
    common = common_defaults(without=[*PER_MEMBER, *without])
    return {**own, **common, **{name: value for name, value in MEMBERS.items() if name in common}}


def prepare_variants(
    entry_point: str,
    argv: Sequence[str],
    guard: "SignalGuard",
    *,
    doc: str | None,
    switches: Mapping[str, Option],
    without: Sequence[str] = (),
) -> Prepared:
    """Prepare a comparison of configs of Dinomaly, whose members differ in the values ``without``.

    Raises:
        ConfigError: A flag or value is wrong.
    """
    defaults = defaults_of(switches, without=without)
    return prepare(
        entry_point,
        argv,
        guard,
        doc=doc,
        switches=switches,
        resolve=lambda text, values: resolve_config(text, {**MEMBERS, **values}),
        defaults=defaults,
        instead={"seed": "seeds"},
    )


def prepare(
    entry_point: str,
    argv: Sequence[str],
    guard: "SignalGuard",
    *,
    doc: str | None,
    switches: Mapping[str, Option],
    resolve: Resolve,
    defaults: Mapping[str, str],
    instead: Mapping[str, str],
) -> Prepared:
    """Turn the flags of a comparison into what makes its members.

    Args:
        entry_point: Its name.
        argv: Flags.
        guard: Of the process.
        doc: Description for ``--help``.
        switches: Flags of its own; ``seeds`` is one of them.
        resolve: Makes a run of a text and values.
        defaults: Of every flag.
        instead: What stands for flags of other entry points.

    Raises:
        ConfigError: A flag or value is wrong.
    """
    texts = {**HELP, **{name: option.help for name, option in {**OPTIONS, **switches}.items()}}
    accepted = {name: texts[name] for name in defaults}
    given = parse(entry_point, argv, accepted=accepted, doc=doc or "", instead=instead)
    chosen = {name: given.get(name, option.default) for name, option in switches.items()}
    common = {n: value for n, value in given.items() if n not in switches and value != AUTO}
    command = repeating_command(
        entry_point,
        {**given, "seeds": chosen["seeds"]},
        preset=preset_name(given.get("preset", AUTO)),
        defaults=defaults,
    )

    def build(config: str, seed: int, values: Mapping[str, str]) -> "RunConfig":
        return resolve(config, {**common, **values, "seed": str(seed)})

    context = context_of(given, guard, entry_point=entry_point, command=command)
    seeds = () if chosen["seeds"] == AUTO else whole_numbers("seeds", chosen["seeds"])
    return Prepared(build, seeds, context, chosen, common)
