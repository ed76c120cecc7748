"""Whether the mesh stands where the tooth count says: lines of the order spectrum, in turns of wheel 1."""

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from dinomaly_hd.errors import DataError

Floats = NDArray[np.float64]

FEWEST_TEETH = 6
HARMONICS = 3
SIDE = 3  # orders beside a harmonic where its side bands stand: a mesh line is higher than these
VISIBLE = 50.0  # power over the median's: noise alone reaches 16 once in 1e5 orders
MOST_TURNS = 100


def line_power(signal_T: Floats, *, turns: int) -> Floats:
    """Return the power at each whole order, over that of the spectrum between the lines around it.

    ``signal_T`` are whole turns of wheel 1 at equal angles.
    """
    power = np.square(np.abs(fft.rfft((signal_T - signal_T.mean()) * np.hanning(len(signal_T)))))
    first = turns - turns // 2  # half way between orders 0 and 1
    orders = (len(power) - first) // turns
    around = power[first : first + orders * turns].reshape(orders, turns)
    floor = np.median(around, axis=1)
    line = around[:, turns // 2 - 1 : turns // 2 + 2].max(axis=1)  # a bin to either side
    return np.concatenate([[0.0], line / np.maximum(floor, np.finfo(float).tiny)])


def check_mesh_order(signal_T: Floats, *, turns: int, teeth: int) -> None:
    """Refuse a tooth count where no mesh line stands though one stands elsewhere, and say which would fit.

    A mesh line is visible and higher than its side bands, at the count or one of its next harmonics. Where no
    count has one, nothing is said: a good gear may be quiet.
    """
    line = line_power(signal_T, turns=turns)

    def fits(count: int) -> float:
        own = {
            order: line[order]
            for order in range(count, min(len(line), HARMONICS * count + 1), count)
            if line[order] > VISIBLE and line[order] >= line[max(1, order - SIDE) : order + SIDE + 1].max()
        }
        # One harmonic alone may be another pair's line.
        return float(np.log(list(own.values())).sum()) if count in own or len(own) > 1 else 0.0

    if fits(teeth):
        return
    found = {count: fits(count) for count in range(FEWEST_TEETH, len(line) // 2)}
    best = max(found, key=lambda count: found[count], default=0)
    if best and found[best]:
        raise DataError(
            f"teeth: no mesh line at order {teeth} of wheel 1 or its harmonics, but one at order {best}: "
            f"{best} teeth would fit; correct teeth, tachometer_shaft or pulses_per_turn"
        )
