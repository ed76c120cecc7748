"""The folder and the MLflow run of a study or of a trial, whose members are ordinary runs below it."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar

from dinomaly_hd.errors import ConfigError, DinomalyHDError
from dinomaly_hd.runs.context import Context
from dinomaly_hd.experiments.page import open_page
from dinomaly_hd.runs.folder import open_run
from dinomaly_hd.runs.tracker import Tracker

LOCK_WAIT_S = 120.0
"""A trial whose worker is taken for dead may still be stopping somewhere."""


class Busy(DinomalyHDError):
    """Another process works in this folder."""

    exit_code: ClassVar[int] = 75


@contextmanager
def study_page(
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
        with open_page(
            opened,
            context,
            name=name,
            tags={"kind": kind, "config_hash": identity, **tags},
            resumed=resumed,
        ) as page:
            yield page
