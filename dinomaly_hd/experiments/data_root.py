"""Where the maps lie: the user's folder, or the embedded simulation, written on first use."""

from collections.abc import Callable
from pathlib import Path

from dinomaly_hd.config import SIMULATED, DataConfig
from dinomaly_hd.data.simulator import simulate


def simulated_root(data: DataConfig, *, root: Path) -> Path:
    """Return where a simulation lies: ``data/simulated_{size}_seed{n}`` in the project."""
    return root / "data" / f"simulated_{data.simulate_size}_seed{data.simulate_seed}"


def resolve_root(
    data: DataConfig, *, root: Path, say: Callable[[str], None], tick: Callable[[], None]
) -> Path:
    """Return the data root; ``data_root=simulated`` is written where it is not there yet.

    Raises:
        OutputError: The simulation cannot be written.
        LayoutError: Something else lies where it belongs.
    """
    if data.data_root != SIMULATED:
        return Path(data.data_root).expanduser()
    target = simulated_root(data, root=root)
    say(f"simulated data: {target}")
    return simulate(target, size=data.simulate_size, seed=data.simulate_seed, tick=tick)
