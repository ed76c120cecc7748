"""Train once and evaluate at several numbers of steps, without training again."""

from dinomaly_hd.config.base import doc
from dinomaly_hd.config.resolve import Numbers
from dinomaly_hd.errors import ConfigError
from entry_points.common import ConfigOptions, Start, entry_point, launch, of_members


class Options(ConfigOptions):
    steps: Numbers = doc(
        (5000, 10000, 15000),
        "optimizer steps at which it is evaluated; training goes to the largest and has its schedule",
    )


def steps(start: Start[Options]) -> None:
    options, context = start.options, start.context()
    points = sorted(options.steps)
    if points[0] == 0:
        raise ConfigError("steps: 0 is no training; expected 1 or more")
    from dinomaly_hd.experiments.protocols import run_steps

    own = {"max_steps": str(points[-1])}
    run_steps(
        points,
        options.seeds,
        context,
        build=lambda point, seed: start.member(options.config, seed, **own, stop_step=str(point)),
    )


COMMAND, main = entry_point("steps", __doc__, Options, steps, runs=of_members("max_steps"))

if __name__ == "__main__":
    raise SystemExit(launch(main))
