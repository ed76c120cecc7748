"""Random numbers that are equal on every machine and for every numpy: made from raw Philox words.

Numpy promises to keep a bit generator's words, but not what its distributions make of them.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Key(NamedTuple):
    """Names one random stream; every field below 2**32."""

    seed: int
    domain: int = 0
    split: int = 0
    condition: int = 0
    stream: int = 0
    number: int = 0


class Draws:
    """The random numbers of one stream, in order."""

    def __init__(self, key: Key) -> None:
        self._bits = np.random.Philox(np.random.SeedSequence(tuple(key)))

    def uniform(self, size: int) -> Floats:
        """Multiples of 2**-53 in [0, 1)."""
        return (self._words(size) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, size: int) -> Floats:
        """Standard normal numbers as sums of eight 16-bit integers: exact, and bounded by 4.9."""
        words = self._words(2 * size).reshape(size, 2)
        total = np.zeros(size, np.uint64)
        for shift in (0, 16, 32, 48):
            total += ((words >> np.uint64(shift)) & np.uint64(0xFFFF)).sum(axis=1)
        return (total.astype(np.float64) - 4.0 * 65535) / (65536 * math.sqrt(8 / 12))

    def _words(self, size: int) -> NDArray[np.uint64]:
        return np.asarray(self._bits.random_raw(size), np.uint64)
