"""Where the maps lie: the user's folder, or the embedded simulation, written on first use."""

from collections.abc import Callable
from pathlib import Path

from dinomaly_hd.config import SIMULATED, DataConfig
from dinomaly_hd.data.images import printable
from dinomaly_hd.data.simulator import simulate
from dinomaly_hd.errors import LayoutError


def simulated_root(data: DataConfig, *, root: Path) -> Path:
    """Return where a simulation lies: ``data/simulated_{size}_seed{n}`` in the project."""
    return root / "data" / f"simulated_{data.simulate_size}_seed{data.simulate_seed}"


def resolve_root(
    data: DataConfig, *, root: Path, say: Callable[[str], None], tick: Callable[[], None]
) -> Path:
    """Return the data root; ``data_root=simulated`` is written where it is not there yet.

    Raises:
        OutputError: The simulation cannot be written.
        LayoutError: There is no such folder, or something else lies where the simulation belongs.
    """
    if data.data_root != SIMULATED:
        given = Path(data.data_root).expanduser()
        if not given.is_dir():
            what = "not a folder" if given.exists() else "no such folder"
            raise LayoutError(
                f"data_root={printable(data.data_root)}: {what}; give the one that holds the domain folders "
                f"(domain_A/train/good ...), or {SIMULATED}"
            )
        return given
    target = simulated_root(data, root=root)
    say(f"simulated data: {target}")
    return simulate(target, size=data.simulate_size, seed=data.simulate_seed, tick=tick)
