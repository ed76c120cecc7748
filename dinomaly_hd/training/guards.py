"""What protects a run: signals end it between batches, and running out of memory is one named error."""

import gc
import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import torch

from dinomaly_hd.errors import Interrupted, OutOfMemory, reason_of

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REFUSALS = (
    *("DefaultCPUAllocator", "can't allocate memory"),
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
"""What PyTorch says in a plain RuntimeError when the host, or a library on the GPU, has no memory left."""


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


@contextmanager
def named_when_exhausted(device: torch.device, *, hint: str) -> Iterator[None]:
    """Turn running out of GPU or host memory into one error with ``hint``; the memory is free again."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_exhaustion(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold what the failed work held
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory(f"out of memory on {device}: {reason_of(error)}; {hint}") from None


def way_out(batch_size: int | None) -> str:
    """Return what a run may try next; ``batch_size`` is that of training, None where there is none."""
    if batch_size is None or batch_size <= 1:
        return "try a smaller image_size and crop, or a device with more memory (gpu=cpu)"
    return f"try batch_size={batch_size // 2}"


def is_exhaustion(error: BaseException) -> bool:
    """Tell whether an error says that there is no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in REFUSALS)
