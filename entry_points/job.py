"""Run one job of a suite; `suite` writes its job.json and starts it."""

from pathlib import Path

from pydantic import Field

from dinomaly_hd.config.base import Frozen
from dinomaly_hd.jobs.job import die_with_parent
from entry_points.common import Start, entry_point, launch, say


class Options(Frozen):
    config: Path = Field(description="the job.json of one member of a suite")


def job(start: Start[Options]) -> None:
    die_with_parent()
    from dinomaly_hd.experiments.as_jobs import run_job

    run_job(start.options.config, guard=start.guard, say=say)


COMMAND, main = entry_point("job", __doc__, Options, job)

if __name__ == "__main__":
    raise SystemExit(launch(main))
