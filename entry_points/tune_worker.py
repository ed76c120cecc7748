"""A worker of a study, started by `tune` with a job's file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinomaly_hd.errors import ConfigError
from dinomaly_hd.flag_texts import Option
from dinomaly_hd.flags import parse_options
from entry_points.common import launch
from entry_points.tune import prepare_study

if TYPE_CHECKING:
    from dinomaly_hd.training.guards import SignalGuard

FLAGS = {"config": Option("", "job.json that `tune` wrote")}


def main(argv: Sequence[str], guard: "SignalGuard") -> None:
    """Run trials until the study is over, or the process that started this one ends."""
    from dinomaly_hd import provenance
    from dinomaly_hd.jobs import die_with_parent, read_job

    die_with_parent()
    path = Path(parse_options("tune_worker", argv, options=FLAGS, doc=__doc__)["config"])
    content = read_job(path, code_digest=provenance.code_digest())
    from dinomaly_hd.experiments.study import run_worker
    from dinomaly_hd.tuning.storage import VARIABLE

    if VARIABLE not in os.environ:  # `tune` sets it, since the address may hold a password
        raise ConfigError(f"{path}: the study's storage is not known: no {VARIABLE}; start `tune` again")
    flags = [f"--{name}={text}" for name, text in content["flags"].items()]
    plan, context, _, _ = prepare_study(flags, guard)

    run_worker(plan, context, folder=path.parent)


if __name__ == "__main__":
    launch(main)
