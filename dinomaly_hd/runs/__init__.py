"""Run folders, and MLflow as a copy of them: only here and in serving mlflow is imported, when used."""

import os

# MLflow's defaults let one call to a dead server take 246 s, and repeating a request whose answer was lost
# makes a second run; the tracker repeats by itself, so each request may fail at once. Its own link to a run
# opens the training pages, so MLflow need not print one.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}.items():
    os.environ.setdefault(_name, _value)
