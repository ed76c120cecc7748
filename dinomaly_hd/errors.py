"""The one error tree: every failure a user can cause or meet is one of these, said in one line.

A message names the thing, the value, the rule and the way out, e.g.
``ImageError: domain_C/test/good/000017.tiff: 3 pages, expected 1``.
"""

import difflib
import os
import re
import signal
from collections.abc import Iterable
from types import FrameType
from typing import Any, ClassVar

LONGEST_LIST, LONGEST_REASON = 60, 200
# SQLAlchemy takes "/", "?" and "#" as part of one, where a page's address is at its end.
PASSWORD = re.compile(r"((?<!http)(?<!https)://[^/\s:@]*):\S*@|(://[^/\s:@]*):[^/?#\s]*@")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DinomalyHDError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the entry point returns."""

    exit_code: ClassVar[int] = 70

    def __str__(self) -> str:
        return without_passwords(super().__str__())


class ConfigError(DinomalyHDError):
    """A flag, parameter or configuration file breaks a rule."""

    exit_code = 64


class DataError(DinomalyHDError):
    """The data folder or something in it cannot be used."""

    exit_code = 65


class LayoutError(DataError):
    """The folder tree is not HDMAP's; one error lists every fault found."""


class ImageError(DataError):
    """One image cannot be used: the message holds its path and the reason."""


class EncoderError(DinomalyHDError):
    """The encoder or its weights cannot be had; the message names the ways out."""

    exit_code = 75


class CheckpointError(DinomalyHDError):
    """A checkpoint is missing, damaged, or belongs to another configuration or data set."""

    exit_code = 65


class NonFiniteError(DinomalyHDError):
    """Loss, gradient or score became NaN or infinite; the weights were not touched by it."""

    exit_code = 65


class OutputError(DinomalyHDError):
    """A result cannot be written: read-only folder, full disk."""

    exit_code = 74


class OutOfMemory(DinomalyHDError):
    """The GPU or the host had no memory left; what the work held was given back."""

    exit_code = 75


class TrackingError(DinomalyHDError):
    """The tracking server or database does not answer where it must (never during training)."""

    exit_code = 75


class ComparisonError(DinomalyHDError):
    """Some members of a comparison failed; the report on the others is written and names them."""

    exit_code = 71


class UnfitError(DinomalyHDError):
    """A check of the installation found something that has to be mended; ``code`` is its exit code."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]


class Interrupted(DinomalyHDError):
    """SIGINT, SIGTERM or SIGHUP arrived; the work done so far is on disk."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number


class SignalGuard:
    """Turn the first signal of ``SIGNALS`` into an ``Interrupted`` at the next ``check``.

    A second SIGINT or SIGTERM ends the process at once. Use as a context manager in the main thread.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "SignalGuard":
        # Under `nohup` SIGHUP is ignored from the start, and stays so.
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        heard = SIGNALS[:-1] if ignored else SIGNALS
        self._previous = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is not None:
            if number == signal.SIGHUP:  # a closed terminal sends it, and the shell in it once more
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number

    def check(self) -> None:
        """Raise ``Interrupted`` if a signal came."""
        if self.received is not None:
            raise Interrupted(self.received)


class Pruned(DinomalyHDError):
    """A study gave up a run that could not become its best; what it did so far is on disk."""


def reason_of(error: BaseException) -> str:
    """Return an error's message on one line of at most 200 characters, else its type's name."""
    text = without_passwords(str(error)).strip() or type(error).__name__
    return text.splitlines()[0][:LONGEST_REASON]


def without_passwords(text: str) -> str:
    """Return a text in which addresses show ``user:***@`` for the passwords that they hold."""
    return PASSWORD.sub(r"\1\2:***@", text)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest known name, or the list of names if none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    more = f" and {len(known) - LONGEST_LIST} more" if len(known) > LONGEST_LIST else ""
    return f" Known: {', '.join(known[:LONGEST_LIST])}{more}."
