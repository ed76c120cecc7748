"""Running out of memory is one named error, and the memory is free again."""

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dinomaly_hd.errors import OutOfMemory, reason_of

REFUSALS = (
    *("DefaultCPUAllocator", "can't allocate memory"),
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
"""What PyTorch says in a plain RuntimeError when the host, or a library on the GPU, has no memory left."""


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
