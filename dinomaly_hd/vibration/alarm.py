"""An alarm level that keeps to a number of false alarms a day, and where a course of scores changes."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dinomaly_hd.errors import ConfigError, DataError
from dinomaly_hd.vibration.readers import library

Floats = NDArray[np.float64]

DAY_S = 86_400.0
TAIL = 0.1  # of the normals: what lies beyond their 90 % quantile tells how fast the tail falls
FEWEST_NORMALS = 10
PENALTY = 3.0  # variances times log(n) that a change must save: one at most in a hundred steady courses


class Level(NamedTuple):
    """A threshold; ``extrapolated`` where it lies beyond all normals, on the shape of their tail."""

    value: float
    extrapolated: bool


def alarm_level(normals: Floats, *, false_alarms: float, maps_a_day: float) -> Level:
    """Return the score that normals exceed ``false_alarms`` times a day.

    Up to a tenth of the normals it is their quantile; beyond, the excess over that is taken as exponential
    (peaks over threshold, Pickands 1975, with shape 0).
    """
    if len(normals) < FEWEST_NORMALS:
        raise DataError(
            f"{len(normals)} scores of normals, an alarm level needs {FEWEST_NORMALS} or more: "
            "more training maps, or train with a larger val_split_ratio"
        )
    share = false_alarms / maps_a_day
    if not 0 < share < 1:
        raise ConfigError(
            f"false_alarms={false_alarms:g}: expected above 0 and below the {maps_a_day:.0f} maps of a day"
        )
    if share >= TAIL:
        return Level(float(np.quantile(normals, 1 - share)), False)
    start = float(np.quantile(normals, 1 - TAIL))
    beyond = normals[normals > start]
    excess = float((beyond - start).mean()) if len(beyond) else 0.0
    return Level(start + excess * math.log(TAIL / share), share * len(normals) < 1)


def change_points(scores: Floats, *, noise: float) -> list[int]:
    """Return the positions at which the mean changes (PELT, Killick 2012, by ruptures).

    ``noise`` is the standard deviation of scores while nothing changes.
    """
    rpt = library("ruptures")
    search = rpt.Pelt(model="l2", min_size=3, jump=1).fit(scores / noise)
    return [int(end) for end in search.predict(pen=PENALTY * math.log(len(scores)))[:-1]]
