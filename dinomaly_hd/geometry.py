"""Where things lie on a map: shared by what crops (models) and what draws (evaluation)."""

from typing import NamedTuple


class Box(NamedTuple):
    """A part of a map in its own pixels, [top, bottom) x [left, right); borders may lie inside pixels."""

    top: float
    bottom: float
    left: float
    right: float
