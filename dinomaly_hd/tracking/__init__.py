"""MLflow as a copy of the run folder; the only package that imports mlflow, and only when a tracker starts."""

import os

from dinomaly_hd.tracking.outbox import Outbox
from dinomaly_hd.tracking.store import close_stale_runs, default_uri, prepare_store
from dinomaly_hd.tracking.tracker import SyncReport, Tracker, sync_run

# MLflow's defaults let one call to a dead server take 246 s, and repeating a request whose answer was lost
# makes a second run; the tracker repeats by itself, so each request may fail at once.
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)

__all__ = [
    "Outbox",
    "SyncReport",
    "Tracker",
    "close_stale_runs",
    "default_uri",
    "prepare_store",
    "sync_run",
]
