"""What happens when memory runs out: one named error that says what to try, and the memory comes back."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from dinomaly_hd.errors import OutOfMemory, reason_of

Result = TypeVar("Result")

REFUSALS = (
    *("DefaultCPUAllocator", "can't allocate memory"),
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
"""What PyTorch says in a plain RuntimeError when the host, or a library on the GPU, has no memory left."""


def named_when_exhausted(work: Callable[[], Result], *, device: torch.device, hint: str) -> Result:
    """Do the work; running out of GPU or host memory becomes one error, and what the work held is free again.

    Args:
        work: What may need too much.
        device: Where it runs.
        hint: What to try next.

    Raises:
        OutOfMemory: Names the device, and what to try next.
    """
    try:
        return work()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_exhaustion(error):
            raise
        reason = reason_of(error)
    # Raised outside the handler: a chained error would keep the failed work's frames, and they its tensors.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    raise OutOfMemory(f"out of memory on {device}: {reason}; {hint}")


def is_exhaustion(error: BaseException) -> bool:
    """Tell whether an error says that there is no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in REFUSALS)


def way_out(batch_size: int | None) -> str:
    """Return what a run may try next; ``batch_size`` is that of training, None where there is none."""
    if batch_size is None or batch_size <= 1:
        return "try a smaller image_size and crop, or a device with more memory (gpu=cpu)"
    return f"try batch_size={batch_size // 2}"
