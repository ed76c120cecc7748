"""What a drill returns, and how it counts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


@dataclass
class Tally:
    """How many tries of a drill held: ``held`` of ``tried``; ``failures`` says what the others did.

    ``note`` is a figure beside the count, e.g. the largest time.
    """

    tried: int = 0
    failures: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def held(self) -> int:
        """Number of tries that held."""
        return self.tried - len(self.failures)

    def add(self, what: str, reason: str | None) -> None:
        """Count one try; ``reason`` is why it did not hold, None where it did."""
        self.tried += 1
        if reason is not None:
            self.failures.append(f"{what}: {reason}")


class Drill(NamedTuple):
    """One promise and what tries it.

    Attributes:
        number: Row of the table of promises.
        promise: In a few words.
        run: Takes an empty folder and whether to run at full size.
    """

    number: int
    promise: str
    run: Callable[[Path, bool], Tally]
