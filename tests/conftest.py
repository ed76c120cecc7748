"""Tests see none of the surroundings' MLflow settings and leave nothing behind in the checkout."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Work outside of the checkout: encoded images, and what MLflow puts into the working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DINOMALY_HD_FEATURES", str(tmp_path_factory.mktemp("features")))
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
        for name in ("no_proxy", "NO_PROXY"):  # else a user's proxy is asked for the servers of tests
            patch.setenv(name, "127.0.0.1")
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield


@pytest.fixture(autouse=True)
def no_tracking_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget a tracking server or run that the environment names."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables: making them takes seconds, copying them none."""
    from dinomaly_hd.runs.store import prepare_store

    root = tmp_path_factory.mktemp("empty_store")
    prepare_store(f"sqlite:///{root / 'mlflow.db'}", experiment="Template", root=root)
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return root / "mlflow.db"
