"""From ``--name value`` flags to an entry point's options and the values of runs: every name known, once."""

import argparse
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, NoReturn, TypeVar

from pydantic import BeforeValidator, ValidationError, WrapValidator

from dinomaly_hd.config.base import Frozen, reason_of_fault, text_of, validated, visible
from dinomaly_hd.config.parameters import AUTO, Fields, every_parameter, help_of, not_of
from dinomaly_hd.config.texts import names_once, numbers_once
from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.names import has_hidden, shown

MARKER = "-P"
"""Ends what MLproject declares. Behind it stands what ``mlflow run -P name=value`` appends for other names,
strictly ``--name`` and value in turn, so that no value is ever read as a flag."""


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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


class _Once(argparse.Action):
    """Keeps a value; a second one of the same name would silently win."""

    def __call__(self, _parser: object, namespace: object, values: object, _option: object = None) -> None:
        if hasattr(namespace, self.dest):
            raise ConfigError(f"{self.dest}: given twice; give it once")
        setattr(namespace, self.dest, values)


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
        return {**self.options.model_fields, **self.runs()}

    def parse(self, argv: Sequence[str]) -> Asked[Options]:
        """Read flags (``--row-p .2`` and ``--row_p=.2`` alike); ``--help`` prints and ends the process."""
        fields = self.parameters()
        found, rest = self._parser(fields).parse_known_args(_joined(argv, fields))
        for word in rest:
            self._refuse(word, fields)
        given = {name: value for name in fields if (value := getattr(found, name, None)) is not None}
        for name, value in given.items():
            try:
                visible(value)
            except ValueError as error:
                raise ConfigError(f"{name}={shown(value)}: {error}") from None
        own = {name: given[name] for name in self.options.model_fields if name in given}
        for name, option in self.options.model_fields.items():
            if option.is_required() and not own.get(name):
                raise ConfigError(f"--{name} is needed: {option.description}")
        values = {name: text for name, text in given.items() if name not in own and text != AUTO}
        return Asked(self.name, validated(self.options, own), values, given)

    def _parser(self, fields: Fields) -> _Parser:
        parser = _Parser(
            prog=f"python -m entry_points.{self.name}",
            description=self.doc,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        for name, parameter in fields.items():
            switch: dict[str, Any] = {"nargs": "?", "const": "true"} if parameter.annotation is bool else {}
            spellings = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
            text = help_of(parameter).replace("%", "%%")
            parser.add_argument(*spellings, dest=name, action=_Once, metavar="VALUE", help=text, **switch)
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
        defaults = {f"--{name}={text_of(parameter.default)}" for name, parameter in fields.items()}
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
