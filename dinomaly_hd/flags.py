"""From ``--name value`` flags to a config: every name known, every value checked, the nearest offered."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from dinomaly_hd.config import (
    NO_ENCODER,
    PARTS,
    EncoderConfig,
    ModelConfig,
    RunConfig,
    flatten,
    names_in,
    with_values,
)
from dinomaly_hd.config.base import Frozen
from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.flag_texts import AUTO, HELP, OPTIONS, Option
from dinomaly_hd.names import has_hidden
from dinomaly_hd.presets import FAMILIES, PRESETS, preset_run
from dinomaly_hd.variants import ABLATION, CONFIG_SETS, VARIANTS, WITH_TOPK, bare_grid

DATA = ("data_root", "simulate_size", "simulate_seed", "domains", "conditions")
NOTHING: Mapping[str, str] = {}
FIXED_IN_COMPARISONS = ("seed", "class_token", *DATA)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


class _Once(argparse.Action):
    """Keeps a value; a second one of the same name would silently win."""

    def __call__(self, _parser: object, namespace: object, values: object, _option: object = None) -> None:
        if hasattr(namespace, self.dest):
            raise ConfigError(f"{self.dest}: given twice; give it once")
        setattr(namespace, self.dest, values)


def parse(
    entry_point: str,
    argv: Sequence[str],
    *,
    accepted: Mapping[str, str],
    doc: str,
    instead: Mapping[str, str] = NOTHING,
) -> dict[str, str]:
    """Return the flags given, as text, under their names (``--row-p .2`` and ``--row_p .2`` alike).

    Args:
        entry_point: Named in ``--help``.
        argv: Arguments after the program's name.
        accepted: Name -> help.
        doc: First lines of ``--help``.
        instead: Names that other entry points take -> what this one has for them.

    Raises:
        ConfigError: Unknown flag (names the nearest), a flag without value or given twice, a value with
            control characters, or a stray word.
    """
    parser = _Parser(
        prog=f"python -m entry_points.{entry_point}",
        description=doc,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for name, text in accepted.items():
        only_flag: dict[str, Any] = {"nargs": "?", "const": "true"} if text.startswith("true") else {}
        spellings = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
        shown = text.replace("%", "%%")
        parser.add_argument(*spellings, dest=name, action=_Once, metavar="VALUE", help=shown, **only_flag)
    given, rest = parser.parse_known_args(list(argv))
    for word in rest:
        name = word.lstrip("-").split("=")[0].replace("-", "_")
        if word.startswith("-") and name[:1].isalpha() and name not in accepted:
            if name in instead:
                raise ConfigError(f"{name}: {entry_point} has no such flag; give {instead[name]}")
            if name in HELP:
                raise ConfigError(_not_of(entry_point, name))
            raise ConfigError(f"unknown flag --{name}.{nearest(name, accepted)}")
        raise ConfigError(f"unexpected word {word!r}; write --name value")
    values = vars(given)
    for name, value in values.items():
        if has_hidden(value):
            raise ConfigError(f"{name}={value!r}: holds control or invisible characters; take them out")
    return values


def parse_options(
    entry_point: str, argv: Sequence[str], *, options: Mapping[str, Option], doc: str | None
) -> dict[str, str]:
    """Return every option's value as text, given or default, for an entry point without a run config.

    Raises:
        ConfigError: As ``parse``, or an option without a default is missing.
    """
    accepted = {name: option.help for name, option in options.items()}
    given = parse(entry_point, argv, accepted=accepted, doc=doc or "")
    values = {name: given.get(name, option.default) for name, option in options.items()}
    for name, value in values.items():
        if not value:
            raise ConfigError(f"--{name} is needed: {options[name].help}")
    return values


def accepted_by(variants: Sequence[str], *, switches: Mapping[str, Option]) -> dict[str, str]:
    """Return name -> help of everything that the entry point of these variants takes."""
    used = {name for variant in variants for name in flatten(preset_run("full", VARIANTS[variant]()))}
    own = {name: text for name, text in HELP.items() if name in used}
    return {**{name: option.help for name, option in {**OPTIONS, **switches}.items()}, **own}


def resolve(variant: str, values: Mapping[str, str]) -> RunConfig:
    """Return the config of a variant under its preset with the given values; ``auto`` leaves the preset's.

    Raises:
        ConfigError: A value breaks its rule, or belongs to another variant.
    """
    values = dict(values)
    if as_bool("use_topk", values.pop("use_topk", "false")):
        variant = WITH_TOPK[variant]
    return _resolve(VARIANTS[variant](), values, name=variant)


def resolve_family(model_type: str, values: Mapping[str, str]) -> RunConfig:
    """Return the config of a model family; a Dinomaly may be any ``variant`` (default: baseline).

    Raises:
        ConfigError: Unknown family or variant, or a value that the family as it is set does not have.
    """
    if model_type not in FAMILIES:
        raise ConfigError(f"model_type={model_type!r}: unknown.{nearest(model_type, FAMILIES)}")
    values = dict(values)
    variant = values.pop("variant", AUTO)
    if variant == AUTO:
        return _resolve(FAMILIES[model_type](), values, name=model_type)
    if model_type != "dinomaly":
        raise ConfigError(f"variant={variant}: {model_type} has no variants, only dinomaly; leave it out")
    if variant not in VARIANTS:
        raise ConfigError(f"variant={variant!r}: unknown.{nearest(variant, VARIANTS)}")
    return _resolve(VARIANTS[variant](), values, name=variant)


def resolve_config(text: str, values: Mapping[str, str]) -> RunConfig:
    """Return the config that a comparison calls ``text``, with its common values.

    ``text`` is a config of the ablation or a variant, class tokens removed, and what is changed in it:
    "F", "F:q_percent=1", "row_mask:row_radius=full:row_context=2".

    Raises:
        ConfigError: Unknown config, or a change that it does not have or allow.
    """
    name, changes = _split_text("config", text)
    if name not in ABLATION and name not in VARIANTS:
        raise ConfigError(f"config {name!r}: unknown.{nearest(name, [*ABLATION, *VARIANTS, *CONFIG_SETS])}")
    model = ABLATION[name]() if name in ABLATION else bare_grid(VARIANTS[name]())
    return _resolve(model, {**values, **changes}, name=text)


def resolve_model(text: str, values: Mapping[str, str]) -> RunConfig:
    """Return the config of a model that is called ``text``, with the values common to all.

    ``text`` is a family or a Dinomaly variant, and what is changed in it: "draem:fault_source=band",
    "patchcore:context=2+3", "horizontal".

    Raises:
        ConfigError: Unknown model, or a change that it does not have or allow.
    """
    name, changes = _split_text("model_type", text)
    if name not in FAMILIES and name not in VARIANTS:
        raise ConfigError(f"model_type {name!r}: unknown.{nearest(name, [*FAMILIES, *VARIANTS])}")
    make = FAMILIES[name] if name in FAMILIES else VARIANTS[name]
    return _resolve(make(), {**values, **changes}, name=text)


def _split_text(what: str, text: str) -> tuple[str, dict[str, str]]:
    """Return the name and the changes of "F:q_percent=1:row_context=2"."""
    name, *parts = text.split(":")
    changes: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if key not in HELP or not equals:
            raise ConfigError(f"{what} {text!r}: {part!r} is not name=value.{nearest(key, HELP)}")
        if key in FIXED_IN_COMPARISONS:
            raise ConfigError(f"{what} {text!r}: {key} is the same for all members of a comparison")
        if key in changes:
            raise ConfigError(f"{what} {text!r}: {key} is given twice")
        changes[key] = value
    return name, changes


def config_names(text: str) -> tuple[str, ...]:
    """Return the configs of a comma-separated list, in which a set such as "directional" stands for its own.

    Raises:
        ConfigError: The list is empty, or a config occurs twice.
    """
    names = [name for part in names_in(text) for name in CONFIG_SETS.get(part, (part,))]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"configs={text!r}: expected one or more, each once; sets: {', '.join(CONFIG_SETS)}"
        )
    return tuple(names)


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    """Return the numbers of a comma-separated list such as seeds or steps, each once.

    Raises:
        ConfigError: Something else stands there.
    """
    parts = names_in(text)
    if not parts or len(set(parts)) < len(parts) or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"{name}={text!r}: expected whole numbers, each once, such as 42,43,44")
    return tuple(int(part) for part in parts)


def _resolve(model: ModelConfig, values: Mapping[str, str], *, name: str) -> RunConfig:
    chosen = {key: value for key, value in values.items() if key in HELP and value != AUTO}
    run = preset_run(preset_name(values.get("preset", AUTO)), _with_parts(model, chosen))
    known = _values_of(run)
    for key in chosen:
        if key not in known:
            raise ConfigError(_not_of(name, key))
    if "max_steps" in chosen:
        if chosen.get("max_epochs", "0") != "0":
            raise ConfigError(f"{name}: max_steps and max_epochs are two ways to say one thing; give one")
        chosen["max_epochs"] = "0"
    return with_values(run, chosen)


def _values_of(run: RunConfig) -> dict[str, Any]:
    """Return the values that a user may set: an encoder only where there is one."""
    return {
        name: value
        for name, value in flatten(run).items()
        if value != NO_ENCODER or name not in EncoderConfig.model_fields or name == "crop"
    }


def _with_parts(model: ModelConfig, values: Mapping[str, str]) -> ModelConfig:
    """Return the model with the parts that values name, each at its defaults."""
    changed: dict[str, Frozen] = {}
    for field in type(model).model_fields:
        part = getattr(model, field)
        for key, kinds in PARTS.items():
            if isinstance(part, Frozen) and key in type(part).model_fields and key in values:
                if values[key] not in kinds:
                    raise ConfigError(f"{key}={values[key]!r}: unknown.{nearest(values[key], kinds)}")
                changed[field] = kinds[values[key]]()
    return model.model_copy(update=changed)


def _every_model() -> Iterator[tuple[str, ModelConfig]]:
    """Yield every variant and family at its defaults, by what a user calls it."""
    yield from ((variant, model()) for variant, model in VARIANTS.items())
    yield from ((family, make()) for family, make in FAMILIES.items() if family != "dinomaly")


def _with_every_part() -> Iterator[tuple[str, ModelConfig]]:
    """Yield every family with each part that can be chosen, by what a user calls it."""
    for family, model in _every_model():
        for key, kinds in PARTS.items():
            if key in flatten(model):
                yield from (
                    (f"{family} with {key}={kind}", _with_parts(model, {key: kind})) for kind in kinds
                )


def _not_of(name: str, key: str) -> str:
    takers = [other for other, model in _every_model() if key in _values_of(preset_run("full", model))]
    for other, model in _with_every_part():
        family = other.split(" with ")[0]
        if family not in takers and key in _values_of(preset_run("full", model)):
            takers.append(other)
    return f"{key} does not apply to {name} as it is set, only to {', '.join(takers)}; leave it out"


def preset_name(given: str) -> Any:
    """Return the preset; ``auto`` asks torch for CUDA.

    Raises:
        ConfigError: Unknown preset.
    """
    if given == AUTO:
        import torch

        return "full" if torch.cuda.is_available() else "quick"
    if given not in PRESETS:
        raise ConfigError(f"preset={given!r}: unknown.{nearest(given, [AUTO, *PRESETS])}")
    return given


def as_bool(name: str, text: str) -> bool:
    """Return a switch's value.

    Raises:
        ConfigError: Neither true nor false.
    """
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise ConfigError(f"{name}={text!r}: expected true or false")
    return known[text.lower()]


def project_defaults(variants: Sequence[str]) -> dict[str, str]:
    """Return the default that MLproject shows for each config value of an entry point.

    ``auto`` where the preset decides, or where only some of the entry point's variants have the value.
    """
    flats = _flats([VARIANTS[variant]() for variant in variants])
    return {name: _shown(name, flats) for name in HELP if any(name in flat for flat in flats)}


def family_values() -> list[str]:
    """Return the names of the values that any model of any family has."""
    flats = _flats([model for _, model in (*_every_model(), *_with_every_part())])
    return [name for name in HELP if any(name in flat for flat in flats)]


def common_defaults(*, without: Sequence[str]) -> dict[str, str]:
    """Return the same for the values that every variant has, for a comparison of variants."""
    flats = _flats([model() for model in VARIANTS.values()])
    common = [name for name in HELP if all(name in flat for flat in flats) and name not in without]
    return {name: _shown(name, flats) for name in common}


def _flats(models: Sequence[ModelConfig]) -> list[dict[str, Any]]:
    return [flatten(preset_run(preset, model)) for model in models for preset in PRESETS]


def text_of(value: object) -> str:
    """Return a value as its flag says it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shown(name: str, flats: Sequence[Mapping[str, Any]]) -> str:
    seen = {text_of(flat.get(name, AUTO)) for flat in flats}
    return seen.pop() if len(seen) == 1 else AUTO
