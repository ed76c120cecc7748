"""What a drill returns, and how it counts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


@dataclass
class Tally:
    """How many tries of a drill held; ``failures`` says what the others did, ``note`` a figure beside it."""

    tried: int = 0
    failures: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def held(self) -> int:
        return self.tried - len(self.failures)

    def add(self, what: str, reason: str | None) -> None:
        """Count one try; ``reason`` is why it did not hold, None where it did."""
        self.tried += 1
        if reason is not None:
            self.failures.append(f"{what}: {reason}")


class Drill(NamedTuple):
    """A promise's number, its words, and what tries it in an empty folder, at full size or fast."""

    number: int
    promise: str
    run: Callable[[Path, bool], Tally]
