"""The numbers of the simulated gearbox: two operating classes, two sensors, and the four domains they make.

They are calibrated so that the maps, divided by a domain's largest training value, have the statistics that
spec hdmap.md, section 2, gives for the real data; ``test_simulator_calibration.py`` holds them to it.
Levels are in units of the warm level of healthy recordings, so a class or sensor has no gain of its own.
"""

from dataclasses import dataclass
from typing import Literal

Condition = Literal["cold", "warm"]


@dataclass(frozen=True, kw_only=True)
class Regime:
    """How a class runs in one condition; spreads are relative standard deviations over images."""

    level: float
    level_spread: float
    roughness: float  # texture contrast: standard deviation over mean
    roughness_spread: float
    shock: tuple[float, float]  # range of the strongest shock of an image, in units of the level
    damage: float  # how much of a fault's severity shows
    knock: float  # how much of a fault's knocks shows


@dataclass(frozen=True, kw_only=True)
class OperatingClass:
    """Load and speed: what the gears do, whoever listens."""

    cold: Regime
    warm: Regime
    fault_level: float  # level of a damaged unit's recordings relative to healthy ones
    fault_roughness: float

    @property
    def regimes(self) -> dict[Condition, Regime]:
        """Both regimes by name."""
        return {"cold": self.cold, "warm": self.warm}


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """The path from the mesh to a sensor: noise floor, and the gain that it gives to a damaged unit."""

    noise_floor: float
    fault_level: float


@dataclass(frozen=True, kw_only=True)
class Domain:
    """An operating class heard by a sensor, with what depends on the pair of both."""

    operating: OperatingClass
    sensor: Sensor
    shock_gain: float
    severity: tuple[float, float]
    impacts: bool  # the damage strikes: its energy adds to the mesh's; else it only modulates the mesh
    gaps: int  # breaks of the band, 0 = full width
    knock: tuple[float, float]  # range of the damaged tooth's hardest hit, in units of the level


CLASS_1 = OperatingClass(
    cold=Regime(
        level=0.67,
        level_spread=0.080,
        roughness=0.25,
        roughness_spread=0.20,
        shock=(0.1, 4.3),
        damage=1.0,
        knock=0.32,
    ),
    warm=Regime(
        level=1.0,
        level_spread=0.066,
        roughness=0.285,
        roughness_spread=0.08,
        shock=(1.8, 3.4),
        damage=1.4,
        knock=1.0,
    ),
    fault_level=1.0,
    fault_roughness=1.04,
)
CLASS_3 = OperatingClass(
    cold=Regime(
        level=0.705,
        level_spread=0.084,
        roughness=0.232,
        roughness_spread=0.20,
        shock=(0.1, 4.3),
        damage=1.0,
        knock=0.32,
    ),
    warm=Regime(
        level=1.0,
        level_spread=0.066,
        roughness=0.268,
        roughness_spread=0.08,
        shock=(1.8, 3.4),
        damage=1.4,
        knock=1.0,
    ),
    fault_level=1.115,
    fault_roughness=1.06,
)
SENSOR_1 = Sensor(noise_floor=0.14, fault_level=0.80)
SENSOR_3 = Sensor(noise_floor=0.24, fault_level=1.02)

DOMAINS = {
    "A": Domain(
        operating=CLASS_1,
        sensor=SENSOR_3,
        shock_gain=1.09,
        severity=(0.9, 1.5),
        impacts=True,
        gaps=0,
        knock=(2.0, 3.5),
    ),
    "B": Domain(
        operating=CLASS_1,
        sensor=SENSOR_1,
        shock_gain=1.02,
        severity=(0.9, 1.5),
        impacts=True,
        gaps=0,
        knock=(0.0, 1.5),
    ),
    "C": Domain(
        operating=CLASS_3,
        sensor=SENSOR_3,
        shock_gain=1.08,
        severity=(0.1, 0.6),
        impacts=False,
        gaps=3,
        knock=(4.1, 9.2),
    ),
    "D": Domain(
        operating=CLASS_3,
        sensor=SENSOR_1,
        shock_gain=1.20,
        severity=(0.9, 1.5),
        impacts=True,
        gaps=0,
        knock=(2.0, 5.0),
    ),
}
