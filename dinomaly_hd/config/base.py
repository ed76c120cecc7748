"""The base of all configs: frozen, keyword-only, unknown keys refused, every value under its own name."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dinomaly_hd.errors import ConfigError

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]


class Frozen(BaseModel):
    """Base of all configs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Config = TypeVar("Config", bound=Frozen)


def flatten(config: Frozen) -> dict[str, Any]:
    """Return every value under its own name: {"seed": 42, ..., "row_p": 0.2, ...}."""
    flat: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        own = flatten(value) if isinstance(value, Frozen) else {name: value}
        assert not flat.keys() & own.keys(), f"two values of one name: {flat.keys() & own.keys()}"
        flat.update(own)
    return flat


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """Return a copy with some values, given by their own names, replaced and checked.

    Raises:
        ConfigError: A value breaks its rule; one line names parameter, value and rule.
    """
    changed: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Frozen):
            changed[name] = with_values(value, values).model_dump()
        else:
            changed[name] = values.get(name, value)
    return validated(type(config), changed)


def validated(kind: type[Config], content: Any) -> Config:
    """Return ``kind`` made from plain data; the one place where pydantic's errors become ours."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError("; ".join(validation_line(detail) for detail in error.errors())) from error


def validation_line(detail: Any) -> str:
    """Return one of pydantic's errors as "name=value: reason"."""
    place = detail["loc"][-1] if detail["loc"] else "config"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{place}={detail.get('input')!r}: {message[0].lower()}{message[1:]}"
