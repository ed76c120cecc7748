"""Tests see none of the surroundings' MLflow settings and leave none behind."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def encoded_images_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep encoded images out of the project's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DINOMALY_HD_FEATURES", str(tmp_path_factory.mktemp("features")))
        yield


@pytest.fixture(autouse=True)
def no_tracking_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget a tracking server or run that the environment names."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
