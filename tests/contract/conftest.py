"""One tiny finished run that contract tests share, and projects for their own runs."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from dinomaly_hd.runs.folder import Context

SETTINGS = {
    "preset": "quick",
    "seed": "42",
    "simulate_size": "tiny",
    "image_size": "64",
    "decoder_depth": "2",
    "max_steps": "2",
    "batch_size": "4",
    "maps_per_group": "1",
    "gpu": "cpu",
}


class TinyRun(NamedTuple):
    """A finished run that no test may change.

    Attributes:
        folder: Run folder, below ``{root}/results/horizontal``.
        data: Root of the simulated maps it was trained on.
        root: Stands for the project: ``mlflow.db`` lies here.
        result_dir: Parent of all run folders.
        uri: Its MLflow store.
        run_id: Its MLflow run.
        lines: What it said.
    """

    folder: Path
    data: Path
    root: Path
    result_dir: Path
    uri: str
    run_id: str
    lines: tuple[str, ...]


@pytest.fixture(scope="module", autouse=True)
def project_of_entry_points(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give entry points another place than the checkout for simulated maps and MLflow's files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("entry_points.common.ROOT", tmp_path_factory.mktemp("checkout"))
        yield


@contextmanager
def project(root: Path, store: Path) -> "Iterator[Context]":
    """Yield what runs in an empty project share, with an MLflow store of its own, a copy of ``store``."""
    # Here, so that contract tests without a run need no torch.
    from dinomaly_hd.errors import SignalGuard
    from dinomaly_hd.runs.folder import Context

    shutil.copy(store, root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        for module in (r"lightning\.", r"torch\.", r"mlflow\."):
            warnings.filterwarnings("ignore", module=module)
        yield Context(
            root=root,
            result_dir=root / "results",
            experiment="contract",
            guard=SignalGuard(),
            say=lambda _: None,
            command="python -m entry_points.horizontal --seed 42",
            entry_point="horizontal",
        )


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> TinyRun:
    """Train two steps of `horizontal` on simulated maps, evaluate them and record them in an own store."""
    from dinomaly_hd.config.resolve import resolve_model
    from dinomaly_hd.experiments.run import execute

    root = tmp_path_factory.mktemp("project")
    lines: list[str] = []
    with project(root, empty_store) as context:
        outcome = execute(resolve_model("horizontal", SETTINGS), replace(context, say=lines.append))
    assert outcome.mlflow_run_id is not None
    data, uri = root / "data" / "simulated_tiny_seed0", f"sqlite:///{root / 'mlflow.db'}"
    return TinyRun(
        outcome.folder, data, root, root / "results", uri, outcome.mlflow_run_id, lines=tuple(lines)
    )


@pytest.fixture
def context(tmp_path: Path, empty_store: Path) -> "Iterator[Context]":
    """Give runs an empty project."""
    with project(tmp_path, empty_store) as context:
        yield context


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> "Iterator[Context]":
    """Give all runs of a file one project, so that data and MLflow's store are made once."""
    with project(tmp_path_factory.mktemp("place"), empty_store) as context:
        yield context


@pytest.fixture
def own(place: "Context", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Context":
    """Return the file's project with results and an experiment for one test alone; its runs draw nothing."""
    from .light_runs import without_pictures

    without_pictures(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place.root / 'mlflow.db'}")
    return replace(place, result_dir=tmp_path / "results", experiment=tmp_path.name)
