"""One tiny finished run that contract tests share."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from dinomaly_hd.experiments.context import Context

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


@pytest.fixture(scope="session")
def tiny_settings() -> dict[str, str]:
    """Return flags of a run that takes seconds."""
    return dict(SETTINGS)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Train two steps of `horizontal` on simulated maps, evaluate them and record them in an own store."""
    # Here, so that contract tests without a run need no torch.
    from dinomaly_hd.experiments.context import Context
    from dinomaly_hd.experiments.training_run import execute
    from dinomaly_hd.flags import resolve
    from dinomaly_hd.training.guards import SignalGuard

    root = tmp_path_factory.mktemp("project")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        for module in (r"lightning\.", r"torch\.", r"mlflow\."):
            warnings.filterwarnings("ignore", module=module)
        outcome = execute(
            resolve("horizontal", SETTINGS),
            Context(
                root=root,
                result_dir=root / "results",
                experiment="contract",
                guard=SignalGuard(),
                say=lines.append,
                command="python -m entry_points.horizontal --seed 42",
                entry_point="horizontal",
            ),
        )
    assert outcome.mlflow_run_id is not None
    return TinyRun(
        folder=outcome.folder,
        data=root / "data" / "simulated_tiny_seed0",
        root=root,
        result_dir=root / "results",
        uri=uri,
        run_id=outcome.mlflow_run_id,
        lines=tuple(lines),
    )


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Context]":
    """Give runs an empty project with a store of its own."""
    from dinomaly_hd.experiments.context import Context
    from dinomaly_hd.training.guards import SignalGuard

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    with warnings.catch_warnings():
        for module in (r"lightning\.", r"torch\.", r"mlflow\."):
            warnings.filterwarnings("ignore", module=module)
        yield Context(
            root=tmp_path,
            result_dir=tmp_path / "results",
            experiment="contract",
            guard=SignalGuard(),
            say=lambda _: None,
            command="python -m entry_points.contract",
            entry_point="contract",
        )
