"""Complete in MLflow what run folders hold and MLflow lacks; mark runs of dead processes KILLED."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinomaly_hd.flag_texts import OPTIONS
from entry_points.common import ROOT, launch, say

if TYPE_CHECKING:
    from dinomaly_hd.training.guards import SignalGuard

FLAGS = {"result_dir": OPTIONS["result_dir"]}


def main(argv: Sequence[str], guard: "SignalGuard") -> None:
    """Synchronise and say what was done."""
    from dinomaly_hd.flags import parse_options

    values = parse_options("sync", argv, options=FLAGS, doc=__doc__)
    from dinomaly_hd.errors import TrackingError
    from dinomaly_hd.runs.sync import synchronise

    done = synchronise(Path(values["result_dir"]), root=ROOT, say=say, tick=guard.check)
    say(
        f"{done.completed} run folders completed ({done.points} points, {done.operations} other records), "
        f"{done.at_work} at work, {done.closed} runs of dead processes closed"
    )
    if done.refused:
        raise TrackingError(f"{done.refused} run folders could not be completed; nothing is lost, sync again")


if __name__ == "__main__":
    launch(main)
