"""Write the simulated HDMAP: folders, conditions, severities and ground-truth masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dinomaly_hd.config.base import Count, Frozen, Line, doc
from dinomaly_hd.config.command import Command, OrAuto
from dinomaly_hd.config.run import DataConfig
from dinomaly_hd.errors import SignalGuard
from entry_points.common import ROOT, launch, say


class Options(Frozen):
    simulate_size: Literal["tiny", "quick", "full"] = doc(
        "quick", "images train/good/fault a domain: tiny 8/4/4, quick 100/100/100, full 1000/1000/1000"
    )
    simulate_seed: Count = doc(0, "seed of the simulated data; the same seed and size give the same bytes")
    domains: Line = doc("A,B,C,D", "comma-separated, of A,B,C,D")
    output: OrAuto[Path] = doc(
        None, "folder to write; auto: data/simulated_{size}_seed{n}, where runs look by default"
    )


COMMAND = Command("simulate", __doc__, Options)


def main(argv: Sequence[str], guard: SignalGuard) -> None:
    options = COMMAND.parse(argv).options
    from dinomaly_hd.data.simulator import simulate
    from dinomaly_hd.experiments.checks import simulated_root

    data = DataConfig(**options.model_dump(exclude={"output"}))
    target = simulated_root(data, root=ROOT) if options.output is None else options.output
    simulate(
        target,
        size=data.simulate_size,
        seed=data.simulate_seed,
        domains=[name.removeprefix("domain_") for name in data.domain_names],
        tick=guard.check,
    )
    say(f"simulated data: {target}")


if __name__ == "__main__":
    raise SystemExit(launch(main))
