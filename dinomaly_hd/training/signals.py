"""A signal ends a run between batches, without an import of torch: entry points begin with this."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any

from dinomaly_hd.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SignalGuard:
    """Turn the first SIGINT or SIGTERM into an ``Interrupted`` at the next ``check``.

    A second signal ends the process at once. Use as a context manager in the main thread.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "SignalGuard":
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number

    def check(self) -> None:
        """Raise ``Interrupted`` if a signal came."""
        if self.received is not None:
            raise Interrupted(self.received)
