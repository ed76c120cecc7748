"""Complete in MLflow what run folders hold and MLflow lacks; close what dead processes left running."""

from dinomaly_hd.errors import TrackingError
from entry_points.common import ROOT, ResultOptions, Start, entry_point, launch, say


def sync(start: Start[ResultOptions]) -> None:
    from dinomaly_hd.runs.sync import synchronise

    done = synchronise(start.options.result_dir, root=ROOT, say=say, tick=start.guard.check)
    say(
        f"{done.completed} run folders completed ({done.points} points, {done.operations} other records), "
        f"{done.at_work} at work, {done.closed} runs closed that were left running"
    )
    if done.refused:
        raise TrackingError(f"{done.refused} run folders could not be completed; nothing is lost, sync again")


COMMAND, main = entry_point("sync", __doc__, ResultOptions, sync)

if __name__ == "__main__":
    raise SystemExit(launch(main))
