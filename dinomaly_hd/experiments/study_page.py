"""The folder and the MLflow run of a study or of a trial, whose members are ordinary runs below it."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar, Literal

from dinomaly_hd import provenance
from dinomaly_hd.errors import ConfigError, DinomalyHDError, Interrupted, Pruned
from dinomaly_hd.experiments.context import Context
from dinomaly_hd.experiments.run_folder import open_run
from dinomaly_hd.experiments.session import CLOSE_TIMEOUT_S, START_TIMEOUT_S
from dinomaly_hd.journal import Journal
from dinomaly_hd.tracking import Tracker, default_uri

LOCK_WAIT_S = 120.0
"""A trial whose worker is taken for dead may still be stopping somewhere."""


class Busy(DinomalyHDError):
    """Another process works in this folder."""

    exit_code: ClassVar[int] = 75


@contextmanager
def open_page(
    folder: Path,
    context: Context,
    *,
    kind: str,
    name: str,
    tags: Mapping[str, str],
    resumed: str | None,
    wait_s: float,
) -> Iterator[Tracker]:
    """Lock a folder and copy it to an MLflow run, the one of an earlier start if there was one.

    Args:
        folder: Of the study or trial.
        context: Its surroundings; ``parent_run_id`` is the run above.
        kind: "study" or "trial".
        name: What the run is called.
        tags: Beside those that every run has.
        resumed: MLflow run of an earlier start, which may have been on another machine.
        wait_s: How long to wait for another process that works in the folder.

    Raises:
        Busy: Another process works in the folder.
        DinomalyHDError: What was raised inside, once the run is closed as KILLED or FAILED.
    """
    identity = hashlib.sha256(json.dumps([kind, folder.name]).encode()).hexdigest()[:16]
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(
                open_run(
                    folder.parent,
                    variant=kind,
                    seed=0,
                    config_hash=identity,
                    resume="auto",
                    folder=folder,
                    of_members=True,
                    wait_s=wait_s,
                    tick=context.guard.check,
                )
            )
        except ConfigError as error:
            raise Busy(f"{folder}: another process is at work in it; wait for it or stop it") from error
        if opened.finished:
            opened.set_state(status="RUNNING")
        tracker = Tracker(
            Journal(opened.path / "journal.jsonl"),
            uri=default_uri(context.root),
            experiment=context.experiment,
            run_name=name,
            tags={
                "kind": kind,
                "config_hash": identity,
                "command": context.command,
                "run_folder": str(opened.path.resolve()),
                **tags,
                **provenance.git_facts(context.root),
            },
            root=context.root,
            parent_run_id=context.parent_run_id,
            resume_run_id=resumed,
            system_metrics=False,
        )
        run_id = tracker.start(timeout_s=START_TIMEOUT_S)
        if run_id is not None:
            opened.set_state(mlflow_run_id=run_id)
        status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
        try:
            yield tracker
            status = "FINISHED"
        except (Interrupted, Pruned) as error:
            status = "KILLED"
            if isinstance(error, Pruned):
                tracker.tags({"pruned": "true"})
            raise
        except BaseException as error:
            tracker.tags({"error": str(error) if isinstance(error, DinomalyHDError) else repr(error)})
            raise
        finally:
            opened.set_state(status=status)
            tracker.close(status, timeout_s=CLOSE_TIMEOUT_S)
