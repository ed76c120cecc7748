"""Values that are text and mean more: sizes, ranges, layers, decoder blocks, weights.

Each has a function that reads it and a type for fields. Where conditions files have JSON's own forms, the
type takes them too: 224 or [64, 96] for a size, [20, 80] for a range, ["layer2", "layer3"] for layers.
"""

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

LAST_HALF, FULL_ROW, LEARNED, AUTO_LAYERS = "last-half", "full", "learned", "auto"
NO_CROP, NO_CONTEXT = "none", "0"
GROUPS = 2
"""Groups of encoder layers that the decoder rebuilds."""
DEEPEST_DECODER, LAST_LAYER, LARGEST_SIDE = 100, 9999, 4096
"""Limits that keep a slip of the hand from asking for more than any machine has."""


def names_in(text: str) -> tuple[str, ...]:
    """Return the names of a comma-separated list.

    >>> names_in("A, B")
    ('A', 'B')
    """
    return tuple(name.strip() for name in text.split(",") if name.strip())


def names_once(text: str) -> tuple[str, ...]:
    """Return the names of a comma-separated list that must hold at least one, and each once."""
    names = names_in(text)
    if not names or len(set(names)) < len(names):
        raise ValueError("expected one or more, each once")
    return names


def numbers_once(text: str) -> tuple[int, ...]:
    """Return the whole numbers of such a list, in its order.

    >>> numbers_once("43, 42")
    (43, 42)
    """
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


def _ascending(text: str) -> list[int]:
    """Return ascending whole numbers, none if ``text`` holds anything else."""
    parts = text.replace("+", ",").split(",")
    numbers = [int(part) for part in parts if part.strip().isdecimal()]
    ordered = len(numbers) == len(parts) and sorted(set(numbers)) == numbers
    return numbers if ordered and numbers[-1] <= LAST_LAYER else []


def layers_of(text: str) -> list[int]:
    """Return the layer numbers of "2,3", or "2+3" inside a list, from 0, ascending.

    >>> layers_of("2,3"), layers_of("2+3")
    ([2, 3], [2, 3])
    """
    if numbers := _ascending(text):
        return numbers
    raise ValueError(f"{text!r} names no layers: write {AUTO_LAYERS}, or ascending numbers such as 2,3")


def context_of(text: str) -> tuple[int, ...]:
    """Return the half-widths of "2" or "2,3"; "0" is none.

    >>> context_of("2,3"), context_of("0")
    ((2, 3), ())
    """
    widths = _ascending(text)
    if text != NO_CONTEXT and not all(widths or [0]):
        raise ValueError(f"{text!r}: write half-widths of 1 or more such as 2,3, or {NO_CONTEXT} for none")
    return () if text == NO_CONTEXT else tuple(widths)


def _numbers(text: str, separator: str) -> list[float]:
    """Return finite numbers, none if ``text`` holds anything else."""
    try:
        numbers = [float(part) for part in text.split(separator)]
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def weights_of(text: str) -> list[float]:
    """Return the group weights of ".35,.65", scaled to the sum 1.

    >>> weights_of("1,3")
    [0.25, 0.75]
    """
    numbers = _numbers(text, ",")
    if len(numbers) != GROUPS or min(numbers) < 0 or sum(numbers) <= 0:
        raise ValueError(f"{text!r}: write {LEARNED}, or {GROUPS} weights of 0 or more such as .35,.65")
    return [number / sum(numbers) for number in numbers]


def range_of(text: str) -> tuple[float, float]:
    """Return the ends of "20-80".

    >>> range_of("0.35-0.67")
    (0.35, 0.67)
    """
    ends = _numbers(text, "-")
    if len(ends) not in (1, 2) or not 0 < ends[0] <= ends[-1]:
        raise ValueError(f"{text!r} is no range: write LOW-HIGH above 0, such as 20-80")
    return ends[0], ends[-1]


def size_of(text: str) -> tuple[int, int]:
    """Return (height, width) of "392" or "248x96", at most 4096 pixels each.

    >>> size_of("392"), size_of("248x96")
    ((392, 392), (248, 96))
    """
    sides = text.lower().split("x")
    if len(sides) in (1, 2) and all(side.isdecimal() and 0 < int(side) <= LARGEST_SIDE for side in sides):
        return int(sides[0]), int(sides[-1])
    raise ValueError(
        f"{text!r} is not a size: write pixels up to {LARGEST_SIDE} such as 392, or HEIGHTxWIDTH as 248x96"
    )


# ---- types of fields ----


def _says(read: Callable[[str], object], *words: str) -> AfterValidator:
    """Leave a text as it is if it is one of ``words`` or can be read."""

    def check(text: str) -> str:
        if text not in words:
            read(text)
        return text

    return AfterValidator(check)


def numbers_as_text(separator: str, *, pair: bool = False) -> BeforeValidator:
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


Number = numbers_as_text("")
Size = Annotated[str, numbers_as_text("x", pair=True), AfterValidator(_shortest_size)]
Crop = Annotated[
    str,
    numbers_as_text("x", pair=True),
    AfterValidator(lambda text: text if text == NO_CROP else _shortest_size(text)),
]
Range = Annotated[str, numbers_as_text("-", pair=True), _says(range_of)]
WholeRange = Annotated[str, numbers_as_text("-", pair=True), _says(_whole_range)]
Layers = Annotated[
    str,
    numbers_as_text(","),
    BeforeValidator(_bare_layers, json_schema_input_type=int | str | list[int | str]),
    _says(layers_of, AUTO_LAYERS),
]
Context = Annotated[str, numbers_as_text(","), _says(context_of)]
Blocks = Annotated[
    str, numbers_as_text(","), _says(lambda text: blocks_of(text, depth=DEEPEST_DECODER), LAST_HALF)
]
Weights = Annotated[str, numbers_as_text(","), _says(weights_of, LEARNED)]
Radius = Annotated[str, Number, _says(_radius, FULL_ROW)]
Gpu = Annotated[str, Number, Field(pattern=r"^(auto|cpu|\d{1,3})$")]
