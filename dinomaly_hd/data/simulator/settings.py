"""The numbers of the simulated gearbox: two operating classes, two sensors, and the four domains they make.

They are calibrated so that the maps, divided by a domain's largest training value, have the statistics that
spec hdmap.md, section 2, gives for the real data; ``test_simulator_calibration.py`` holds them to it.
Levels are in units of the warm level of healthy recordings, so a class or sensor has no gain of its own.
"""

from typing import Literal, NamedTuple

Condition = Literal["cold", "warm"]
Range = tuple[float, float]


class Regime(NamedTuple):
    """How a class runs in one condition; spreads are relative standard deviations over images."""

    level: float
    level_spread: float
    roughness: float  # texture contrast: standard deviation over mean
    roughness_spread: float
    shock: Range  # of the strongest shock of an image, in units of the level
    damage: float  # how much of a fault's severity shows
    knock: float  # how much of a fault's knocks shows


class OperatingClass(NamedTuple):
    """Load and speed: what the gears do, whoever listens."""

    regimes: dict[Condition, Regime]
    fault_level: float  # level of a damaged unit's recordings relative to healthy ones
    fault_roughness: float


class Sensor(NamedTuple):
    """The path from the mesh to a sensor: noise floor, and the gain that it gives to a damaged unit."""

    noise_floor: float
    fault_level: float


class Domain(NamedTuple):
    """An operating class heard by a sensor, with what depends on the pair of both."""

    operating: OperatingClass
    sensor: Sensor
    shock_gain: float
    knock: Range  # of the damaged tooth's hardest hit, in units of the level
    severity: Range = (0.9, 1.5)
    impacts: bool = True  # the damage strikes: its energy adds to the mesh's; else it only modulates the mesh
    gaps: int = 0  # breaks of the band, 0 = full width


_COLD = Regime(
    level=0.67,
    level_spread=0.080,
    roughness=0.25,
    roughness_spread=0.20,
    shock=(0.1, 4.3),
    damage=1.0,
    knock=0.32,
)
_WARM = Regime(
    level=1.0,
    level_spread=0.066,
    roughness=0.285,
    roughness_spread=0.08,
    shock=(1.8, 3.4),
    damage=1.4,
    knock=1.0,
)
CLASS_1 = OperatingClass({"cold": _COLD, "warm": _WARM}, fault_level=1.0, fault_roughness=1.04)
CLASS_3 = OperatingClass(
    {
        "cold": _COLD._replace(level=0.705, level_spread=0.084, roughness=0.232),
        "warm": _WARM._replace(roughness=0.268),
    },
    fault_level=1.115,
    fault_roughness=1.06,
)
SENSOR_1 = Sensor(noise_floor=0.14, fault_level=0.80)
SENSOR_3 = Sensor(noise_floor=0.24, fault_level=1.02)

DOMAINS = {
    "A": Domain(CLASS_1, SENSOR_3, shock_gain=1.09, knock=(2.0, 3.5)),
    "B": Domain(CLASS_1, SENSOR_1, shock_gain=1.02, knock=(0.0, 1.5)),
    "C": Domain(
        CLASS_3, SENSOR_3, shock_gain=1.08, knock=(4.1, 9.2), severity=(0.1, 0.6), impacts=False, gaps=3
    ),
    "D": Domain(CLASS_3, SENSOR_1, shock_gain=1.20, knock=(2.0, 5.0)),
}
