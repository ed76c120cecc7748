"""The drills: each tries to break one promise of docs/reliability.md, in a fast or full size."""

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


def not_refused(call: Callable[[], object], named: str, *errors: type[Exception]) -> str | None:
    """Return what else came than one of these errors that names the cause; None where it came."""
    try:
        found = call()
    except errors as error:
        return None if named in str(error) else f"{named} is not named: {error}"
    except Exception as error:  # any other exception is what the drill looks for
        return repr(error)
    return f"taken: {found!r}"[:200]
