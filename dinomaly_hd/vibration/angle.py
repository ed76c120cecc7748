"""From tachometer pulses to the time of every mesh: the shaft's angle by a monotone interpolation."""

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import median_filter

from dinomaly_hd.errors import DataError

Floats = NDArray[np.float64]

HYSTERESIS = 0.1  # of the channel's range, below the level, before the next pulse counts
NEIGHBOURS = 11  # intervals whose median says how long one should be
LONGEST, SHORTEST = 1.5, 0.6  # of that: beyond, a pulse is missing or doubled
STANDSTILL = 0.25  # of the median speed


class Clock(NamedTuple):
    """The time in seconds of a mesh number, and how many whole meshes there are from the first pulse on."""

    time_of: Callable[[Floats], Floats]
    meshes: int


def pulse_times(blocks: Iterable[Floats], *, rate: float, level: float | None) -> Floats:
    """Return when a channel rises through a level, in seconds, between samples by a straight line.

    ``level`` None is half way between the extremes of the first block.
    """
    times, was_high, before, start, reset = [np.empty(0)], True, 0.0, 0, 0.0
    threshold = 0.0
    for block in blocks:
        if start == 0:
            low, high = float(block.min()), float(block.max())
            threshold = (low + high) / 2 if level is None else level
            reset = threshold - HYSTERESIS * (high - low)
        # Noise on an edge crosses the level more than once: between two pulses lies a sample well below it.
        decided = np.flatnonzero((block >= threshold) | (block < reset))
        is_high = block[decided] >= threshold
        rises = decided[is_high & ~np.concatenate([[was_high], is_high[:-1]])]
        below, above = np.concatenate([[before], block[:-1]])[rises], block[rises]
        times.append((start + rises - 1 + (threshold - below) / (above - below)) / rate)
        was_high, before = bool(is_high[-1]) if len(decided) else was_high, float(block[-1])
        start += len(block)
    return np.concatenate(times)


def check_pulses(times: Floats, *, name: str) -> None:
    """Refuse pulses that give no angle: none, going backwards, missing, doubled, or at a standstill."""
    if len(times) < 3:
        raise DataError(f"{name}: {len(times)} pulses, expected 3 or more; is tachometer_level right?")
    gaps = np.diff(times)
    if (gaps <= 0).any():
        place = int(np.argmax(gaps <= 0))
        raise DataError(
            f"{name}: pulse {place + 1} at {times[place + 1]:.4f} s is not after pulse {place} at "
            f"{times[place]:.4f} s; times must ascend, a shaft that reverses has no map: cut the record there"
        )
    # A channel cannot show which way the shaft turns, but it cannot turn back without coming to a stop.
    slow = gaps > np.median(gaps) / STANDSTILL
    if (slow[1:] & slow[:-1]).any():
        place = int(np.argmax(slow[1:] & slow[:-1]))
        raise DataError(
            f"{name}: the shaft nearly stands still at {times[place]:.4f} s and may reverse; "
            "cut the record there"
        )
    share = gaps / median_filter(gaps, size=min(NEIGHBOURS, len(gaps)), mode="nearest")
    for wrong, what in ((share > LONGEST, "missing"), (share < SHORTEST, "doubled")):
        if wrong.any():
            place = int(np.argmax(wrong))
            raise DataError(
                f"{name}: {int(wrong.sum())} pulses {what}, the first at {times[place]:.4f} s: an interval "
                f"{share[place]:.2f} times its neighbours'; set tachometer_level or cut the record there"
            )


def clock_of_pulses(times: Floats, *, pulses_per_turn: int, shaft: Fraction, teeth: int) -> Clock:
    """Return the clock of a wheel that turns ``shaft`` times a turn of the tachometer's shaft.

    Time over angle by Fritsch and Carlson's monotone cubic (PCHIP): it never runs backwards between pulses.
    """
    mesh = np.arange(len(times)) * (float(shaft) * teeth / pulses_per_turn)
    # The last mesh number may miss the whole one that it stands for by rounding.
    return Clock(PchipInterpolator(mesh, times), int(mesh[-1] + 1e-6))


def clock_of_speed(speed: float, *, seconds: float, teeth: int) -> Clock:
    """Return the clock of a wheel that turns steadily; mesh 0 is that of the first sample."""
    return Clock(lambda mesh: mesh / (speed * teeth), int(seconds * speed * teeth + 1e-6))
