"""Write the simulated HDMAP: folders, conditions, severities and ground-truth masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from dinomaly_hd.config.base import Count, Frozen, Line, doc
from dinomaly_hd.config.command import Command, OrAuto
from dinomaly_hd.config.run import DataConfig
from dinomaly_hd.training.signals import SignalGuard
from entry_points.common import ROOT, launch, say


class Options(Frozen):
    simulate_size: Annotated[
        Literal["tiny", "quick", "full"],
        doc("images train/good/fault a domain: tiny 8/4/4, quick 100/100/100, full 1000/1000/1000"),
    ] = "quick"
    simulate_seed: Annotated[
        Count, doc("seed of the simulated data; the same seed and size give the same bytes")
    ] = 0
    domains: Annotated[Line, doc("comma-separated, of A,B,C,D")] = "A,B,C,D"
    output: Annotated[
        OrAuto[Path], doc("folder to write; auto: data/simulated_{size}_seed{n}, where runs look by default")
    ] = None


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
