"""The MLflow parent and the folder of a comparison, whose members are ordinary runs below it."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from dinomaly_hd import provenance
from dinomaly_hd.config import RunConfig, flatten
from dinomaly_hd.errors import DinomalyHDError, Interrupted
from dinomaly_hd.experiments.context import Context
from dinomaly_hd.experiments.run_folder import RunFolder, open_run
from dinomaly_hd.experiments.session import CLOSE_TIMEOUT_S, START_TIMEOUT_S, run_name
from dinomaly_hd.journal import Journal
from dinomaly_hd.tracking import Tracker, default_uri


class Parent:
    """A comparison at work; ``member`` gives the surroundings of one of its runs."""

    def __init__(self, folder: RunFolder, tracker: Tracker, context: Context) -> None:
        self.folder, self.tracker, self.context = folder.path, tracker, context
        self._record = folder

    def member(self, name: str) -> Context:
        """Return the context of the member ``name``: a subfolder here, a child run in MLflow."""
        return replace(
            self.context,
            folder=self.folder / name,
            parent_run_id=self.tracker.run_id,
            run_name=None,
            resume="auto",
            tags={**self.context.tags, "sweep": self.folder.name},
        )

    def metrics(self, values: Mapping[str, float]) -> None:
        """Log what the comparison found."""
        self.tracker.metrics(values, step=0)

    def artifact(self, path: Path) -> None:
        """Log a file of the comparison."""
        self.tracker.artifact(path)

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """End the comparison in its folder and in MLflow."""
        self._record.set_state(status=status)
        self.tracker.close(status, timeout_s=CLOSE_TIMEOUT_S)


@contextmanager
def parent_run(run: RunConfig, context: Context, *, kind: str) -> Iterator[Parent]:
    """Open a comparison ``kind`` of runs like ``run``, or go on with an unfinished one.

    Raises:
        DinomalyHDError: What a member raised, once the parent is closed as FAILED or KILLED.
    """
    config_hash = hashlib.sha256(f"{kind}:{run.digest()}:{run.data.data_root}".encode()).hexdigest()[:16]
    with open_run(
        context.result_dir / kind,
        variant=run.model.variant,
        seed=run.seed,
        config_hash=config_hash,
        resume=context.resume,
    ) as folder:
        tracker = Tracker(
            Journal(folder.path / "journal.jsonl"),
            uri=default_uri(context.root),
            experiment=context.experiment,
            run_name=context.run_name or f"{kind}-{run_name(run)}",
            tags={
                "variant": run.model.variant,
                "kind": kind,
                "sweep": folder.path.name,
                "config_hash": config_hash,
                "command": context.command,
                **provenance.git_facts(context.root),
            },
            root=context.root,
            system_metrics=False,
        )
        parent = Parent(folder, tracker, context)
        run_id = tracker.start(timeout_s=START_TIMEOUT_S)
        if run_id is not None:
            folder.set_state(mlflow_run_id=run_id)
        tracker.params(flatten(run))
        try:
            yield parent
        except Interrupted:
            parent.close("KILLED")
            raise
        except BaseException as error:
            tracker.tags({"error": str(error) if isinstance(error, DinomalyHDError) else repr(error)})
            parent.close("FAILED")
            raise
        parent.close("FINISHED")
