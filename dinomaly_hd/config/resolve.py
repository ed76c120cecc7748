"""From flags, or a name and values as text, to a run: every name known, said once, every value checked."""

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Generic, NoReturn, TypeVar

from pydantic import BeforeValidator, TypeAdapter, ValidationError, WrapValidator

from dinomaly_hd.config.base import (
    Frozen,
    names_in,
    names_once,
    numbers_once,
    reason_of_fault,
    text_of,
    validated,
    visible,
    with_values,
)
from dinomaly_hd.config.families import ModelConfig
from dinomaly_hd.config.help import help_text
from dinomaly_hd.config.presets import (
    AUTO,
    MODELS,
    PRESETS,
    Fields,
    described,
    every_parameter,
    not_of,
    preset_run,
    with_parts,
)
from dinomaly_hd.config.run import FOUND_DOMAINS, SIMULATED, RunConfig
from dinomaly_hd.config.variants import ABLATION, CONFIG, CONFIG_SETS, VARIANTS, WITH_TOPK, bare_grid
from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.names import has_hidden, shown

MARKER = "-P"
"""Ends what MLproject declares. Behind it stands what ``mlflow run -P name=value`` appends for other names,
strictly ``--name`` and value in turn, so that no value is ever read as a flag."""
ALSO = {"seeds": ("seed",)}
"""Other names of a flag: one seed is a list of one."""
FIRST_SEED = 42
WHOLE_HELP = "--help-all"
HELP = {"-h", "--help", WHOLE_HELP}


def _or_auto(text: Any, read: Callable[[Any], Any]) -> Any:
    try:
        return None if text == AUTO else read(text)
    except ValidationError as error:
        raise ValueError(f"{reason_of_fault(error.errors()[0])}, or {AUTO}") from None


T = TypeVar("T")
Options = TypeVar("Options", bound=Frozen, covariant=True)
OrAuto = Annotated[T | None, WrapValidator(_or_auto)]
Names = Annotated[tuple[str, ...], BeforeValidator(names_once)]
Numbers = Annotated[tuple[int, ...], BeforeValidator(numbers_once)]
Seeds = Annotated[Numbers, BeforeValidator(lambda text: str(FIRST_SEED) if text == AUTO else text)]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


@dataclass(frozen=True)
class Asked(Generic[Options]):
    """What the flags of one start say."""

    entry_point: str
    options: Options
    values: dict[str, str]  # of runs, as text; without those that are left to the preset
    given: dict[str, str]  # all flags that were given

    def command(self, **spelt_out: object) -> str:
        """Return the shortest command that repeats the start, with some flags spelt out."""
        told = {name: text for name, text in self.given.items() if text != AUTO and name != "resume"}
        told |= {name: text_of(value) for name, value in spelt_out.items() if value is not None}
        flags = (f"--{name}={text}" for name, text in told.items())
        return shlex.join(["python", "-m", f"entry_points.{self.entry_point}", *flags])


@dataclass(frozen=True)
class Command(Generic[Options]):
    """An entry point: what it is called and takes."""

    name: str
    doc: str | None  # opens its --help
    options: type[Options]
    runs: Callable[[], Fields] = dict  # the values of runs that it takes
    instead: Mapping[str, str] = field(default_factory=dict)
    """Names that other entry points take -> what this one has for them."""

    def parameters(self) -> Fields:
        """Return everything it takes, by name."""
        own = self.options.model_fields
        taken = {name for flag in own for name in ALSO.get(flag, ())}
        return {**own, **{name: field for name, field in self.runs().items() if name not in taken}}

    def parse(self, argv: Sequence[str]) -> Asked[Options]:
        """Read flags (``--row-p .2`` and ``--row_p=.2`` alike); ``--help`` prints and ends the process."""
        fields = self.parameters()
        words = _joined(argv, fields)
        if asked := HELP & set(words):
            whole = WHOLE_HELP in asked
            print(
                help_text(self.name, self.doc, fields=fields, options=self.options, whole=whole), flush=True
            )
            raise SystemExit(0)
        found, rest = self._parser(fields).parse_known_args(words)
        for word in rest:
            self._refuse(word, fields)
        given: dict[str, str] = {}
        for name in (name for name in fields if name in found):
            text, *more = getattr(found, name)
            if more:  # the last one would silently win
                raise ConfigError(f"{' or '.join((name, *ALSO.get(name, ())))}: given twice; give it once")
            try:
                given[name] = visible(text)
            except ValueError as error:
                raise ConfigError(f"{name}={shown(text)}: {error}") from None
        own = {name: given[name] for name in self.options.model_fields if name in given}
        for name, option in self.options.model_fields.items():
            if option.is_required() and not own.get(name):
                raise ConfigError(f"--{name} is needed: {option.description}")
        values = {name: text for name, text in given.items() if name not in own and text != AUTO}
        return Asked(self.name, validated(self.options, own), values, given)

    def _parser(self, fields: Fields) -> _Parser:
        parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        for name, parameter in fields.items():
            switch: dict[str, Any] = {"nargs": "?", "const": "true"} if parameter.annotation is bool else {}
            names = (name, *ALSO.get(name, ()))
            flags = dict.fromkeys(f"--{said}" for one in names for said in (one, one.replace("_", "-")))
            parser.add_argument(*flags, dest=name, action="append", **switch)
        return parser

    def _refuse(self, word: str, fields: Fields) -> NoReturn:
        """Say what is wrong with a word that no flag takes."""
        name = word.lstrip("-").split("=")[0].replace("-", "_")
        if not word.startswith("-") or not name[:1].isalpha() or name in fields:
            raise ConfigError(f"unexpected word {shown(word)}; write --name value")
        if name in self.instead:
            raise ConfigError(f"{name}: {self.name} has no such flag; give {self.instead[name]}")
        if name in every_parameter():
            raise ConfigError(not_of(self.name, name))
        said = shown(name) if has_hidden(name) else name
        raise ConfigError(f"unknown flag --{said}.{nearest(name, fields)}")


def _joined(argv: Sequence[str], fields: Fields) -> list[str]:
    """Return the words of ``argv`` with each name and value behind the marker as one word.

    What MLproject declares stands before it, at its default where the user has not said otherwise; such a
    word is left out, so that commands and checks see what was asked for.
    """
    words = list(argv)
    if MARKER in words:
        place = words.index(MARKER)
        defaults = {
            f"--{name}={text_of(parameter.default)}"
            for flag, parameter in fields.items()
            for name in (flag, *ALSO.get(flag, ()))
        }
        words, added = [word for word in words[:place] if word not in defaults], words[place + 1 :]
        for name, value in zip(added[::2], [*added[1::2], None], strict=False):
            if not name.startswith("--") or "=" in name or value is None:
                raise ConfigError(
                    f"unexpected word {shown(name)} behind {MARKER}; write --name value in turn"
                )
            words.append(f"{name}={value}")
    for word in words:
        if word == "--" or word.endswith("=--"):  # argparse takes it for the end of all flags
            raise ConfigError(f"unexpected word {shown(word)}; write --name value")
    return words


def value_of(flag: str, argv: Sequence[str]) -> str:
    """Return the value of one flag before others are known, "" where it is not given."""
    for word, after in pairwise([*_joined(argv, {}), ""]):
        name, equals, value = word.partition("=")
        if name == f"--{flag}":
            return value if equals else after
    return ""


# ---- from a name and values as text to a run ----

MEMBERS = {"maps_per_group": "2"}
"""What a comparison has differently from a run by itself: it draws fewer anomaly maps of each member."""
FIXED_IN_COMPARISONS = (
    *("preset", "seed", "class_token"),
    *("data_root", "simulate_size", "simulate_seed", "domains", "conditions", "grey"),
)


def resolve_config(text: str, values: Mapping[str, str]) -> RunConfig:
    """Return the config that a comparison calls ``text``, with its common values.

    ``text`` is a config of the ablation, a variant, class tokens removed, or another family, and what is
    changed in it: "F", "cfg-F:q_percent=1", "row_mask:row_radius=full:row_context=2", "row_evidence".
    """
    name, changes = _split_text("config", text.removeprefix(CONFIG))
    known: dict[str, Callable[[], ModelConfig]] = {
        **{key: make for key, make in MODELS.items() if key != "dinomaly"},  # is called baseline
        **{key: partial(bare_grid, make()) for key, make in VARIANTS.items()},
        **ABLATION,
    }
    if name not in known:
        raise ConfigError(f"config {name!r}: unknown.{nearest(name, [*known, *CONFIG_SETS])}")
    model = known[name]()
    return _resolve(model, {**values, **changes}, name=text)


def resolve_model(text: str, values: Mapping[str, str]) -> RunConfig:
    """Return the config of a model that is called ``text``, with the values common to all.

    ``text`` is a family or a Dinomaly variant, and what is changed in it: "draem:fault_source=band",
    "patchcore:context=2+3", "horizontal". ``use_topk`` chooses the variant with the TopK loss.
    """
    name, changes = _split_text("model_type", text)
    if name not in MODELS:
        raise ConfigError(f"model_type {name!r}: unknown.{nearest(name, MODELS)}")
    values = {**values, **changes}
    variant = name
    if name in WITH_TOPK and "use_topk" in values:
        switch = values.pop("use_topk")
        try:
            variant = WITH_TOPK[name] if TypeAdapter(bool).validate_python(switch) else name
        except ValidationError:
            raise ConfigError(f"use_topk={switch!r}: expected true or false") from None
    return _resolve(MODELS[variant](), values, name=text)


def _split_text(what: str, text: str) -> tuple[str, dict[str, str]]:
    """Return the name and the changes of "F:q_percent=1:row_context=2"."""
    name, *parts = text.split(":")
    known = every_parameter().keys() - {"use_topk"}
    changes: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"{what} {text!r}: {part!r} is not name=value")
        if key not in known:
            raise ConfigError(f"{what} {text!r}: {key!r} is unknown.{nearest(key, known)}")
        if key in FIXED_IN_COMPARISONS:
            raise ConfigError(f"{what} {text!r}: {key} is the same for all members of a comparison")
        if key in changes:
            raise ConfigError(f"{what} {text!r}: {key} is given twice")
        changes[key] = value
    return name, changes


def config_names(text: str) -> tuple[str, ...]:
    """Return the configs of a comma-separated list; a set such as "directional" stands for its own."""
    names = [name for part in names_in(text) for name in CONFIG_SETS.get(part, (part,))]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"configs={text!r}: expected one or more, each once; sets: {', '.join(CONFIG_SETS)}"
        )
    return tuple(names)


def _resolve(model: ModelConfig, values: Mapping[str, str], *, name: str) -> RunConfig:
    """Return a model's run under its preset; ``auto`` leaves what the preset says."""
    chosen: dict[str, Any] = {key: value for key, value in values.items() if value != AUTO}
    chosen["preset"] = preset_name(chosen.get("preset", AUTO))
    if chosen.get("data_root", SIMULATED) != SIMULATED:
        chosen.setdefault("domains", FOUND_DOMAINS)
    run = preset_run(chosen["preset"], with_parts(model, chosen))
    known = described(run)
    for key in chosen:
        if key not in known:
            raise ConfigError(not_of(name, key))
    if "max_steps" in chosen:
        if chosen.get("max_epochs", "0") != "0":
            raise ConfigError(f"{name}: max_steps and max_epochs are two ways to say one thing; give one")
        if "max_epochs" in known:
            chosen["max_epochs"] = "0"
    return with_values(run, chosen)


def preset_name(given: str) -> Any:
    """Return the preset; ``auto`` asks torch for CUDA."""
    if given == AUTO:
        import torch

        return "full" if torch.cuda.is_available() else "quick"
    if given not in PRESETS:
        raise ConfigError(f"preset={given!r}: unknown.{nearest(given, [AUTO, *PRESETS])}")
    return given
