"""Complete in MLflow what run folders hold and MLflow lacks; mark runs of dead processes KILLED."""

from collections.abc import Sequence
from pathlib import Path

from dinomaly_hd.config.base import Frozen
from dinomaly_hd.config.command import Command
from dinomaly_hd.errors import SignalGuard, TrackingError
from entry_points.common import ROOT, ResultDir, launch, say


class Options(Frozen):
    result_dir: ResultDir = Path("results")


COMMAND = Command("sync", __doc__, Options)


def main(argv: Sequence[str], guard: SignalGuard) -> None:
    options = COMMAND.parse(argv).options
    from dinomaly_hd.runs.sync import synchronise

    done = synchronise(options.result_dir, root=ROOT, say=say, tick=guard.check)
    say(
        f"{done.completed} run folders completed ({done.points} points, {done.operations} other records), "
        f"{done.at_work} at work, {done.closed} runs of dead processes closed"
    )
    if done.refused:
        raise TrackingError(f"{done.refused} run folders could not be completed; nothing is lost, sync again")


if __name__ == "__main__":
    raise SystemExit(launch(main))
