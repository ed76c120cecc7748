"""Which teeth of a gear pair are in mesh when, and the map's cell of each such pair.

Mesh ``t`` joins tooth ``t mod N1`` of wheel 1 with tooth ``t mod N2`` of wheel 2, counted from those that are
in mesh at the first pulse. After lcm(N1, N2) meshes, the hunting-tooth period, the same two meet again.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dinomaly_hd.errors import ConfigError


class Pair(NamedTuple):
    """Tooth counts of wheel 1, whose teeth are a map's rows, and of wheel 2, whose teeth are its columns."""

    first: int
    second: int

    @property
    def period(self) -> int:
        """Meshes of a hunting-tooth period."""
        return math.lcm(self.first, self.second)

    @property
    def turns(self) -> tuple[int, int]:
        """Turns of either wheel in a period."""
        return self.period // self.first, self.period // self.second

    @property
    def common(self) -> int:
        return math.gcd(self.first, self.second)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a map: N1 x N2, or the folded ones where the counts share a factor."""
        return self.first, self.second // self.common

    def check(self, *, fold: bool) -> None:
        """Refuse counts with a common factor g, unless folded: teeth i, j with i - j mod g > 0 never meet."""
        if fold or self.common == 1:
            return
        rows, columns = self.shape
        raise ConfigError(
            f"teeth={self.first},{self.second}: with the common factor {self.common} only {self.period} of "
            f"{self.first * self.second} cells are ever in mesh, teeth i and j where i mod {self.common} = "
            f"j mod {self.common}; fold=true lays these out as {rows} x {columns}, column k of row i being "
            f"tooth {self.common} k + i mod {self.common} of wheel 2"
        )

    def cells(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return row and column of each mesh of a period; every cell is taken once.

        >>> [values.tolist() for values in Pair(2, 4).cells()]
        [[0, 1, 0, 1], [0, 0, 1, 1]]
        """
        mesh_T = np.arange(self.period)
        return mesh_T % self.first, mesh_T % self.second // self.common

    def lay_out(self, values_T: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the map (rows, columns) of one number a mesh."""
        map_RC = np.empty(self.shape, np.float32)
        map_RC[self.cells()] = values_T
        return map_RC
