"""The signal model behind the simulated maps: pure functions of a seed (spec hdmap.md, section 3).

Mesh ``t`` joins driving tooth ``t mod 31`` and driven tooth ``t mod 95``. The amplitude of a mesh is
the unit's signature times a texture correlated along ``t``, raised where a tooth is damaged; shocks,
knocks and the sensor's noise floor add in energy. Amplitudes are in units of the warm level of healthy
recordings.

Shapes: N images, R = 31 driving teeth (rows), C = 95 driven teeth (columns), T = 2945 meshes, K filter taps.

Every step is integer arithmetic, elementwise IEEE arithmetic, or rounded to ``QUANTUM``, so that the maps are
equal on every machine.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dinomaly_hd.data.simulator.settings import DOMAINS, Condition, Domain, Range, Regime

Floats = NDArray[np.float64]

ROWS, COLUMNS = 31, 95
MESHES = ROWS * COLUMNS  # 31 and 95 share no factor, so every pair of teeth meets once
QUANTUM = 2.0**-20

# Dyadic taps: (3/4)**k for the structure ringing from mesh to mesh, a faster decay after a shock.
RING_DOWN_K = (1.0, 0.75, 0.5625, 0.421875, 0.31640625, 0.2373046875, 0.177978515625)
SHOCK_DECAY_K = (1.0, 0.625, 0.375, 0.1875)
SHOCK_RANKS = (1.0, 0.75, 0.5)  # the strongest shock of an image and the two after it
ECCENTRICITY, TOOTH_DEVIATION = 0.06, 0.06
DRIVING_WANDER, DRIVEN_WANDER = 0.07, 0.04  # how much the deviations change from map to map
DRIFT_PERIODS = (7.3, 16.9, 37.1, 83.0)  # images
LEAK = 0.5  # the next tooth is in contact before the damaged one leaves
GAP_LENGTHS = (4, 16)  # columns: least, and one more than most
RUN_LENGTH = 10  # consecutive fault images of one test run, which share the damaged tooth


class Key(NamedTuple):
    """Names one random stream; every field below 2**32."""

    seed: int
    domain: int = 0
    split: int = 0
    condition: int = 0
    stream: int = 0
    number: int = 0


class Draws:
    """The random numbers of one stream, in order: equal on every machine and for every numpy.

    Made from raw Philox words: numpy promises to keep those, but not what its distributions make of them.
    """

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


class Band(NamedTuple):
    """A fault as the map shows it: the damaged tooth's row, its relative raise (0.3 = 1.3 times its
    surroundings) and the number of columns that it covers in that row."""

    row: int
    severity: float
    length: int


class Recording(NamedTuple):
    """Maps of one unit in one condition, in order of time; masks are 1 on the damaged rows."""

    condition: Condition
    maps_NRC: Floats
    masks_NRC: NDArray[np.uint8]
    bands: tuple[Band, ...]  # one per image, empty for a healthy unit


# Values of ``Key.stream``; the unit's own streams have ``Key.domain`` 0.
LEVEL, ROUGHNESS, DRIVING, DRIVEN, TOOTH, IMAGE = range(6)


_MESHES_T = np.arange(MESHES)
MESH_ORDER_RC = np.empty((ROWS, COLUMNS), np.intp)
"""The mesh at which each pair of teeth meets: the map's diagonals follow time."""
MESH_ORDER_RC[_MESHES_T % ROWS, _MESHES_T % COLUMNS] = _MESHES_T


def gear_pair_signature(seed: int) -> Floats:
    """The unit's own pattern (R, C), about 1: eccentricity and tooth deviations of both gears."""
    driving_R = _tooth_deviations(Draws(Key(seed, number=0)), ROWS)
    driven_C = _tooth_deviations(Draws(Key(seed, number=1)), COLUMNS)
    return 1.0 + driving_R[:, None] + driven_C


def drift(draws: Draws, images: int) -> Floats:
    """A slow variation along a recording (N,), mean 0 and variance 1, neighbours correlated by about .9.

    It is a sum of waves of fixed periods and drawn phases, so its spread hardly depends on the seed.
    """
    phases = draws.uniform(len(DRIFT_PERIODS))
    waves_N = np.array(
        [
            math.fsum(
                math.sin(2 * math.pi * (image / period + phase))
                for period, phase in zip(DRIFT_PERIODS, phases, strict=True)
            )
            for image in range(images)
        ]
    )
    return _rounded(waves_N * math.sqrt(2 / len(DRIFT_PERIODS)))


def tooth_wander(draws: Draws, images: int, *, teeth: int) -> Floats:
    """Changes of each tooth's deviation (N, teeth), variance 1, neighbouring images correlated by .75."""
    steps = draws.normal((images + 3) * teeth).reshape(images + 3, teeth)
    return 0.5 * (steps[:-3] + steps[1:-2] + steps[2:-1] + steps[3:])


def texture(draws: Draws, *, roughness: float) -> Floats:
    """Amplitude over meshes (T,), mean 1, standard deviation ``roughness``, correlated along the meshes."""
    scale = 1 / math.sqrt(math.fsum(tap * tap for tap in RING_DOWN_K))
    return 1.0 + roughness * scale * _decaying(draws.normal(MESHES), RING_DOWN_K)


def shocks(draws: Draws, *, limits: Range) -> Floats:
    """Random shocks over meshes (T,), one in each third of the map's time; the first is the strongest."""
    sector = MESHES // len(SHOCK_RANKS)
    places = (draws.uniform(len(SHOCK_RANKS)) * (sector - len(SHOCK_DECAY_K))).astype(np.intp)
    first, second = draws.uniform(2)
    strongest = _within(limits, 0.5 * (first + second))
    impulses_T = np.zeros(MESHES)
    impulses_T[places + sector * np.arange(len(SHOCK_RANKS))] = np.array(SHOCK_RANKS) * strongest
    return _decaying(impulses_T, SHOCK_DECAY_K)


def contact(draws: Draws, *, gaps: int) -> NDArray[np.bool_]:
    """Which driven teeth (C,) meet the damage: all but ``gaps`` stretches, which may overlap."""
    shortest, end = GAP_LENGTHS
    touched_C = np.ones(COLUMNS, np.bool_)
    for place, extent in draws.uniform(2 * gaps).reshape(gaps, 2):
        length = shortest + int(extent * (end - shortest))
        touched_C[(int(place * COLUMNS) + np.arange(length)) % COLUMNS] = False
    return touched_C


def damaged_rows(row: int, severity: float, touched_C: NDArray[np.bool_]) -> Floats:
    """The relative raise (R, C) by one damaged driving tooth; one mesh later the next tooth has its leak."""
    raise_RC = np.zeros((ROWS, COLUMNS))
    raise_RC[row, touched_C] = severity
    raise_RC[(row + 1) % ROWS] = LEAK * np.roll(raise_RC[row], 1)
    return raise_RC


def knock(draws: Draws, row: int, touched_C: NDArray[np.bool_], *, limits: Range) -> Floats:
    """The hardest hit (T,) of the damaged tooth, against one of the driven teeth that it touches."""
    place, strength = draws.uniform(2)
    touched = np.flatnonzero(touched_C)
    impulses_T = np.zeros(MESHES)
    impulses_T[MESH_ORDER_RC[row, touched[int(place * len(touched))]]] = _within(limits, strength)
    return _decaying(impulses_T, SHOCK_DECAY_K)


def damage(draws: Draws, setting: Domain, regime: Regime, *, row: int) -> tuple[Band, Floats, Floats]:
    """Draw how the damaged tooth ``row`` shows in one map: its band, relative raise (R, C) and knock (T,)."""
    touched_C = contact(draws, gaps=setting.gaps)
    severity = regime.damage * _within(setting.severity, float(draws.uniform(1)[0]))
    limits = (regime.knock * setting.knock[0], regime.knock * setting.knock[1])
    raise_RC = damaged_rows(row, severity, touched_C)
    return Band(row, severity, int(touched_C.sum())), raise_RC, knock(draws, row, touched_C, limits=limits)


def course(
    key: Key, setting: Domain, regime: Regime, *, images: int, damaged: bool
) -> tuple[float, Floats, Floats, Floats]:
    """Return the level, and how it (N,), roughness (N,) and signature (N, R, C) drift along a recording.

    A damaged unit runs at another level throughout.
    """
    operating = setting.operating
    level = regime.level * (operating.fault_level * setting.sensor.fault_level if damaged else 1.0)
    roughness = regime.roughness * (operating.fault_roughness if damaged else 1.0)
    level_drift_N = drift(Draws(key._replace(stream=LEVEL)), images)
    roughness_drift_N = drift(Draws(key._replace(stream=ROUGHNESS)), images)
    driving_NR = tooth_wander(Draws(key._replace(stream=DRIVING)), images, teeth=ROWS)
    driven_NC = tooth_wander(Draws(key._replace(stream=DRIVEN)), images, teeth=COLUMNS)
    wander_NRC = DRIVING_WANDER * driving_NR[:, :, None]
    signature_NRC = gear_pair_signature(key.seed) + wander_NRC + DRIVEN_WANDER * driven_NC[:, None, :]
    level_N = level * (1 + regime.level_spread * level_drift_N)
    return level, level_N, roughness * (1 + regime.roughness_spread * roughness_drift_N), signature_NRC


def record(
    domain: str, *, condition: Condition, seed: int, split: int, images: int, damaged: bool
) -> Recording:
    """Record one unit in one condition; image ``i`` does not depend on how many images are asked for."""
    setting = DOMAINS[domain]
    regime = setting.operating.regimes[condition]
    key = Key(seed, domain=ord(domain), split=split, condition=int(condition == "warm"))
    level, level_N, roughness_N, signature_NRC = course(key, setting, regime, images=images, damaged=damaged)
    shock_limits = (setting.shock_gain * regime.shock[0], setting.shock_gain * regime.shock[1])
    maps_NRC = np.empty((images, ROWS, COLUMNS))
    masks_NRC = np.zeros((images, ROWS, COLUMNS), np.uint8)
    bands = []
    for image in range(images):
        draws = Draws(key._replace(stream=IMAGE, number=image))
        texture_RC = texture(draws, roughness=roughness_N[image])[MESH_ORDER_RC]
        meshing_RC = signature_NRC[image] * texture_RC
        energy_RC = _squared(level * shocks(draws, limits=shock_limits)[MESH_ORDER_RC])
        if damaged:
            row = int(Draws(key._replace(stream=TOOTH, number=image // RUN_LENGTH)).uniform(1)[0] * ROWS)
            band, raise_RC, knock_T = damage(draws, setting, regime, row=row)
            if setting.impacts:
                energy_RC += _squared(level_N[image]) * (_squared(1 + raise_RC) - 1)
            else:
                meshing_RC *= 1 + raise_RC
            energy_RC += _squared(level_N[image] * knock_T[MESH_ORDER_RC])
            masks_NRC[image] = raise_RC > 0
            bands.append(band)
        energy_RC += _squared(level_N[image] * meshing_RC) + setting.sensor.noise_floor**2
        maps_NRC[image] = np.sqrt(energy_RC)
    return Recording(condition, maps_NRC, masks_NRC, tuple(bands))


def _tooth_deviations(draws: Draws, teeth: int) -> Floats:
    phase = float(draws.uniform(1)[0])
    eccentricity = _rounded(
        np.array([math.cos(2 * math.pi * (tooth / teeth + phase)) for tooth in range(teeth)])
    )
    deviations = ECCENTRICITY * eccentricity + TOOTH_DEVIATION * draws.normal(teeth)
    return deviations - math.fsum(deviations) / teeth


def _decaying(impulses_T: Floats, taps_K: tuple[float, ...]) -> Floats:
    # The maps are averages over many hunting periods, so the last mesh comes just before the first.
    total_T = taps_K[0] * impulses_T
    for delay, tap in enumerate(taps_K[1:], start=1):
        total_T += tap * np.roll(impulses_T, delay)
    return total_T


def _within(limits: Range, fraction: float) -> float:
    low, high = limits
    return low + (high - low) * fraction


def _squared(values: Floats) -> Floats:
    return values * values


def _rounded(values: Floats) -> Floats:
    # The last bit of sin and cos differs between math libraries.
    return np.round(values / QUANTUM) * QUANTUM
