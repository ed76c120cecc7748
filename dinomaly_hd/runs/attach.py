"""Which MLflow run a run folder is copied to: adopted, found again, or made."""

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dinomaly_hd.errors import TrackingError, reason_of
from dinomaly_hd.runs.outbox import Outbox, RunRecord
from dinomaly_hd.runs.store import (
    client_for,
    close_stale_runs,
    is_outage,
    prepare_store,
    process_tag,
    send_tags,
    write_ahead,
)

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

KEY_TAG = "run_key"
RANDOM_NAME = re.compile(r"[^\W\d_]+-[^\W\d_]+-\d+")
"""What MLflow calls a run that was given no name: "bold-snail-123"."""


class Attachment(NamedTuple):
    """An MLflow run and how we came by it; ``made`` if it holds nothing yet."""

    client: "MlflowClient"
    run_id: str
    experiment_id: str
    made: bool


def attach(
    outbox: Outbox, *, uri: str, root: Path, adopted: str | None, resumed: str | None, live: bool
) -> Attachment:
    """Return the run that `mlflow run` made for us, or the one of an earlier start, or a new one.

    With ``live`` the run is marked RUNNING and as this process's, and runs left behind are closed.

    Raises:
        TrackingError: The store refuses: no such adopted run, or a bad experiment.
        Exception: What MLflow raises when the store does not answer (`store.is_outage`).
    """
    record = outbox.run
    assert record is not None, "open_run first"
    made = False
    if adopted is not None:
        write_ahead(uri)
        client = client_for(uri)
        run = _get(client, adopted)
        if run is None:
            raise TrackingError(f"MLFLOW_RUN_ID={adopted} cannot be adopted at {uri}: there is no such run")
    else:
        experiment_id = prepare_store(uri, experiment=record.experiment, root=root)
        client = client_for(uri)
        parent = _get(client, record.parent_run_id)
        if parent is not None:  # `mlflow run` may have chosen its experiment
            experiment_id = parent.info.experiment_id
        found = _before(client, experiment_id, [resumed, outbox.attached], key=record.key)
        made = found is None
        run = found or _make(client, experiment_id, record)
    run_id = run.info.run_id
    if live:
        _claim(client, run, record, adopted=adopted is not None)
    if outbox.attached != run_id:
        outbox.attach(run_id)
    return Attachment(client, run_id, run.info.experiment_id, made)


def _get(client: "MlflowClient", run_id: str | None) -> "Run | None":
    """Return a run, None where the store has none of this id."""
    try:
        return None if run_id is None else client.get_run(run_id)
    except Exception as error:
        if is_outage(error):
            raise
        return None


def _before(client: "MlflowClient", experiment_id: str, ids: list[str | None], *, key: str) -> "Run | None":
    """Return the run of an earlier start, by its id or its key.

    By its key a run is found that was made although the answer got lost: "create" again would make a second.
    """
    for run_id in filter(None, ids):
        run = _get(client, run_id)
        if run is None:
            logger.warning("MLflow run %s is not there any more, its history goes to a new run", run_id)
        elif run.info.lifecycle_stage == "active":
            return run
    return next(iter(client.search_runs([experiment_id], f"tags.{KEY_TAG} = '{key}'", max_results=1)), None)


def _make(client: "MlflowClient", experiment_id: str, record: RunRecord) -> "Run":
    from mlflow.tracking.context.registry import resolve_tags

    return client.create_run(
        experiment_id, start_time=record.time_ms, tags=resolve_tags(_tags(record)), run_name=record.run_name
    )


def _claim(client: "MlflowClient", run: "Run", record: RunRecord, *, adopted: bool) -> None:
    run_id = run.info.run_id
    # A name that somebody gave to `mlflow run` stays.
    named_at_random = adopted and RANDOM_NAME.fullmatch(run.info.run_name or "") is not None
    client.update_run(run_id, status="RUNNING", name=record.run_name if named_at_random else None)
    send_tags(client, run_id, {**_tags(record), **process_tag()})
    try:
        for stale in close_stale_runs(client, run.info.experiment_id):
            logger.info("MLflow run %s was left behind by a dead process: marked KILLED", stale)
    except Exception as error:
        if is_outage(error):
            raise
        logger.warning("runs left behind could not be closed: %s", reason_of(error))


def _tags(record: RunRecord) -> dict[str, str]:
    parent = {} if record.parent_run_id is None else {"mlflow.parentRunId": record.parent_run_id}
    return {**record.tags, **parent, KEY_TAG: record.key}
