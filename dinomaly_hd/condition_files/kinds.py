"""What a key's value may be: a kind reads plain data to a flag's text and describes itself as schema."""

import math
import re
from dataclasses import dataclass
from typing import Any, Protocol

from dinomaly_hd.errors import nearest

Schema = dict[str, Any]
MAX_TEXT = 1000


class Kind(Protocol):
    """Raises ValueError with the rule where a value breaks it."""

    def read(self, value: Any) -> str:
        """Return the flag's text."""

    def schema(self) -> Schema:
        """Return the values allowed, as JSON Schema."""


def is_whole(value: Any) -> bool:
    """Tell whether plain data is an integer (true and false are not)."""
    return type(value) is int


def is_number(value: Any) -> bool:
    """Tell whether plain data is a finite number."""
    return is_whole(value) or (type(value) is float and math.isfinite(value))


@dataclass(frozen=True)
class Whole:
    """A whole number, ends included."""

    low: int = 0
    high: int = 2**31 - 1
    even: bool = False

    def read(self, value: Any) -> str:
        fits = is_whole(value) and self.low <= value <= self.high and not (self.even and value % 2)
        if not fits:
            even = "even " if self.even else ""
            raise ValueError(f"expected a whole {even}number from {self.low} to {self.high}, without quotes")
        return str(value)

    def schema(self) -> Schema:
        even = {"multipleOf": 2} if self.even else {}
        return {"type": "integer", "minimum": self.low, "maximum": self.high, **even}


@dataclass(frozen=True)
class Real:
    """A number; ``open_low`` and ``open_high`` leave that end out."""

    low: float = 0
    high: float = 1e9
    open_low: bool = False
    open_high: bool = False

    def read(self, value: Any) -> str:
        above = is_number(value) and (value > self.low or (value == self.low and not self.open_low))
        if not above or value > self.high or (value == self.high and self.open_high):
            low = f"above {self.low:g}" if self.open_low else f"{self.low:g} or more"
            high = f"below {self.high:g}" if self.open_high else f"at most {self.high:g}"
            raise ValueError(f"expected a number, {low} and {high}, without quotes")
        return str(value)

    def schema(self) -> Schema:
        low = "exclusiveMinimum" if self.open_low else "minimum"
        high = "exclusiveMaximum" if self.open_high else "maximum"
        return {"type": "number", low: self.low, high: self.high}


@dataclass(frozen=True)
class Choice:
    """One of some words; a number among them may stand without quotes."""

    words: tuple[str, ...]

    def read(self, value: Any) -> str:
        text = str(value) if is_whole(value) else value
        if not isinstance(text, str) or text not in self.words:
            hint = nearest(text[:MAX_TEXT], self.words) if isinstance(text, str) else ""
            raise ValueError(
                f"expected {' or '.join(self.words)}.{hint if 'Did' in hint else ''}".rstrip(".")
            )
        return text

    def schema(self) -> Schema:
        return {"enum": [*self.words, *(int(word) for word in self.words if word.isdecimal())]}


@dataclass(frozen=True)
class Switch:
    """true or false."""

    true: str = "true"
    false: str = "false"

    def read(self, value: Any) -> str:
        if not isinstance(value, bool):
            raise ValueError("expected true or false, without quotes")
        return self.true if value else self.false

    def schema(self) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Text:
    """One line of text of a pattern; ``example`` is shown where it does not fit."""

    example: str
    pattern: str = r"^\S.*$"
    longest: int = MAX_TEXT

    def read(self, value: Any) -> str:
        fits = isinstance(value, str) and 0 < len(value) <= self.longest and value.isprintable()
        if not fits or not re.search(self.pattern, value):
            raise ValueError(f"expected text such as {self.example!r}, up to {self.longest} characters")
        return str(value)

    def schema(self) -> Schema:
        return {"type": "string", "pattern": self.pattern, "minLength": 1, "maxLength": self.longest}


@dataclass(frozen=True)
class Either:
    """A value of the first kind that takes it."""

    first: Kind
    second: Kind

    def read(self, value: Any) -> str:
        try:
            return self.first.read(value)
        except ValueError as error:
            try:
                return self.second.read(value)
            except ValueError as other:
                raise ValueError(f"{error}, or: {other}") from None

    def schema(self) -> Schema:
        return {"anyOf": [self.first.schema(), self.second.schema()]}


@dataclass(frozen=True)
class OrNull:
    """A value, or null, read as empty text: the default stays."""

    kind: Kind

    def read(self, value: Any) -> str:
        return "" if value is None else self.kind.read(value)

    def schema(self) -> Schema:
        return {"anyOf": [self.kind.schema(), {"type": "null"}]}
