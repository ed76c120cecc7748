"""MLflow as a copy of the run folder; the only package that imports mlflow, and only when it is used."""

import os

from dinomaly_hd.tracking.outbox import OUTBOX_NAME
from dinomaly_hd.runs.pages import (
    artifact_page,
    artifact_picture,
    charts_page,
    compare_page,
    members_line,
    these_runs,
)
from dinomaly_hd.tracking.report_log import LoggedReport, ReportRun, add_report, log_report
from dinomaly_hd.runs.search import RUN_ID, Recorded, RunStore, StoredRun, recorded
from dinomaly_hd.runs.store import (
    close_all_stale_runs,
    close_stale_runs,
    default_uri,
    prepare_store,
    server_answers,
)
from dinomaly_hd.tracking.sync import SyncReport, sync_run
from dinomaly_hd.tracking.tracker import Status, Tracker

# MLflow's defaults let one call to a dead server take 246 s, and repeating a request whose answer was lost
# makes a second run; the tracker repeats by itself, so each request may fail at once. Its own link to a run
# opens the training pages, so MLflow need not print one.
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)

__all__ = [
    "OUTBOX_NAME",
    "RUN_ID",
    "LoggedReport",
    "Recorded",
    "ReportRun",
    "RunStore",
    "Status",
    "StoredRun",
    "SyncReport",
    "Tracker",
    "add_report",
    "artifact_page",
    "artifact_picture",
    "charts_page",
    "close_all_stale_runs",
    "close_stale_runs",
    "compare_page",
    "default_uri",
    "log_report",
    "members_line",
    "prepare_store",
    "recorded",
    "server_answers",
    "sync_run",
    "these_runs",
]
