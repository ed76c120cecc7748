"""One tiny finished run that contract tests share."""

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


@pytest.fixture(scope="session")
def tiny_settings() -> dict[str, str]:
    """Return flags of a run that takes seconds."""
    return dict(SETTINGS)


@contextmanager
def project(root: Path) -> "Iterator[Context]":
    """Yield what runs in an empty project share, with an MLflow store of its own."""
    # Here, so that contract tests without a run need no torch.
    from dinomaly_hd.errors import SignalGuard
    from dinomaly_hd.runs.folder import Context

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
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Train two steps of `horizontal` on simulated maps, evaluate them and record them in an own store."""
    from dinomaly_hd.config.resolve import resolve_model
    from dinomaly_hd.experiments.run import execute

    root = tmp_path_factory.mktemp("project")
    lines: list[str] = []
    with project(root) as context:
        outcome = execute(resolve_model("horizontal", SETTINGS), replace(context, say=lines.append))
    assert outcome.mlflow_run_id is not None
    return TinyRun(
        folder=outcome.folder,
        data=root / "data" / "simulated_tiny_seed0",
        root=root,
        result_dir=root / "results",
        uri=f"sqlite:///{root / 'mlflow.db'}",
        run_id=outcome.mlflow_run_id,
        lines=tuple(lines),
    )


@pytest.fixture
def context(tmp_path: Path) -> "Iterator[Context]":
    """Give runs an empty project."""
    with project(tmp_path) as context:
        yield context
