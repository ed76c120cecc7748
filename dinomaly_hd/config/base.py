"""The base of all configs, frozen, unknown keys refused, and the types of their values.

A value that a user may set is a field with a description: name, type, rule, default and help stand in one
place, and flags, conditions files, their schema and the search space are read from it. Fields without one,
such as ``loss``, are set by the variant or the preset.
"""

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dinomaly_hd.errors import ConfigError, nearest
from dinomaly_hd.names import has_hidden, shown

LARGEST_COUNT, LONGEST_TEXT = 2**31 - 1, 1000
LAST_HALF, FULL_ROW, LEARNED, AUTO_LAYERS = "last-half", "full", "learned", "auto"
NO_CROP, NO_CONTEXT = "none", "0"
GROUPS = 2
"""Groups of encoder layers that the decoder rebuilds."""
DEEPEST_DECODER, LAST_LAYER, LARGEST_SIDE = 100, 9999, 4096
"""Limits that keep a slip of the hand from asking for more than any machine has."""

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


class Model(Frozen):
    """Base of a family's config."""

    encoded_by: ClassVar[tuple[str, ...]] = ()
    """What the encoder's output for an image depends on beside the encoder's own settings."""

    @property
    def encoding(self) -> str:
        """The values of ``encoded_by``, as part of the key of kept features."""
        return " ".join(str(getattr(self, name)) for name in self.encoded_by)


Config = TypeVar("Config", bound=Frozen)


def flatten(config: Frozen) -> dict[str, Any]:
    """Return every value under its own name, but what is "": {"seed": 42, ..., "row_p": 0.2, ...}."""
    flat: dict[str, Any] = {}
    for name, value in config:
        if value == "":
            continue
        own = flatten(value) if isinstance(value, Frozen) else {name: value}
        assert not flat.keys() & own.keys(), f"two values of one name: {flat.keys() & own.keys()}"
        flat.update(own)
    return flat


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


# ---- values that are text and mean more: what reads them ----


def text_of(value: object) -> str:
    """Return a value as its flag says it; None is what ``auto`` stands for."""
    if value is None:
        return "auto"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def visible(text: str) -> str:
    """Return a text in which everything is seen; any other is a ValueError."""
    if has_hidden(text):
        raise ValueError("holds control or invisible characters; take them out")
    return text


def names_in(text: str) -> tuple[str, ...]:
    """Return the names of a comma-separated list: ("A", "B") of "A, B"."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def names_once(text: str) -> tuple[str, ...]:
    """Return the names of a list that must hold at least one, and each once."""
    names = names_in(text)
    if not names or len(set(names)) < len(names):
        raise ValueError("expected one or more, each once")
    return names


def numbers_once(text: str) -> tuple[int, ...]:
    """Return the whole numbers of such a list, in its order: (43, 42) of "43, 42"."""
    parts = names_in(text)
    if not parts or len(set(parts)) < len(parts) or not all(part.isdecimal() for part in parts):
        raise ValueError("expected whole numbers, each once, such as 42,43,44")
    return tuple(map(int, parts))


def blocks_of(text: str, *, depth: int) -> list[int]:
    """Return the decoder blocks of "last-half", "4-7" or "1,3", counted from 0, of a decoder of ``depth``.

    >>> blocks_of("last-half", depth=8), blocks_of("0,2-3", depth=8)
    ([4, 5, 6, 7], [0, 2, 3])
    """
    if text == LAST_HALF:
        return list(range(depth // 2, depth))
    chosen: set[int] = set()
    for part in text.split(","):
        ends = part.strip().split("-")
        if len(ends) > 2 or not all(end.isdecimal() for end in ends) or int(ends[0]) > int(ends[-1]):
            raise ValueError(f"{text!r} names no decoder blocks: write {LAST_HALF}, 4-7 or 1,3")
        if int(ends[-1]) >= depth:
            raise ValueError(f"{text!r}: the decoder has blocks 0..{depth - 1}")
        chosen |= set(range(int(ends[0]), int(ends[-1]) + 1))
    return sorted(chosen)


def layers_of(text: str) -> list[int]:
    """Return the layer numbers of "2,3", or "2+3" inside a list, from 0, ascending."""
    if numbers := _ascending(text):
        return numbers
    raise ValueError(f"{text!r} names no layers: write {AUTO_LAYERS}, or ascending numbers such as 2,3")


def context_of(text: str) -> tuple[int, ...]:
    """Return the half-widths of "2" or "2,3"; "0" is none."""
    widths = _ascending(text)
    if text != NO_CONTEXT and not all(widths or [0]):
        raise ValueError(f"{text!r}: write half-widths of 1 or more such as 2,3, or {NO_CONTEXT} for none")
    return () if text == NO_CONTEXT else tuple(widths)


def _ascending(text: str) -> list[int]:
    """Return ascending whole numbers, none if ``text`` holds anything else."""
    parts = text.replace("+", ",").split(",")
    numbers = [int(part) for part in parts if part.strip().isdecimal()]
    ordered = len(numbers) == len(parts) and sorted(set(numbers)) == numbers
    return numbers if ordered and numbers[-1] <= LAST_LAYER else []


def weights_of(text: str) -> list[float]:
    """Return the group weights of ".35,.65", scaled to the sum 1: [0.25, 0.75] of "1,3"."""
    numbers = _numbers(text, ",")
    if len(numbers) != GROUPS or min(numbers) < 0 or sum(numbers) <= 0:
        raise ValueError(f"{text!r}: write {LEARNED}, or {GROUPS} weights of 0 or more such as .35,.65")
    return [number / sum(numbers) for number in numbers]


def range_of(text: str) -> tuple[float, float]:
    """Return the ends of "0.35-0.67"."""
    ends = _numbers(text, "-")
    if len(ends) not in (1, 2) or not 0 < ends[0] <= ends[-1]:
        raise ValueError(f"{text!r} is no range: write LOW-HIGH above 0, such as 20-80")
    return ends[0], ends[-1]


def _numbers(text: str, separator: str) -> list[float]:
    """Return finite numbers, none if ``text`` holds anything else."""
    try:
        numbers = [float(part) for part in text.split(separator)]
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def size_of(text: str) -> tuple[int, int]:
    """Return (height, width) of "248x96", or of "392" for a square."""
    sides = text.lower().split("x")
    if len(sides) in (1, 2) and all(side.isdecimal() and 0 < int(side) <= LARGEST_SIDE for side in sides):
        return int(sides[0]), int(sides[-1])
    raise ValueError(
        f"{text!r} is not a size: write pixels up to {LARGEST_SIDE} such as 392, or HEIGHTxWIDTH as 248x96"
    )


# ---- types of fields; JSON's own forms, such as [64, 96] in conditions files, are read too ----


def _says(read: Callable[[str], object], *words: str) -> AfterValidator:
    """Leave a text as it is if it is one of ``words`` or can be read."""

    def check(text: str) -> str:
        if text not in words:
            read(text)
        return text

    return AfterValidator(check)


def _numbers_as_text(separator: str, *, pair: bool = False) -> BeforeValidator:
    """Let a number, or a list (``pair``: of two), stand for its text: 224 for "224", [20, 80] for "20-80"."""

    def join(value: Any) -> Any:
        parts = value if isinstance(value, list) else [value]
        lacking = pair and isinstance(value, list) and len(value) != 2
        if lacking or not all(type(part) in (int, float) for part in parts):
            return value
        # Without exponents, so that a dash can stand for "to".
        return separator.join(f"{Decimal(str(part)).normalize():f}" for part in parts)

    return BeforeValidator(join, json_schema_input_type=float | str | list[float])


def _bare_layers(value: Any) -> Any:
    """Let "layer2, layer3", as CNNs call their stages, and a list of such names, stand for "2,3"."""
    parts = value.split(",") if isinstance(value, str) and "layer" in value else value
    if not isinstance(parts, list):
        return value
    return ",".join(str(part).strip().removeprefix("layer") for part in parts)


def _shortest_size(text: str) -> str:
    """Return a size as it is said shortest, so that one size has one digest."""
    height, width = size_of(text)
    return str(height) if height == width else f"{height}x{width}"


def _whole_range(text: str) -> None:
    if any(end != int(end) for end in range_of(text)):
        raise ValueError(f"{text!r}: write whole pixels such as 20-80")


def _radius(text: str) -> None:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a radius: write columns, 0 or more, or {FULL_ROW}")


Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
PositiveCount = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
Line = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT), AfterValidator(visible)]
_PAIR_OF_SIDES, _NUMBER = _numbers_as_text("x", pair=True), _numbers_as_text("")
_RANGE, _LIST = _numbers_as_text("-", pair=True), _numbers_as_text(",")
Size = Annotated[str, _PAIR_OF_SIDES, AfterValidator(_shortest_size)]
Crop = Annotated[
    str, _PAIR_OF_SIDES, AfterValidator(lambda text: text if text == NO_CROP else _shortest_size(text))
]
Range = Annotated[str, _RANGE, _says(range_of)]
WholeRange = Annotated[str, _RANGE, _says(_whole_range)]
Layers = Annotated[
    str,
    _LIST,
    BeforeValidator(_bare_layers, json_schema_input_type=int | str | list[int | str]),
    _says(layers_of, AUTO_LAYERS),
]
Context = Annotated[str, _LIST, _says(context_of)]
Blocks = Annotated[str, _LIST, _says(lambda text: blocks_of(text, depth=DEEPEST_DECODER), LAST_HALF)]
Weights = Annotated[str, _LIST, _says(weights_of, LEARNED)]
Radius = Annotated[str, _NUMBER, _says(_radius, FULL_ROW)]
Gpu = Annotated[str, _NUMBER, Field(pattern=r"^(auto|cpu|\d{1,3})$")]
