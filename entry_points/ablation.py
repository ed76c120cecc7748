"""Train and compare configs with several seeds on equal terms: cfg-A0, cfg-A to cfg-G and more, or a list."""

from dinomaly_hd.config.base import PositiveCount, doc
from dinomaly_hd.config.resolve import OrAuto, config_names
from entry_points.common import PluginOptions, RunOptions, Start, entry_point, launch, of_members


class Options(RunOptions, PluginOptions):
    configs: str = doc(
        "ablation",
        "ablation (cfg-A0 to cfg-G, cfg-F0, cfg-K100), directional, variants, or a list such as "
        "cfg-A0,cfg-F,cfg-F:q_percent=1; all are compared with the first",
    )
    slots: OrAuto[PositiveCount] = doc(
        1, "runs at once; auto: one a GPU, or one for two cores; 1: one after another, here"
    )


def ablation(start: Start[Options]) -> None:
    options, context = start.options, start.context()
    from dinomaly_hd.experiments.protocols import run_ablation
    from dinomaly_hd.jobs.engines import LOCAL
    from dinomaly_hd.jobs.job import Slots

    slots = Slots(LOCAL, options.slots, "")
    run_ablation(config_names(options.configs), options.seeds, context, build=start.member, slots=slots)


COMMAND, main = entry_point("ablation", __doc__, Options, ablation, runs=of_members())

if __name__ == "__main__":
    raise SystemExit(launch(main))
