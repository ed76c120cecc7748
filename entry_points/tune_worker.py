"""A worker of a study, started by `tune` with a job's file."""

from collections.abc import Sequence
from pathlib import Path

from dinomaly_hd import provenance
from dinomaly_hd.config.base import Frozen, doc
from dinomaly_hd.config.command import Command
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.jobs import die_with_parent, read_job
from dinomaly_hd.training.guards import SignalGuard
from entry_points import tune
from entry_points.common import launch


class Options(Frozen):
    config: Path = doc("job.json that `tune` wrote")


COMMAND = Command("tune_worker", __doc__, Options)


def main(argv: Sequence[str], guard: SignalGuard) -> None:
    die_with_parent()
    path = COMMAND.parse(argv).options.config
    content = read_job(path, code_digest=provenance.code_digest())
    try:
        storage = Path(content["storage_file"]).read_text()
    except OSError as error:
        raise ConfigError(f"{path}: the study's storage is not known: {error}; start `tune` again") from error
    flags = [f"--{name}={text}" for name, text in content["flags"].items()]
    plan, context = tune.prepare(tune.COMMAND.parse([*flags, f"--storage={storage}"]), guard)
    from dinomaly_hd.experiments.study import run_worker

    run_worker(plan, context, folder=path.parent)


if __name__ == "__main__":
    raise SystemExit(launch(main))
