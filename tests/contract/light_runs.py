"""Runs of any model family on tiny maps, without what takes longest: pictures, or the whole evaluation."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dinomaly_hd.errors import SignalGuard
from dinomaly_hd.experiments import evaluate, run
from dinomaly_hd.experiments.checks import Work
from dinomaly_hd.experiments.score import Scorer
from dinomaly_hd.models.detector import Detector
from dinomaly_hd.runs.folder import Context
from dinomaly_hd.runs.mirror import Mirror
from dinomaly_hd.runs.store import client_for, default_uri
from dinomaly_hd.training.checkpoint import trained_state
from dinomaly_hd.training.loop import Trained

BASE = {
    "preset": "quick",
    "seed": "42",
    "gpu": "cpu",
    "simulate_size": "tiny",
    "domains": "A,B",
    "train_domains": "A",
    "map_size": "32",
    "maps_per_group": "0",
}
STEPS = {"max_steps": "2", "batch_size": "4"}
FROM_SCRATCH = {**STEPS, "image_size": "32x48", "width": "0.0625"}
OF_ENCODER = {"image_size": "32"}
# Values by ``model_type`` that make a run tiny.
SMALL: dict[str, dict[str, str]] = {
    "dinomaly": {**BASE, **STEPS, **OF_ENCODER, "decoder_depth": "2"},
    "patchcore": {**BASE, **OF_ENCODER},
    "draem": {**BASE, **FROM_SCRATCH},
    "draem_sevnet": {**BASE, **FROM_SCRATCH},
    "trivial": BASE,
}


class Seen(NamedTuple):
    """A run as its evaluation would get it, and the scores of four test images.

    ``weights`` are those that would be exported; ``history`` holds each logged series.
    """

    work: Work
    detector: Detector
    trained: Trained
    weights: dict[str, Tensor]
    score_4: Tensor
    history: Mapping[str, list[tuple[int, float]]]


def evaluate_four_images(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """Put a light stand-in for the evaluation and return the list that it fills, one entry a run."""
    seen: list[Seen] = []

    def light(work: Work, scorer: Scorer, trained: Trained) -> dict[str, Any]:
        positions = work.ready.manifest.indices(split="test")[:4]
        detector = scorer.detector.eval()
        images = scorer.images(positions, "scoring")
        score_4 = torch.cat([detector.score(detector.encode(one)).score_B for one in images])
        assert torch.isfinite(score_4).all()
        history = work.tracker.journal.history()
        seen.append(Seen(work, detector, trained, trained_state(detector), score_4, history))
        return {}

    monkeypatch.setattr(run, "evaluate", light)
    monkeypatch.setattr(run, "record", lambda *_: {})
    return seen


def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out plots and the model's copy for MLflow, which are most of a tiny run's time."""
    monkeypatch.setattr(evaluate, "draw_plots", lambda *_, **__: None)
    monkeypatch.setattr(Mirror, "_do_model", lambda *_, **__: None)


def assert_same_weights(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Compare to the last bit."""
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


def runs_in(context: Context, kind: str = "") -> list[Any]:
    """Return the MLflow runs of a context's experiment, of one kind or all."""
    client = client_for(default_uri(context.root))
    experiment = client.get_experiment_by_name(context.experiment)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'" if kind else ""))


def stopping_at(context: Context, step: int) -> Context:
    """Return surroundings in which a signal comes after ``step`` steps."""
    guard = SignalGuard()

    def progress(done: int, _total: int, _seconds_left: float) -> None:
        if done == step:
            guard.received = 15

    return replace(context, guard=guard, on_progress=progress)
