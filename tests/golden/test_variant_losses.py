"""The first six losses of every variant and every config of the ablation, pinned to 1e-5 relative.

A change of initial weights, noise, loss, attention, clipping or optimizer moves them. Where that is meant:

    python -m tests.golden.test_variant_losses

rewrites ``variant_losses.json``; its diff says which variants moved.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dinomaly_hd.batch import Batch
from dinomaly_hd.config.base import with_values
from dinomaly_hd.config.dinomaly import DinomalyConfig
from dinomaly_hd.config.presets import preset_run
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.config.variants import ABLATION, VARIANTS
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.models.weights import Weights
from dinomaly_hd.training.task import DetectorTask, Log

FILE = Path(__file__).parent / "variant_losses.json"
STEPS, BATCH, IMAGES = 6, 4, 8
CASES: dict[str, Callable[[], DinomalyConfig]] = {
    **VARIANTS,
    **{f"ablation {name}": model for name, model in ABLATION.items()},
}
# Every schedule passes through its warm-up within the six steps. 8 x 8 tokens of width 192.
VALUES = {
    "image_size": "64",
    "map_size": "32",
    "decoder_depth": 2,
    "max_steps": STEPS,
    "warmup_steps": 2,
    "discard_warmup": 4,
    "q_warmup": 4,
    "decoder_warmup": 2,
    "decoder_blocks": "0-1",
}


@contextmanager
def one_thread() -> Iterator[None]:
    """Sum in one order: the number of threads moves the last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def problem() -> tuple[Tensor, Tensor]:
    """Return maps (N, 31, 95) of different direction and features (N, 2, 64, 192) that share a structure."""
    generator = torch.Generator().manual_seed(20)
    images_NHW = torch.randn(IMAGES, 31, 95, generator=generator).cumsum(dim=2)
    noise_NSTD = torch.randn(IMAGES, 2, 64, 192, generator=generator)
    common_1STD = torch.randn(1, 2, 64, 192, generator=generator)
    return images_NHW, common_1STD + 0.5 * noise_NSTD


def task_of(detector: Detector, run: RunConfig, *, log: Log, position: int = 0) -> DetectorTask:
    """Return what trains a detector, without a trainer around it."""
    rest: Any = {"steps_per_epoch": 1, "name_files": str}
    task = DetectorTask(detector, training=run.training, log=log, position=position, **rest)
    task.optimizers = lambda: task.optimizer  # type: ignore[method-assign]
    task.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
    return task


def losses(run: RunConfig) -> list[float]:
    """Return the losses of the first steps of a run on the fixed problem."""
    detector = build_detector(run, weights=Weights("random", None, "random"))
    images_NHW, encoded_NSTD = problem()
    detector.fit_loss([images_NHW])
    found: list[float] = []
    task = task_of(detector, run, log=lambda values, _: found.append(values["train/loss"]))
    for step in range(STEPS):
        chosen = torch.arange(step * BATCH, (step + 1) * BATCH) % IMAGES
        task.training_step(Batch(images_NHW[chosen], chosen % 3, encoded_NSTD[chosen]), step)
    return found


def run_of(case: str) -> RunConfig:
    return with_values(preset_run("quick", CASES[case]()), VALUES)


@pytest.mark.parametrize("case", CASES)
def test_the_first_losses_are_those_of_the_file(case: str) -> None:
    expected = json.loads(FILE.read_text())
    assert set(expected) == set(CASES)
    with one_thread():
        assert losses(run_of(case)) == pytest.approx(expected[case], rel=1e-5)


SAME = {
    "ablation A0": "baseline",  # this encoder has no class tokens that could be removed
    "ablation A": "topk",
    "ablation D": "horizontal",
    "ablation F": "horizontal_topk",
}


def test_only_what_is_one_config_by_two_names_trains_alike() -> None:
    expected = json.loads(FILE.read_text())
    assert all(expected[case] == expected[variant] for case, variant in SAME.items())
    assert len({tuple(values) for values in expected.values()}) == len(CASES) - len(SAME)


if __name__ == "__main__":
    with one_thread():
        first = {case: losses(run_of(case)) for case in CASES}
    FILE.write_text(json.dumps(first, indent=2) + "\n")
