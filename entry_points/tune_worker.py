"""A worker of a study, started by `tune` with a job's file."""

import os
from pathlib import Path

from pydantic import Field

from dinomaly_hd import provenance
from dinomaly_hd.config.base import Frozen
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.jobs.job import die_with_parent, read_job
from entry_points import tune
from entry_points.common import Start, entry_point, launch


class Options(Frozen):
    config: Path = Field(description="job.json that `tune` wrote")


def work(start: Start[Options]) -> None:
    die_with_parent()
    path = start.options.config
    content = read_job(path, code_digest=provenance.code_digest())
    from dinomaly_hd.experiments.study import run_worker
    from dinomaly_hd.tuning.storage import VARIABLE

    if VARIABLE not in os.environ:  # `tune` sets it, since the address may hold a password
        raise ConfigError(f"{path}: the study's storage is not known: no {VARIABLE}; start `tune` again")
    flags = [f"--{name}={text}" for name, text in content["flags"].items()]
    plan, context = tune.prepare(Start(tune.COMMAND.parse(flags), start.guard))
    run_worker(plan, context, folder=path.parent)


COMMAND, main = entry_point("tune_worker", __doc__, Options, work)

if __name__ == "__main__":
    raise SystemExit(launch(main))
