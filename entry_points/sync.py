"""Complete in MLflow what run folders hold and MLflow lacks; close what dead processes left running."""

from pathlib import Path

from dinomaly_hd.config.base import Frozen
from dinomaly_hd.errors import TrackingError
from entry_points.common import ROOT, ResultDir, Start, entry_point, say, start_program


class Options(Frozen):
    result_dir: ResultDir = Path("results")


def sync(start: Start[Options]) -> None:
    from dinomaly_hd.runs.sync import synchronise

    done = synchronise(start.options.result_dir, root=ROOT, say=say, tick=start.guard.check)
    say(
        f"{done.completed} run folders completed ({done.points} points, {done.operations} other records), "
        f"{done.at_work} at work, {done.closed} runs closed that were left running"
    )
    if done.refused:
        raise TrackingError(f"{done.refused} run folders could not be completed; nothing is lost, sync again")


COMMAND, main = entry_point("sync", __doc__, Options, sync)
start_program(__name__, main)
