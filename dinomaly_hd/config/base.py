"""The base of all configs: frozen, unknown keys refused, every value said once, under its own name.

A value that a user may set is a field with a description: type, rule, default and help stand in one place,
and flags, conditions files, their schema and the search space are read from it. Fields without one, such as
``loss``, are set by the variant or the preset.
"""

import re
from collections.abc import Mapping
from copy import copy
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.names import has_hidden, shown

LARGEST_COUNT, LONGEST_TEXT = 2**31 - 1, 1000


def visible(text: str) -> str:
    """Return a text in which everything is seen; any other is a ValueError."""
    if has_hidden(text):
        raise ValueError("holds control or invisible characters; take them out")
    return text


Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
PositiveCount = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
Line = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT), AfterValidator(visible)]


Default = TypeVar("Default")


def doc(default: Default, text: str, **limits: Any) -> Default:
    """Return a field that a user may set: its default, its help, and what it may be, such as ``ge=0``."""
    field: Default = Field(default, description=text, **limits)
    return field


class Search(NamedTuple):
    """Put on a field: the ends between which a study searches it, by its logarithm where ``log`` says so."""

    low: float
    high: float
    log: bool = False


class Frozen(BaseModel):
    """Base of all configs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Config = TypeVar("Config", bound=Frozen)


def flatten(config: Frozen) -> dict[str, Any]:
    """Return every value under its own name: {"seed": 42, ..., "row_p": 0.2, ...}."""
    flat: dict[str, Any] = {}
    for name, value in config:
        own = flatten(value) if isinstance(value, Frozen) else {name: value}
        assert not flat.keys() & own.keys(), f"two values of one name: {flat.keys() & own.keys()}"
        flat.update(own)
    return flat


def described(config: Frozen) -> dict[str, FieldInfo]:
    """Return the field of every value of a config that a user may set, by the value's name.

    The field's default is the value that it has in this config.
    """
    found: dict[str, FieldInfo] = {}
    for name, field in type(config).model_fields.items():
        part = getattr(config, name)
        if isinstance(part, Frozen):
            if kinds := kinds_of(field):
                words: Any = Literal[tuple(kinds)]
                found[str(field.discriminator)] = FieldInfo(annotation=words, description=field.description)
            found |= described(part)
        elif field.description:
            found[name] = copy(field)
            found[name].default = part
    return found


def kinds_of(field: FieldInfo) -> dict[str, type[Frozen]]:
    """Return what a user may choose a part from, by the value that names it; empty if there is no choice."""
    if field.discriminator is None or not field.description:
        return {}
    kinds = get_args(field.annotation)
    return {kind.model_fields[str(field.discriminator)].default: kind for kind in kinds}


def with_parts(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a copy with the parts that values name, such as fault_source="band", each at its defaults."""
    chosen: dict[str, Frozen] = {}
    for name, field in type(config).model_fields.items():
        kinds, key = kinds_of(field), str(field.discriminator)
        if kinds and key in values:
            if values[key] not in kinds:
                raise ConfigError(f"{key}={values[key]!r}: unknown.{nearest(values[key], kinds)}")
            chosen[name] = kinds[values[key]]()
    return config.model_copy(update=chosen)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a copy with some values, given by their own names, replaced and checked."""
    changed = {
        name: with_values(value, values) if isinstance(value, Frozen) else values.get(name, value)
        for name, value in config
    }
    if all(changed[name] is value for name, value in config):
        return config
    return validated(type(config), changed)


def validated(kind: type[Config], content: Any) -> Config:
    """Return ``kind`` made from plain data, or from the text of JSON; pydantic's errors become ours."""
    try:
        return kind.model_validate_json(content) if isinstance(content, str) else kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(
            "; ".join(
                f"{(fault['loc'] or ['config'])[-1]}={shown(fault['input'])}: {reason_of_fault(fault)}"
                for fault in error.errors()
            )
        ) from error


def reason_of_fault(detail: Any) -> str:
    """Return why pydantic refuses a value; of words that may stand there, the nearest is offered."""
    message, hint = str(detail["msg"]).removeprefix("Value error, "), ""
    if detail["type"] == "literal_error":
        words = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        hint = nearest(str(detail["input"])[:LONGEST_TEXT], words).partition(" Known")[0]
    return f"{message[0].lower()}{message[1:]}{hint and '.'}{hint}"


def text_of(value: object) -> str:
    """Return a value as its flag says it; None is what ``auto`` stands for."""
    if value is None:
        return "auto"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
