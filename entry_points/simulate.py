"""Write the simulated HDMAP: folders, conditions, severities and ground-truth masks."""

from pathlib import Path

from dinomaly_hd.config.base import Frozen, doc, with_values
from dinomaly_hd.config.presets import Fields, described
from dinomaly_hd.config.resolve import OrAuto
from dinomaly_hd.config.run import DataConfig
from entry_points.common import ROOT, Start, entry_point, launch, say

DATA = DataConfig(simulate_size="quick")
OF_RUN = ("simulate_size", "simulate_seed", "domains")


class Options(Frozen):
    raw: bool = doc(
        False,
        "also write the raw signal of each map, 1.4 MB, with a tachometer: {output}_raw/domain_A/train/good/"
        "000000.npz ...; hdmap makes maps of it again",
    )
    output: OrAuto[Path] = doc(
        None, "folder to write; auto: data/simulated_{size}_seed{n}, where runs look by default"
    )


def fields() -> Fields:
    return {name: described(DATA)[name] for name in OF_RUN}


def write(start: Start[Options]) -> None:
    from dinomaly_hd.data.simulator import simulate
    from dinomaly_hd.experiments.checks import simulated_root

    data = with_values(DATA, start.asked.values)
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


COMMAND, main = entry_point("simulate", __doc__, Options, write, runs=fields)

if __name__ == "__main__":
    raise SystemExit(launch(main))
