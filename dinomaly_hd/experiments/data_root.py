"""Where the maps lie: the user's folder, or the embedded simulation, written on first use; read once."""

import os
from collections.abc import Callable
from pathlib import Path

from dinomaly_hd.config import SIMULATED, DataConfig
from dinomaly_hd.data.hdmap import Manifest, load_manifest
from dinomaly_hd.data.images import printable
from dinomaly_hd.data.simulator import simulate
from dinomaly_hd.errors import LayoutError


class ManifestMemory:
    """Data sets that were read and checked, for many runs that begin at about the same time."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], Manifest] = {}

    def get(self, data: DataConfig, read: Callable[[], Manifest]) -> Manifest:
        """Return the data set of these settings, from ``read`` where it was not read before."""
        key = (
            *(data.data_root, data.simulate_size, str(data.simulate_seed), data.conditions),
            *data.domain_names,
        )
        if key not in self._kept:
            self._kept[key] = read()
        return self._kept[key]


def read_manifest(
    data: DataConfig, *, root: Path, say: Callable[[str], None], tick: Callable[[], None]
) -> Manifest:
    """Read and check all images of the data set that the settings name, and say what is odd about it.

    Raises:
        OutputError: The simulation cannot be written.
        DataError: The data cannot be used.
    """
    place = resolve_root(data, root=root, say=say, tick=tick)
    manifest = load_manifest(place, domains=data.domain_names, conditions=data.conditions, tick=tick)
    for warning in manifest.warnings:
        say(f"warning: {warning}")
    return manifest


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
        if not os.path.isdir(given):  # False too for what is too long for a path
            what = "not a folder" if os.path.exists(given) else "no such folder"
            raise LayoutError(
                f"data_root={printable(data.data_root)}: {what}; give the one that holds the domain folders "
                f"(domain_A/train/good ...), or {SIMULATED}"
            )
        return given
    target = simulated_root(data, root=root)
    say(f"simulated data: {target}")
    return simulate(target, size=data.simulate_size, seed=data.simulate_seed, tick=tick)
