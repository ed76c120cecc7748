"""Write the simulated HDMAP: folders, conditions, severities and ground-truth masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinomaly_hd.flag_texts import AUTO, Option
from entry_points.common import ROOT, launch, say

if TYPE_CHECKING:
    from dinomaly_hd.training.guards import SignalGuard

FLAGS = {
    "simulate_size": Option(
        "quick", "images train/good/fault a domain: tiny 8/4/4, quick 100/100/100, full 1000/1000/1000"
    ),
    "simulate_seed": Option("0", "seed of the simulated data; the same seed and size give the same bytes"),
    "domains": Option("A,B,C,D", "comma-separated, of A,B,C,D"),
    "output": Option(
        AUTO, "folder to write; auto: data/simulated_{size}_seed{n}, where runs look by default"
    ),
}


def main(argv: Sequence[str], guard: "SignalGuard") -> None:
    """Write the folder and say where it is."""
    from dinomaly_hd.config import DataConfig, with_values
    from dinomaly_hd.data.simulator import simulate
    from dinomaly_hd.experiments.checks import simulated_root
    from dinomaly_hd.flags import parse_options

    values = parse_options("simulate", argv, options=FLAGS, doc=__doc__)
    output = values.pop("output")
    data = with_values(DataConfig(), values)
    target = simulated_root(data, root=ROOT) if output == AUTO else Path(output)
    simulate(
        target,
        size=data.simulate_size,
        seed=data.simulate_seed,
        domains=[name.removeprefix("domain_") for name in data.domain_names],
        tick=guard.check,
    )
    say(f"simulated data: {target}")


if __name__ == "__main__":
    launch(main)
