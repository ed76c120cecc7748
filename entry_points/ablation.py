"""Train and compare configs with several seeds on equal terms: A0 A B C D E F G F0 K100, or a list."""

from collections.abc import Sequence
from functools import partial

from dinomaly_hd.config.base import PositiveCount, doc
from dinomaly_hd.config.command import OrAuto
from dinomaly_hd.config.resolve import config_names
from dinomaly_hd.errors import SignalGuard
from entry_points.common import SeedsOptions, comparison, context_of, launch, member_of


class Options(SeedsOptions):
    configs: str = doc(
        "ablation",
        "ablation (A0 A B C D E F G F0 K100), directional, variants, or a list such as "
        "A0,F,F:q_percent=1; all are compared with the first",
    )
    slots: OrAuto[PositiveCount] = doc(
        1, "runs at once; auto: one a GPU, or one for two cores; 1: one after another, here"
    )


COMMAND = comparison("ablation", __doc__, Options)


def main(argv: Sequence[str], guard: SignalGuard) -> None:
    asked = COMMAND.parse(argv)
    options, context = asked.options, context_of(asked, guard)
    from dinomaly_hd.experiments.protocols import run_ablation
    from dinomaly_hd.jobs.engines import LOCAL
    from dinomaly_hd.jobs.job import Slots

    run_ablation(
        config_names(options.configs),
        options.seeds,
        context,
        build=partial(member_of, asked),
        slots=Slots(LOCAL, options.slots, ""),
    )


if __name__ == "__main__":
    raise SystemExit(launch(main))
