"""Kinds of several values in one: sizes, ranges, layers, weights and names, as lists or as a flag's text."""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Any

from dinomaly_hd.condition_files.kinds import MAX_TEXT, Schema, Text, Whole, is_number, is_whole

MAX_SIDE = 4096
MAX_LAYER = 9999


def positional(number: float) -> str:
    """Return a number without exponent and trailing zeros.

    >>> positional(0.00001), positional(20.0)
    ('0.00001', '20')
    """
    return f"{Decimal(str(number)).normalize():f}"


@dataclass(frozen=True)
class Size:
    """Pixels: 224, "224x224" (height x width) or [224, 224]; read as 224 or "248x96"."""

    def read(self, value: Any) -> str:
        sides = value if isinstance(value, list) else [value, value]
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,4}([xX][0-9]{1,4})?", value):
            words = value.lower().split("x")
            sides = [int(words[0]), int(words[-1])]
        if len(sides) != 2 or not all(is_whole(side) and 1 <= side <= MAX_SIDE for side in sides):
            raise ValueError(f"expected pixels from 1 to {MAX_SIDE} such as 224, '224x96' or [224, 96]")
        return str(sides[0]) if sides[0] == sides[1] else f"{sides[0]}x{sides[1]}"

    def schema(self) -> Schema:
        side = Whole(1, MAX_SIDE).schema()
        pair = {"type": "array", "items": side, "minItems": 2, "maxItems": 2}
        return {"anyOf": [side, {"type": "string", "pattern": "^[0-9]{1,4}([xX][0-9]{1,4})?$"}, pair]}


@dataclass(frozen=True)
class Range:
    """Two ends, [20, 80] or "20-80"; read as "20-80"."""

    example: tuple[float, float]

    def read(self, value: Any) -> str:
        if isinstance(value, str) and re.fullmatch(r"[0-9.]{1,20}-[0-9.]{1,20}", value):
            value = [_number(word) for word in value.split("-")]
        pair = isinstance(value, list) and len(value) == 2 and all(map(is_number, value))
        if not pair or not 0 < value[0] <= value[1]:
            raise ValueError(f"expected [low, high] above 0, low first, such as {list(self.example)}")
        return f"{positional(value[0])}-{positional(value[1])}"

    def schema(self) -> Schema:
        items = {"type": "number", "exclusiveMinimum": 0}
        pair = {"type": "array", "items": items, "minItems": 2, "maxItems": 2}
        return {"anyOf": [pair, {"type": "string", "pattern": "^[0-9.]{1,20}-[0-9.]{1,20}$"}]}


@dataclass(frozen=True)
class Numbers:
    """Ascending whole numbers, [2, 3] or "2,3", or one alone; with ``prefix`` also ["layer2", "layer3"]."""

    low: int = 0
    prefix: str = ""

    def read(self, value: Any) -> str:
        parts = value.split(",") if isinstance(value, str) else value
        numbers = [self._one(part) for part in (parts if isinstance(parts, list) else [parts])]
        if not numbers or any(one >= other for one, other in pairwise(numbers)):
            raise ValueError(self._rule())
        return ",".join(map(str, numbers))

    def _one(self, part: Any) -> int:
        text = part.strip().removeprefix(self.prefix) if isinstance(part, str) else ""
        number = int(text) if re.fullmatch("[0-9]{1,4}", text) else part
        if not is_whole(number) or not self.low <= number <= MAX_LAYER:
            raise ValueError(self._rule())
        return int(number)

    def _rule(self) -> str:
        low, high = max(self.low, 2), max(self.low, 2) + 1
        named = f" or ['{self.prefix}{low}', '{self.prefix}{high}']" if self.prefix else ""
        return f"expected ascending whole numbers of {self.low} or more such as [{low}, {high}]{named}"

    def schema(self) -> Schema:
        one = f"{self.prefix and f'({self.prefix})?'}[0-9]{{1,4}}"
        number = Whole(self.low, MAX_LAYER).schema()
        item = {"anyOf": [number, {"type": "string", "pattern": f"^{one}$"}]} if self.prefix else number
        several = {"type": "array", "items": item, "minItems": 1, "uniqueItems": True}
        return {"anyOf": [number, several, {"type": "string", "pattern": f"^{one}(, *{one})*$"}]}


@dataclass(frozen=True)
class Weights:
    """A weight of 0 or more for each group, [0.35, 0.65] or ".35,.65"."""

    def read(self, value: Any) -> str:
        parts = [_number(word) for word in value[:MAX_TEXT].split(",")] if isinstance(value, str) else value
        if not isinstance(parts, list) or len(parts) != 2 or not all(is_number(p) and p >= 0 for p in parts):
            raise ValueError("expected two numbers of 0 or more such as [0.35, 0.65]")
        return ",".join(map(str, parts))

    def schema(self) -> Schema:
        number = {"type": "number", "minimum": 0}
        pair = {"type": "array", "items": number, "minItems": 2, "maxItems": 2}
        return {"anyOf": [pair, {"type": "string", "pattern": "^[0-9.]+,[0-9.]+$"}]}


@dataclass(frozen=True)
class Names:
    """One or more different names, as a list or separated by commas."""

    item: Text

    def read(self, value: Any) -> str:
        parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if not isinstance(parts, list) or not parts:
            raise ValueError(f"expected one or more names such as [{self.item.example!r}]")
        names = [self.item.read(part) for part in parts]
        if len(set(names)) < len(names):
            raise ValueError("a name is given twice; keep one")
        return ",".join(names)

    def schema(self) -> Schema:
        several = {"type": "array", "items": self.item.schema(), "minItems": 1, "uniqueItems": True}
        return {"anyOf": [several, {"type": "string", "minLength": 1}]}


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan
