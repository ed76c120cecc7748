"""Run one job of a suite; `suite` writes its job.json and starts it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dinomaly_hd.config.base import Frozen
from dinomaly_hd.config.command import Command
from dinomaly_hd.errors import SignalGuard
from dinomaly_hd.jobs.job import die_with_parent
from entry_points.common import launch, say


class Options(Frozen):
    config: Annotated[Path, Field(description="the job.json of one member of a suite")]


COMMAND = Command("job", __doc__, Options)


def main(argv: Sequence[str], guard: SignalGuard) -> None:
    die_with_parent()
    options = COMMAND.parse(argv).options
    from dinomaly_hd.experiments.as_jobs import run_job

    run_job(options.config, guard=guard, say=say)


if __name__ == "__main__":
    raise SystemExit(launch(main))
