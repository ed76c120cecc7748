"""How exact a cell is, how faint a band shows, and how long a record must be, before anything is trained.

A cell is the RMS of one mesh of the synchronous average. Let the mesh have the amplitude a and be seen in n
independent samples (the sampling rate over the meshes a second), the noise have the standard deviation s a
sample, and P periods be averaged, which leaves s / sqrt(P) =: e (McFadden 1987). The mean of (a w + noise)^2
over n samples, w of power 1, has the mean a^2 + e^2 and the variance (4 a^2 e^2 + 2 e^4) / n, hence its root

    floor           sqrt(a^2 + e^2)
    standard error  e sqrt(a^2 + e^2 / 2) / sqrt(n (a^2 + e^2))

and the mean over a row of C cells 1 / sqrt(C) of that error. Noise is taken as white; what differs from tooth
to tooth in healthy gears is not in it.
"""

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dinomaly_hd.evaluation.plots import CURVE_COLOURS, new_figure
from dinomaly_hd.vibration.teeth import Pair

Floats = NDArray[np.float64]

STANDARD_ERRORS = 4.0
"""By how many a row must stand out to be seen: noise alone does so in one of 31 rows in a thousand maps."""
MOST_PERIODS = 100_000


class Precision(NamedTuple):
    """A cell's expected value and standard error, and the least relative raise of a row that shows."""

    floor: Floats
    error: Floats
    faintest: Floats


def precision(level: object, *, noise: float, samples: float, periods: object, columns: int) -> Precision:
    """Return the precision of cells of amplitude ``level``; level or periods may be arrays.

    ``noise`` is the standard deviation of one sample, ``samples`` how many a mesh has, ``columns`` a row.
    """
    a2 = np.square(np.asarray(level, np.float64))
    e2 = noise**2 / np.asarray(periods, np.float64)
    floor = np.sqrt(a2 + e2)
    error = np.sqrt(e2 * (a2 + e2 / 2) / (samples * (a2 + e2)))
    seen = floor + STANDARD_ERRORS * error / np.sqrt(columns)
    return Precision(floor, error, np.sqrt((seen**2 - e2) / a2) - 1)


class Plan(NamedTuple):
    """A gear pair that is listened to: the noise is a multiple of the mean cell's amplitude."""

    columns: int
    period_s: float
    samples: float
    noise: float

    @classmethod
    def of(cls, pair: Pair, *, speed: float, rate: float, noise: float) -> "Plan":
        """Return the plan of a pair whose wheel 1 turns ``speed`` times a second."""
        meshes = speed * pair.first
        return cls(pair.shape[1], pair.period / meshes, rate / meshes, noise)

    def at(self, periods: object) -> Precision:
        return precision(1.0, noise=self.noise, samples=self.samples, periods=periods, columns=self.columns)

    def periods_for(self, severity: float) -> int | None:
        """Return the fewest periods in one map that show a band of this severity, None beyond any record."""
        shown = self.at(np.arange(1, MOST_PERIODS + 1)).faintest <= severity
        return int(np.argmax(shown)) + 1 if shown.any() else None

    def sentence(self, *, periods: int, severity: float) -> str:
        """Answer the question in words."""
        found, needed = self.at(periods), self.periods_for(severity)
        wanted = (
            f"no record shows a band of {severity:g}"
            if needed is None
            else f"a band of {severity:g} needs {_counted(needed)}, {needed * self.period_s:.1f} s"
        )
        return (
            f"{_counted(periods, 'hunting-tooth ')} of {self.period_s:.2f} s in a map "
            f"({periods * self.period_s:.1f} s), noise {self.noise:.2g} times a cell: "
            f"standard error of a cell {float(found.error):.3f} of it, "
            f"faintest band {float(found.faintest):.3f} of its surroundings ({STANDARD_ERRORS:g} standard "
            f"errors of a row's mean); {wanted}"
        )


def _counted(periods: int, kind: str = "") -> str:
    return f"{periods} {kind}period{'' if periods == 1 else 's'}"


def plan_figure(plan: Plan, *, periods: int, severity: float) -> Figure:
    """Draw a cell's standard error and the faintest band over the length of a map's record."""
    needed = plan.periods_for(severity) or periods
    P = np.unique(np.geomspace(1, 4 * max(periods, needed), 100).astype(np.int64))
    found = plan.at(P)
    figure = new_figure(7, 4)
    axes = figure.subplots()
    for values, label, colour in (
        (found.error, "standard error of a cell", CURVE_COLOURS[0]),
        (found.faintest, "faintest band", CURVE_COLOURS[1]),
    ):
        axes.loglog(P * plan.period_s, values, label=label, color=colour)
    axes.axvline(periods * plan.period_s, color="0.4", linestyle="--", label=_counted(periods))
    axes.axhline(severity, color="0.7", linestyle=":", label=f"band of {severity:g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    axes.set_xlabel("record of one map, seconds")
    axes.set_ylabel("share of a cell's amplitude")
    axes.set_title(f"{plan.samples:.0f} samples a mesh, noise {plan.noise:.2g} times a cell", fontsize=10)
    axes.legend(frameon=False)
    return figure
