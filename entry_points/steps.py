"""Train once and evaluate at several numbers of steps, without training again."""

from collections.abc import Sequence

from dinomaly_hd.config.base import doc
from dinomaly_hd.config.command import Numbers
from dinomaly_hd.errors import ConfigError, SignalGuard
from entry_points.common import ConfigOptions, comparison, context_of, launch, member_of


class Options(ConfigOptions):
    steps: Numbers = doc(
        (5000, 10000, 15000),
        "optimizer steps at which it is evaluated; training goes to the largest and has its schedule",
    )


COMMAND = comparison("steps", __doc__, Options, "max_steps")


def main(argv: Sequence[str], guard: SignalGuard) -> None:
    asked = COMMAND.parse(argv)
    options, context = asked.options, context_of(asked, guard)
    steps = sorted(options.steps)
    if steps[0] == 0:
        raise ConfigError("steps: 0 is no training; expected 1 or more")
    from dinomaly_hd.experiments.protocols import run_steps

    run_steps(
        steps,
        options.seeds,
        context,
        build=lambda step, seed: member_of(
            asked, options.config, seed, max_steps=str(steps[-1]), stop_step=str(step)
        ),
    )


if __name__ == "__main__":
    raise SystemExit(launch(main))
