"""The raw signal of a map, as a recorder would have heard it, with a tachometer: so the way back is tested.

Every pair of teeth rings in its own way and always alike, as loud as its cell of the map; over this lie the
regular mesh with its harmonics and side bands, and noise. The speed drifts.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dinomaly_hd.data.images import read_image
from dinomaly_hd.data.simulator import LOCK_TIMEOUT_S, built_whole, lock_of
from dinomaly_hd.errors import LayoutError
from dinomaly_hd.files import locked

Floats = NDArray[np.float64]

RATE, SPEED, DRIFT, DRIFT_S = 25_600.0, 30.0, 0.04, 11.0  # Hz, turns a second, of the speed, its period
PERIODS = 4  # hunting-tooth periods of a map's record
NOISE = 1.0  # of the mean cell
HARMONICS = (3.0, 1.5, 0.8)  # amplitudes of the mesh and its harmonics, of the mean cell
SIDE_BANDS = 0.1  # modulation of these by either wheel
RINGING = np.arange(5, 12)  # half waves a mesh: silent at its borders, and nowhere a harmonic of the mesh
EDGE = 400.0  # steepness of a pulse, 1 / turns: two samples
BEFORE = 0.3  # of a turn, before the first pulse


class Raw(NamedTuple):
    """A record: vibration and tachometer over samples, Hz, and the mesh number at each sample."""

    vibration_T: Floats
    tachometer_T: Floats
    rate: float
    mesh_T: Floats


def raw_of(
    map_RC: NDArray[np.floating],
    *,
    seconds: float,
    seed: int,
    noise: float = NOISE,
    drift: float = DRIFT,
    rate: float = RATE,
    speed: float = SPEED,
) -> Raw:
    """Return the record of a map whose sides share no factor; one pulse a turn of wheel 1."""
    rows, columns = map_RC.shape
    draws = np.random.Generator(np.random.Philox(seed))
    level = float(map_RC.mean())
    time_T = np.arange(int(seconds * rate)) / rate
    wave = 2 * np.pi / DRIFT_S
    phase = float(draws.uniform(0, 2 * np.pi))
    turned_T = speed * (time_T - drift / wave * (np.cos(wave * time_T + phase) - np.cos(phase))) - BEFORE
    mesh_T = turned_T * rows
    weights_RCK = draws.normal(size=(rows, columns, len(RINGING)))
    # sin(k pi u) has the power 1/2 over a mesh and different k share none: so the ringing has the power 1.
    weights_RCK *= np.sqrt(2 / (weights_RCK**2).sum(axis=2, keepdims=True))
    whole_T = np.floor(mesh_T).astype(np.intp)
    row_T, column_T, within_T = whole_T % rows, whole_T % columns, mesh_T - whole_T
    vibration_T = noise * level * draws.normal(size=len(time_T))
    for k, number in enumerate(RINGING):
        vibration_T += (map_RC * weights_RCK[..., k])[row_T, column_T] * np.sin(np.pi * number * within_T)
    swing_T = 1 + SIDE_BANDS * (
        np.cos(2 * np.pi * mesh_T / rows) + np.cos(2 * np.pi * mesh_T / columns + 1.0)
    )
    for order, amplitude in enumerate(HARMONICS, start=1):
        vibration_T += level * amplitude * swing_T * np.cos(2 * np.pi * order * mesh_T + order)
    turn_T = (turned_T + 0.5) % 1 - 0.5
    tachometer_T = 1 / (1 + np.exp(-EDGE * turn_T)) - 1 / (1 + np.exp(-EDGE * (turn_T - 0.1)))
    return Raw(vibration_T, tachometer_T, rate, mesh_T)


def seconds_of(shape: tuple[int, int], *, periods: int = PERIODS) -> float:
    """Return how long a record of so many periods is, with a turn to spare at the slowest speed."""
    return (periods * shape[1] + 2) / (SPEED * (1 - DRIFT))


def write_raw(maps: Path, root: Path, *, tick: Callable[[], None]) -> Path:
    """Write ``root/domain_X/train/good/000000.npz`` for each map of a data set, whole or not at all."""
    with locked(lock_of(root), timeout_s=LOCK_TIMEOUT_S):
        if root.exists():
            raise LayoutError(f"{root}: already there; name another output or remove it")
        with built_whole(root) as building:
            for number, path in enumerate(sorted(maps.glob("domain_*/*/*/*.tiff"))):
                _write_record(building / path.relative_to(maps).with_suffix(".npz"), path, seed=number)
                tick()
    return root


def _write_record(target: Path, source: Path, *, seed: int) -> None:
    map_RC = read_image(source)
    record = raw_of(map_RC, seconds=seconds_of(map_RC.shape), seed=seed)
    target.parent.mkdir(parents=True, exist_ok=True)
    channels = {"vibration": record.vibration_T, "tachometer": record.tachometer_T}
    np.savez(
        target,
        allow_pickle=False,
        rate=np.float64(record.rate),
        **{name: values.astype(np.float32) for name, values in channels.items()},
    )
