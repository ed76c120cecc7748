"""The signal model behind the simulated Health Data Maps (spec hdmap.md, section 3): pure functions of a seed.

A gear pair meshes; mesh ``t`` joins driving tooth ``t mod 31`` and driven tooth ``t mod 95``. Its vibration energy
is a fixed signature times a texture that is correlated along ``t``, raised where a tooth is damaged, and is seen
through a sensor's noise floor. Amplitudes are in units of the warm level of a healthy recording.

Shapes: R = 31 driving teeth (rows), C = 95 driven teeth (columns), T = 2945 meshes, N images, K taps.

Every step is integer arithmetic, IEEE arithmetic or rounded: results are equal on every machine.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Condition = Literal["cold", "warm"]
Floats = NDArray[np.float64]

ROWS, COLUMNS = 31, 95
MESHES = ROWS * COLUMNS  # 31 and 95 share no factor: every pair of teeth meets once
QUANTUM = 2.0**-20

# ring-down of the structure between two meshes, and after a shock
RING_DOWN_K = (1.0, 0.75, 0.5625, 0.421875, 0.31640625, 0.2373046875, 0.177978515625)
SHOCK_DECAY_K = (1.0, 0.625, 0.375, 0.1875)
DRIFT_PERIODS = (7.3, 16.9, 37.1, 83.0)  # images; lag-1 correlation about .9
LEAK = 0.5  # the next tooth is in contact before the damaged one leaves it
RUN_LENGTH = 10  # images of one test run, hence with one damaged tooth


@dataclass(frozen=True, kw_only=True)
class Regime:
    """How a class runs in one condition: level, texture contrast and shocks, each with its spread over images."""

    level: float
    level_spread: float
    roughness: float
    roughness_spread: float
    shock: tuple[float, float]  # weakest and strongest, in units of the level


@dataclass(frozen=True, kw_only=True)
class OperatingClass:
    """Load and speed: what the gears do, whoever listens."""

    cold: Regime
    warm: Regime
    fault_level: float  # level of recordings with damage, relative to healthy ones
    fault_roughness: float


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """The path from mesh to sensor: its noise floor, and how damage passes relative to healthy meshing."""

    floor: float
    fault_level: float


@dataclass(frozen=True, kw_only=True)
class Domain:
    """An operating class heard by a sensor, with the damage's visibility along that path."""

    operating: OperatingClass
    sensor: Sensor
    shock_gain: float
    severity: tuple[float, float]  # raise of the damaged row relative to its surroundings, least and most
    gaps: int  # breaks of the band; 0 = full width
    impact: tuple[
        float, float
    ]  # knocks of the damaged tooth once the oil film is thin (warm), relative to level


CLASS_1 = OperatingClass(
    cold=Regime(level=0.69, level_spread=0.080, roughness=0.126, roughness_spread=0.22, shock=(0.6, 3.8)),
    warm=Regime(level=1.0, level_spread=0.066, roughness=0.148, roughness_spread=0.10, shock=(1.8, 3.4)),
    fault_level=1.0,
    fault_roughness=1.04,
)
CLASS_3 = OperatingClass(
    cold=Regime(level=0.705, level_spread=0.082, roughness=0.116, roughness_spread=0.22, shock=(0.6, 3.8)),
    warm=Regime(level=1.0, level_spread=0.066, roughness=0.134, roughness_spread=0.10, shock=(1.8, 3.4)),
    fault_level=1.115,
    fault_roughness=1.04,
)
SENSOR_1 = Sensor(floor=0.14, fault_level=0.80)
SENSOR_3 = Sensor(floor=0.24, fault_level=1.02)

DOMAINS = {
    "A": Domain(operating=CLASS_1, sensor=SENSOR_3, shock_gain=1.06, severity=(0.5, 0.8), gaps=0, impact=(2.0, 3.5)),
    "B": Domain(operating=CLASS_1, sensor=SENSOR_1, shock_gain=1.03, severity=(0.5, 0.7), gaps=0, impact=(0.0, 0.0)),
    "C": Domain(operating=CLASS_3, sensor=SENSOR_3, shock_gain=1.08, severity=(0.05, 0.55), gaps=3, impact=(3.9, 9.3)),
    "D": Domain(operating=CLASS_3, sensor=SENSOR_1, shock_gain=1.19, severity=(0.5, 0.8), gaps=0, impact=(2.0, 5.0)),
}


class Band(NamedTuple):
    """One damaged tooth: its row, relative raise (0.3 = 1.3 times its surroundings) and columns covered."""

    row: int
    severity: float
    length: int


class Draws:
    """Random numbers of one stream, made from raw Philox words, whose stream numpy promises to keep."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.Philox(np.random.SeedSequence(key))

    def uniform(self, size: int) -> Floats:
        """Numbers in [0, 1), multiples of 2**-53."""
        return (self._bits.random_raw(size) >> np.uint64(11)) * 2.0**-53

    def normal(self, size: int) -> Floats:
        """Standard normal to four sigma: sums of eight 16-bit integers, exact and bounded by 4.9."""
        words = self._bits.random_raw(2 * size).reshape(size, 2)
        total = np.zeros(size, np.uint64)
        for shift in (0, 16, 32, 48):
            total += ((words >> np.uint64(shift)) & np.uint64(0xFFFF)).sum(1)
        return (total.astype(np.float64) - 4.0 * 65535) / (65536 * math.sqrt(8 / 12))


class Unit(NamedTuple):
    """One gear pair: its signature as a factor per mesh position, mean about 1."""

    signature_RC: Floats


class Stream(NamedTuple):
    """What changes slowly along one recording, per image."""

    level_N: Floats
    roughness_N: Floats
    driving_NR: Floats
    driven_NC: Floats


def mesh_order() -> NDArray[np.intp]:
    """The mesh number (R, C) at which each pair of teeth meets."""
    meshes = np.arange(MESHES)
    order_RC = np.empty((ROWS, COLUMNS), np.intp)
    order_RC[meshes % ROWS, meshes % COLUMNS] = meshes
    return order_RC


MESH_RC = mesh_order()


def gear_pair(seed: int) -> Unit:
    """The unit's signature: eccentricity and tooth-to-tooth deviations of both gears."""
    return Unit(
        1.0
        + _tooth_deviations(Draws(seed, 0, 0), ROWS)[:, None]
        + _tooth_deviations(Draws(seed, 0, 1), COLUMNS)
    )


def _tooth_deviations(draws: Draws, teeth: int) -> Floats:
    (phase,) = draws.uniform(1)
    noise = draws.normal(teeth)
    ecc = [math.cos(2 * math.pi * (k / teeth + phase)) for k in range(teeth)]
    dev = np.array([round(0.06 * e / QUANTUM) * QUANTUM for e in ecc]) + 0.06 * noise
    return dev - math.fsum(dev) / teeth


def drift(draws: Draws, images: int) -> Floats:
    """A slow wander (N,), variance 1: waves of fixed periods, so that its spread depends little on the seed."""
    phases = draws.uniform(len(DRIFT_PERIODS))
    scale = math.sqrt(2 / len(DRIFT_PERIODS))
    waves = [
        sum(
            math.sin(2 * math.pi * (i / period + phase))
            for period, phase in zip(DRIFT_PERIODS, phases, strict=True)
        )
        for i in range(images)
    ]
    return np.round(scale * np.array(waves) / QUANTUM) * QUANTUM


def tooth_wander(draws: Draws, images: int, teeth: int) -> Floats:
    """Unit-variance tooth deviations (N, teeth) that share three quarters with the neighbouring image."""
    e = draws.normal((images + 3) * teeth).reshape(images + 3, teeth)
    return 0.5 * (e[:-3] + e[1:-2] + e[2:-1] + e[3:])


WANDER = {"row": 0.07, "col": 0.04}
P = dict(knock=dict(cold=.30, warm=1.0), shocks=3, dmg=dict(cold=1.0, warm=1.4))


def recording(regime: Regime, images, *key, level=1.0, rough=1.0) -> Stream:
    d1, d2 = drift(Draws(*key, 0), images), drift(Draws(*key, 1), images)
    return Stream(
        level * regime.level * (1 + regime.level_spread * d1),
        rough * regime.roughness * (1 + regime.roughness_spread * d2),
        WANDER["row"] * tooth_wander(Draws(*key, 2), images, ROWS),
        WANDER["col"] * tooth_wander(Draws(*key, 3), images, COLUMNS),
    )


def _along_meshes(noise_T, taps):
    out = taps[0] * noise_T
    for k in range(1, len(taps)):
        out += taps[k] * np.concatenate((noise_T[-k:], noise_T[:-k]))
    return out


NORM = 1 / math.sqrt(math.fsum(t * t for t in RING_DOWN_K))


def texture(draws: Draws, roughness: float) -> Floats:
    return 1.0 + 2*roughness * NORM * _along_meshes(draws.normal(MESHES), RING_DOWN_K)


def shocks(draws, weakest, strongest, n):
    impulse = np.zeros(MESHES)
    sector = MESHES // n
    where = np.arange(n) * sector + (draws.uniform(n) * (sector - 8)).astype(int)
    u = draws.uniform(2)
    bell = (u[0] + u[1]) / 2
    impulse[where] = (weakest + (strongest - weakest) * bell) * np.array([1, .75, .5])
    return _along_meshes(impulse, SHOCK_DECAY_K)


def band(draws, domain, row):
    u = draws.uniform(2 + 2 * domain.gaps)
    lo, hi = domain.severity
    severity = lo + (hi - lo) * u[0]
    cover = np.ones(COLUMNS, bool)
    for g in range(domain.gaps):
        start = int(u[2 + 2 * g] * COLUMNS)
        length = 4 + int(u[3 + 2 * g] * 12)
        cover[(start + np.arange(length)) % COLUMNS] = False
    return severity, cover


def simulate_stream(domain, unit, seed, dkey, split, cond, images, fault):
    op, sen = domain.operating, domain.sensor
    reg = getattr(op, cond)
    key = (seed, dkey, split, cond == "warm")
    st = recording(
        reg,
        images,
        *key,
        level=op.fault_level * sen.fault_level if fault else 1.0,
        rough=op.fault_roughness if fault else 1.0,
    )
    out = np.empty((images, ROWS, COLUMNS))
    masks = np.zeros((images, ROWS, COLUMNS), np.uint8)
    bands = []
    for i in range(images):
        d = Draws(*key, 4, i)
        tex = texture(d, st.roughness_N[i])[MESH_RC]
        sh = shocks(d, domain.shock_gain * reg.shock[0], domain.shock_gain * reg.shock[1], P["shocks"])[
            MESH_RC
        ]
        y = tex * (unit.signature_RC + st.driving_NR[i][:, None] + st.driven_NC[i])
        imp = np.zeros_like(y)
        if fault:
            row = int(Draws(*key, 5, i // RUN_LENGTH).uniform(1)[0] * ROWS)
            sev, cover = band(d, domain, row)
            sev = sev * P['dmg'][cond]
            raise_ = np.zeros((ROWS, COLUMNS))
            raise_[row, cover] = sev
            raise_[(row + 1) % ROWS] += LEAK * np.roll(raise_[row], 1)
            masks[i] = raise_ > 0
            y = y * (1 + raise_)
            if True:
                u = d.uniform(2)
                cols = np.flatnonzero(cover)
                c = cols[int(u[0] * len(cols))]
                lo, hi = domain.impact
                imp = np.zeros(MESHES)
                imp[MESH_RC[row, c]] = P['knock'][cond] * (lo + (hi - lo) * u[1])
                imp = _along_meshes(imp, SHOCK_DECAY_K)[MESH_RC]
            bands.append(Band(row, sev, int(cover.sum())))
        lev = st.level_N[i]
        base = reg.level * (op.fault_level * sen.fault_level if fault else 1.0)
        out[i] = np.sqrt((lev * y) ** 2 + (base * sh) ** 2 + (lev * imp) ** 2 + sen.floor**2)
    return out, masks, bands
