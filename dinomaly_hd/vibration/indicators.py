"""The usual condition indicators of gears: a baseline beside any detector.

Sources: Lebold et al. 2000 (definitions, signals, level of the side bands), Stewart 1977 (FM0, FM4), Martin
1989 (M6A), Zakrajsek, Townsend and Decker 1993 (NA4).
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import fft, stats

from dinomaly_hd.vibration.averaging import Average, without_mesh
from dinomaly_hd.vibration.teeth import Pair

Floats = NDArray[np.float64]

MESH_HARMONICS = 3


def indicators(average: Average, pair: Pair, *, powers: list[float]) -> dict[str, float]:
    """Return one map's indicators.

    ``powers`` are the residual signals' of all maps before, which NA4 compares with; this one's is added.
    """
    residual_T = without_mesh(average.mean_T, pair, signal="residual")
    difference_T = without_mesh(average.mean_T, pair, signal="difference")
    powers.append(float(np.square(residual_T).mean()))
    mesh, sides = lines(average.mean_T, pair)
    return {
        **raw_indicators(average),
        # Peak to peak over the mesh: rises where one tooth breaks the pattern.
        "fm0": ratio(float(np.ptp(average.mean_T)), float(mesh.sum())),
        # Kurtosis of the difference signal: peaks of one or two teeth.
        "fm4": moment(difference_T, 4),
        # The same of the residual signal over the mean power up to now: goes on rising as damage spreads.
        "na4": ratio(float(np.mean(residual_T**4)), float(np.mean(powers)) ** 2),
        # The sixth moment, more sensitive to peaks.
        "m6a": moment(difference_T, 6),
        "sideband_level": ratio(float(sides.sum()), float(average.mean_T.std())),
    }


def raw_indicators(average: Average) -> dict[str, float]:
    """Return RMS, kurtosis (3 of Gaussian noise) and crest factor (peak over RMS)."""
    first, second, third, fourth = average.powers
    variance = second - first**2
    central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    rms = math.sqrt(second)
    return {"rms": rms, "kurtosis": ratio(central, variance**2), "crest_factor": ratio(average.peak, rms)}


def lines(mean_T: Floats, pair: Pair) -> tuple[Floats, Floats]:
    """Return the amplitudes of the mesh's harmonics, and of the first side bands of the mesh itself."""
    amplitude = 2 * np.abs(fft.rfft(mean_T)) / len(mean_T)
    mesh = [order * pair.period for order in range(1, MESH_HARMONICS + 1)]
    sides = [pair.period + side * turns for turns in pair.turns for side in (1, -1)]
    return amplitude[[line for line in mesh if line < len(amplitude)]], amplitude[sides]


def moment(signal_T: Floats, order: int) -> float:
    """Return a signal's central moment over that power of its standard deviation."""
    return ratio(float(stats.moment(signal_T, order)), float(signal_T.std()) ** order)


def ratio(value: float, unit: float) -> float:
    return value / unit if unit > 0 else 0.0


def row_contrast(map_RC: NDArray[np.floating]) -> Floats:
    """Return by how many standard errors each row's mean (R,) lies above the median of all rows.

    The standard error is that of a mean over C cells which spread about their rows as they do.
    """
    rows = np.asarray(map_RC, np.float64)
    mean_R = rows.mean(axis=1)
    error = float((rows - mean_R[:, None]).std()) / math.sqrt(rows.shape[1])
    return (mean_R - np.median(mean_R)) / error if error > 0 else np.zeros(len(rows))
