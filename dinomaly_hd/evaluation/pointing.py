"""The named tooth: which driving tooth a map points at, and against which driven teeth."""

# N images, h w pixels of a map, which are those of the input

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

TOOTH, FIRST, LAST, PERCENTILE = "tooth", "first_column", "last_column", "normal_percentile"
POINTED = (TOOTH, FIRST, LAST)
ROUNDING = 1e-6  # share of a flat map's value that float32 may make of it


def named_teeth(
    map_Nhw: NDArray[np.floating], *, usual_h: ArrayLike = 0.0, top: int = 0, left: int = 0
) -> pd.DataFrame:
    """Return ``tooth``, ``first_column``, ``last_column`` of each map, counted from 0, empty for a flat one.

    The tooth is the row whose mean is the most above what it is in normals' maps, ``usual_h``. Its columns
    are the shortest interval, which may run over the end of the row since the gear turns, with all those
    that rise above the map's median by more than half of what the row's largest does. ``top`` and ``left``
    are the map's first row and column in the input.
    """
    rows: list[tuple[Any, Any, Any]] = []
    for map_hw in map_Nhw:
        row = int((map_hw.mean(axis=1) - usual_h).argmax())
        rise_w = map_hw[row] - np.median(map_hw)
        if rise_w.max() <= ROUNDING * np.abs(map_hw).max():
            rows.append((pd.NA, pd.NA, pd.NA))
            continue
        on = np.flatnonzero(rise_w > rise_w.max() / 2)
        gap = int(np.diff(on, append=on[0] + len(rise_w)).argmax())  # the columns before it end the interval
        rows.append((top + row, left + on[(gap + 1) % len(on)], left + on[gap]))
    return pd.DataFrame(rows, columns=list(POINTED), dtype="Int64")


def is_right(tooth: Any, mask_HW: NDArray[np.bool_]) -> bool:
    """Tell whether a named tooth is the row of a fault's mask or next to it: faults leak, and gears turn."""
    if pd.isna(tooth):
        return False
    away = abs(int(tooth) - int(mask_HW.sum(axis=1).argmax()))
    return bool(min(away, len(mask_HW) - away) <= 1)


def percentiles(score_N: NDArray[np.float64], normal: ArrayLike) -> NDArray[np.float64]:
    """Return the share of normal scores below each score, per cent; NaN where there are none."""
    ascending = np.sort(normal)
    if not len(ascending):
        return np.full(len(score_N), np.nan)
    return 100 * np.searchsorted(ascending, score_N) / len(ascending)


def where_text(row: "Mapping[Any, Any] | pd.Series[Any]") -> str:
    """Return "tooth 12, columns 30-71, above 98 % of normals" of a table's row, as far as known."""
    parts = []
    if pd.notna(row[TOOTH]):
        parts.append(f"tooth {row[TOOTH]}, columns {row[FIRST]}-{row[LAST]}")
    if pd.notna(row[PERCENTILE]):
        parts.append(f"above {row[PERCENTILE]:.0f} % of normals")
    return ", ".join(parts)
