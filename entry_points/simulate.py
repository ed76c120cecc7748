"""Write the simulated HDMAP: folders, conditions, severities and ground-truth masks."""

from pathlib import Path
from typing import Literal

from dinomaly_hd.config.base import Count, Frozen, Line, doc
from dinomaly_hd.config.resolve import OrAuto
from dinomaly_hd.config.run import DataConfig
from entry_points.common import ROOT, Start, entry_point, launch, say


class Options(Frozen):
    simulate_size: Literal["tiny", "quick", "full"] = doc(
        "quick", "images train/good/fault a domain: tiny 8/4/4, quick 100/100/100, full 1000/1000/1000"
    )
    simulate_seed: Count = doc(0, "seed of the simulated data; the same seed and size give the same bytes")
    domains: Line = doc("A,B,C,D", "comma-separated, of A,B,C,D")
    raw: bool = doc(
        False,
        "also write the raw signal of each map, 1.4 MB, with a tachometer: {output}_raw/domain_A/train/good/"
        "000000.npz ...; hdmap makes maps of it again",
    )
    output: OrAuto[Path] = doc(
        None, "folder to write; auto: data/simulated_{size}_seed{n}, where runs look by default"
    )


def write(start: Start[Options]) -> None:
    from dinomaly_hd.data.simulator import simulate
    from dinomaly_hd.experiments.checks import simulated_root

    data = DataConfig(**start.options.model_dump(exclude={"output", "raw"}))
    target = start.options.output or simulated_root(data, root=ROOT)
    domains = [name.removeprefix("domain_") for name in data.domain_names]
    simulate(
        target, size=data.simulate_size, seed=data.simulate_seed, domains=domains, tick=start.guard.check
    )
    say(f"simulated data: {target}")
    if start.options.raw:
        from dinomaly_hd.data.simulator.raw import write_raw

        signals = write_raw(target, target.with_name(f"{target.name}_raw"), tick=start.guard.check)
        say(f"raw signals:    {signals}")


COMMAND, main = entry_point("simulate", __doc__, Options, write)

if __name__ == "__main__":
    raise SystemExit(launch(main))
