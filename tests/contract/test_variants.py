"""Every variant, from the table: it starts like the baseline, learns, resumes exactly, and does what it says.

Each is trained by ``training.loop.train`` on simulated maps, from encoder features of random weights.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dinomaly_hd.batch import Batch
from dinomaly_hd.config import (
    DinomalyConfig,
    RowDropoutAttention,
    RowMaskingBottleneck,
    RunConfig,
    SegmentBottleneck,
    flatten,
    with_values,
)
from dinomaly_hd.config.presets import preset_run
from dinomaly_hd.config.variants import ABLATION, VARIANTS
from dinomaly_hd.data.features import FeatureCache, TrainingSet, digests, image_batches
from dinomaly_hd.data.hdmap import load_manifest
from dinomaly_hd.data.simulator import simulate
from dinomaly_hd.data.splits import hold_out
from dinomaly_hd.data.store import ImageStore
from dinomaly_hd.errors import Interrupted
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.dinomaly.detector import Dinomaly
from dinomaly_hd.models.weights import Weights
from dinomaly_hd.training import checkpoint as checkpoints
from dinomaly_hd.training import loop
from dinomaly_hd.training.signals import SignalGuard

from .light_runs import assert_same_weights

STEPS, BATCH, INTERRUPTED_AT = 20, 4, 12
TOKENS = 6 * 6
# Fixed settings: no schedule changes what a loss means between the first and the last step.
VALUES = {
    "image_size": "48",
    "map_size": "32",
    "decoder_depth": 2,
    "max_steps": STEPS,
    "batch_size": BATCH,
    "warmup_steps": 5,
    "checkpoint_interval": 10,
    "gpu": "cpu",
    "discard_final": 0.6,
    "discard_warmup": 0,
    "q_warmup": 0,
    "q_percent": 30,
    "decoder_warmup": 10,
}
EVERY: dict[str, Callable[[], DinomalyConfig]] = {
    **VARIANTS,
    **{f"ablation {name}": model for name, model in ABLATION.items()},
}


class Record:
    """A log that remembers the metrics by step."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        assert step not in self.steps
        self.steps[step] = dict(values)

    def series(self, name: str) -> list[float]:
        return [values[f"train/{name}"] for _, values in sorted(self.steps.items())]


def run_of(variant: str, **values: Any) -> RunConfig:
    return with_values(preset_run("quick", EVERY[variant]()), {**VALUES, **values})


@functools.cache
def built(run: RunConfig) -> Dinomaly:
    detector = build_detector(run, weights=Weights("random", None, "random"))
    assert isinstance(detector, Dinomaly)
    return detector


def fresh(run: RunConfig) -> Dinomaly:
    """Return an untrained detector; a copy, since building takes longer than training some steps."""
    return copy.deepcopy(built(run))


class Maps(NamedTuple):
    """Simulated maps, the positions of those that are trained on, and their common encoder's outputs."""

    store: ImageStore
    train: Any
    cache: FeatureCache

    def batches(self) -> Iterator[Tensor]:
        return image_batches(self.store, self.train, batch_size=8, num_workers=0)


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Maps:
    run = run_of("baseline")
    root = simulate(tmp_path_factory.mktemp("maps") / "tiny", size="tiny", seed=0)
    manifest = load_manifest(root, domains=run.data.domain_names, conditions=run.data.conditions)
    store = ImageStore(manifest, keep_bytes=2**26)
    return Maps(store, hold_out(manifest, ratio=0, seed=0).train, FeatureCache())


def training_data(detector: Dinomaly, maps: Maps) -> loop.TrainingData:
    """Encode once, as a run does, where the variant leaves its images as they are."""
    cache = None if detector.alters_images else maps.cache
    names = digests(maps.store.manifest, maps.train)
    if cache is not None and cache.get(names) is None:
        cache.use("the encoder of all variants")
        cache.add(names, torch.cat([detector.encode(images) for images in maps.batches()]))
    dataset = TrainingSet(maps.store, maps.train, cache=cache)
    return loop.TrainingData(dataset, len(dataset), 0, "data", "encoder", str, None)


def train(run: RunConfig, maps: Maps, folder: Path, *, until: int | None = None) -> "Trained":
    folder.mkdir(exist_ok=True)
    detector, record = fresh(run), Record()
    resume = checkpoints.newest(folder).checkpoint
    if resume is None:
        detector.fit_encoder(maps.batches())
        detector.fit_loss(maps.batches())
    else:
        loop.load_trained_state(detector, resume.weights)
    with SignalGuard() as guard:

        def progress(done: int, total: int) -> None:
            assert total == STEPS
            if done == until:
                guard.received = 15

        hooks = loop.Hooks(record, lambda state: checkpoints.save(folder, state), guard, progress)
        loop.train(detector, run=run, data=training_data(detector, maps), hooks=hooks, resume=resume)
    return Trained(detector, record, run)


class Trained(NamedTuple):
    """A variant after its training."""

    detector: Dinomaly
    record: Record
    run: RunConfig


def test_it_says_its_own_name() -> None:
    assert {name: model().variant for name, model in VARIANTS.items()} == {name: name for name in VARIANTS}


def start(model: Dinomaly) -> dict[str, Tensor]:
    """Return the trained weights by what they are: a wrapped MLP is the same MLP."""
    names = ((name.replace("bottleneck.mlp.", "bottleneck."), p) for name, p in model.named_parameters())
    return {name: parameter.detach() for name, parameter in names if parameter.requires_grad}


def test_all_start_from_the_baselines_weights() -> None:
    reference = start(fresh(run_of("baseline")))
    for variant in EVERY:
        own = start(built(run_of(variant)))
        assert reference.keys() <= own.keys()
        assert all(torch.equal(reference[name], own[name]) for name in reference), variant


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_learns_resumes_exactly_and_does_what_it_says(variant: str, maps: Maps, tmp_path: Path) -> None:
    run = run_of(variant)
    whole = train(run, maps, tmp_path / "whole")
    assert_learned(whole, maps)
    assert_noise_and_discards(whole, maps)
    assert_scores_are_fixed(whole, maps)
    with pytest.raises(Interrupted):
        train(run, maps, tmp_path / "broken", until=INTERRUPTED_AT)
    resumed = train(run, maps, tmp_path / "broken")
    expected = {step: values for step, values in whole.record.steps.items() if step >= INTERRUPTED_AT}
    assert resumed.record.steps == expected
    assert_same_weights(whole.detector.state_dict(), resumed.detector.state_dict())


def assert_learned(trained: Trained, maps: Maps) -> None:
    """Compare steps of equal settings, the loss without noise before and after, and every weight."""
    detector, record, run = trained
    loss = record.series("loss")
    assert sum(loss[-5:]) < 0.9 * sum(loss[:5])
    before, encoded = fresh(run), detector.encode(next(maps.batches()))
    after_B = detector.validation_loss(encoded, position=0)
    assert after_B.mean() < 0.8 * before.validation_loss(encoded, position=0).mean()
    first, last = start(before), start(detector)
    assert not [name for name in first if torch.equal(first[name], last[name])]


def assert_noise_and_discards(trained: Trained, maps: Maps) -> None:
    """Compare what is reported to the config; that noise is drawn at its rate, unit tests say."""
    _, record, run = trained
    noise, attention, loss = run.model.bottleneck, run.model.attention, run.model.loss
    expected = 0.0
    if isinstance(noise, RowMaskingBottleneck):
        expected = noise.row_p
    elif isinstance(noise, SegmentBottleneck):
        expected = noise.row_p * noise.seg_len / 6 * noise.seg_drop_p
    assert record.series("drop_rate_expected") == pytest.approx([expected] * STEPS, rel=1e-6)
    assert (sum(record.series("drop_rate")) > 0) == (expected > 0)
    reported = "train/decoder_drop_rate" in record.steps[0]
    assert reported == isinstance(attention, RowDropoutAttention)
    if isinstance(attention, RowDropoutAttention):
        full = attention.row_p * attention.seg_len / 6 * attention.seg_drop_p
        rising = [full * min(step / 10, 1) for step in range(STEPS)]
        assert record.series("decoder_drop_rate_expected") == pytest.approx(rising)
        assert sum(record.series("decoder_drop_rate")) > 0
    if loss.loss == "focal":
        assert "train/discard_rate" not in record.steps[0]
        return
    p = 0.7 if loss.loss == "topk" else 0.6
    assert record.series("discard_target") == pytest.approx([p] * STEPS)
    rates = record.series("discard_rate")
    images = BATCH // 2 if run.model.auxiliary.auxiliary == "bands" else BATCH
    if loss.loss != "adaptive":
        assert rates == pytest.approx([p] * STEPS, abs=1.001 / (images * TOKENS))
        return
    # Each image has its own rate, whose mean over the training images is p; whole tokens round it up.
    steps = len(maps.train) // BATCH
    assert steps * BATCH == len(maps.train)
    assert steps <= STEPS
    assert p - 1e-6 <= sum(rates[:steps]) / steps <= p + 1 / TOKENS
    assert max(rates) - min(rates) > 1e-3


def assert_scores_are_fixed(trained: Trained, maps: Maps) -> None:
    detector, _, run = trained
    encoded = detector.encode(next(maps.batches()))
    again = fresh(run)
    again.load_state_dict(detector.state_dict())
    first = detector.train().score(encoded)
    for other in (detector.eval().score(encoded), again.score(encoded)):
        assert torch.equal(first.map_BHW, other.map_BHW)
        assert torch.equal(first.score_B, other.score_B)
    assert torch.isfinite(first.map_BHW).all()
    torch.testing.assert_close(detector.score(encoded[:1]).score_B, first.score_B[:1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_runs_on_a_transformer_with_its_own_class_token_setting(variant: str) -> None:
    run = run_of(variant, encoder="vit_tiny_patch16_224", encoder_weights="random", image_size="64")
    detector = fresh(run)
    images = torch.rand(3, 31, 95, generator=torch.Generator().manual_seed(1))
    detector.fit_loss([images])
    kept = flatten(run)["class_token"] == "keep"
    encoded = detector.encode(images)
    assert encoded.shape == (3, 2, 16 + kept, 192)
    loss = detector.training_loss(Batch(images, torch.tensor([0, 0, 1]), encoded), step=5)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    prediction = detector.score(encoded)
    assert prediction.map_BHW.shape == (3, 32, 32)
    assert torch.isfinite(prediction.score_B).all()
