"""What becomes of memory that a step frees: kept for the next one."""

import ctypes

from dinomaly_hd.models.fast import kernels

# mallopt(3) of glibc. It takes no larger MMAP_THRESHOLD; blocks above it are the system's own in any case.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT_BYTES, LARGEST_BLOCK = 128 * 2**20, 32 * 2**20


def keep_freed_memory() -> None:
    """Let this process keep 128 MiB of what it frees; elsewhere than on glibc, or with ``plain``, do nothing.

    By itself glibc gives the end of its heap back at twice the largest block freed so far, and the system
    clears and maps each page anew: with the quick preset 8,700 pages a training step, 13,000 a batch encoded.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and kernels() != "plain":
        mallopt(MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(TRIM_THRESHOLD, KEPT_BYTES)
