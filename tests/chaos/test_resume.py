"""A run ends bit by bit the same, however many processes read its images."""

from pathlib import Path

import pytest

from benchmarks.drills import runs


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "4"])
def test_loader_workers_change_nothing(tmp_path: Path, workers: str) -> None:
    expected = runs.reference(tmp_path.parent)
    assert runs.difference(runs.finish(tmp_path, num_workers=workers), expected) is None
