"""Which MLflow run a run folder is copied to: adopted, found again, or made."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dinomaly_hd.errors import TrackingError, reason_of
from dinomaly_hd.tracking.delivery import send_tags
from dinomaly_hd.tracking.outbox import Outbox, RunRecord
from dinomaly_hd.runs.store import (
    client_for,
    close_stale_runs,
    is_outage,
    prepare_store,
    process_tags,
    write_ahead,
)

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

RUN_KEY_TAG = "run_key"


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
    assert outbox.run is not None, "open_run first"
    record = outbox.run
    if adopted is not None:
        write_ahead(uri)
        client = client_for(uri)
        run, made = _adopted(client, adopted, uri), False
    else:
        experiment_id = prepare_store(uri, experiment=record.experiment, root=root)
        client = client_for(uri)
        found = _found(client, [resumed, outbox.attached]) or _found_by_key(client, experiment_id, record.key)
        run, made = found or _make(client, experiment_id, record), found is None
    run_id = run.info.run_id
    if live:
        _claim(client, run, record, adopted=adopted is not None)
    if outbox.attached != run_id:
        outbox.attach(run_id)
    return Attachment(client, run_id, run.info.experiment_id, made)


def _adopted(client: "MlflowClient", run_id: str, uri: str) -> "Run":
    try:
        return client.get_run(run_id)
    except Exception as error:
        if is_outage(error):
            raise
        raise TrackingError(
            f"MLFLOW_RUN_ID={run_id} cannot be adopted at {uri}: {reason_of(error)}"
        ) from error


def _found(client: "MlflowClient", run_ids: list[str | None]) -> "Run | None":
    for run_id in run_ids:
        if run_id is None:
            continue
        try:
            run = client.get_run(run_id)
        except Exception as error:
            if is_outage(error):
                raise
            logger.warning("MLflow run %s is not there any more, its history goes to a new run", run_id)
        else:
            if run.info.lifecycle_stage == "active":
                return run
    return None


def _found_by_key(client: "MlflowClient", experiment_id: str, key: str) -> "Run | None":
    """Find a run that was made although the answer got lost; repeating "create" would make a second one."""
    runs = client.search_runs([experiment_id], f"tags.{RUN_KEY_TAG} = '{key}'", max_results=1)
    return runs[0] if runs else None


def _make(client: "MlflowClient", experiment_id: str, record: RunRecord) -> "Run":
    from mlflow.tracking.context.registry import resolve_tags

    return client.create_run(
        experiment_id,
        start_time=record.time_ms,
        tags=resolve_tags(_tags(record)),
        run_name=record.run_name,
    )


def _claim(client: "MlflowClient", run: "Run", record: RunRecord, *, adopted: bool) -> None:
    run_id = run.info.run_id
    # MLflow names a run at random unless `--run-name` was given; a name that somebody chose stays.
    named_at_random = adopted and _is_random_name(run.info.run_name or "")
    client.update_run(run_id, status="RUNNING", name=record.run_name if named_at_random else None)
    send_tags(client, run_id, _tags(record) | process_tags())
    try:
        for stale in close_stale_runs(client, run.info.experiment_id):
            logger.info("MLflow run %s was left behind by a dead process: marked KILLED", stale)
    except Exception as error:
        if is_outage(error):
            raise
        logger.warning("runs left behind could not be closed: %s", reason_of(error))


def _is_random_name(name: str) -> bool:
    parts = name.split("-")
    return len(parts) == 3 and parts[0].isalpha() and parts[1].isalpha() and parts[2].isdigit()


def _tags(record: RunRecord) -> dict[str, str]:
    parent = {} if record.parent_run_id is None else {"mlflow.parentRunId": record.parent_run_id}
    return {**record.tags, **parent, RUN_KEY_TAG: record.key}
