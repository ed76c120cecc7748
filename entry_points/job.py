"""Run one job of a suite; `suite` writes its job.json and starts it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinomaly_hd.flag_texts import Option
from dinomaly_hd.flags import parse_options
from dinomaly_hd.jobs import die_with_parent
from entry_points.common import launch, say

if TYPE_CHECKING:
    from dinomaly_hd.training.guards import SignalGuard

FLAGS = {"config": Option("", "the job.json of one member of a suite")}


def main(argv: Sequence[str], guard: "SignalGuard") -> None:
    """Run the job."""
    die_with_parent()
    config = parse_options("job", argv, options=FLAGS, doc=__doc__)["config"]
    from dinomaly_hd.experiments.as_jobs import run_job

    run_job(Path(config), guard=guard, say=say)


if __name__ == "__main__":
    launch(main)
