"""Every variant, from the table: it starts like the baseline, learns, resumes exactly, and does what it says.

Each is trained by ``training.loop.train`` on simulated maps, from encoder features of random weights.
"""

import copy
import functools
import math
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
from dinomaly_hd.data.features import FeatureCache, ImageStore, TrainingSet, digests, image_batches
from dinomaly_hd.data.hdmap import hold_out, load_manifest
from dinomaly_hd.data.simulator import simulate
from dinomaly_hd.errors import Interrupted, SignalGuard
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.dinomaly.detector import Dinomaly
from dinomaly_hd.models.weights import Weights
from dinomaly_hd.training import checkpoint as checkpoints
from dinomaly_hd.training import loop

STEPS, BATCH, INTERRUPTED_AT = 20, 4, 12
ROWS = COLUMNS = 6
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
    detector, record = fresh(run), Record()
    resume = checkpoints.newest(folder).checkpoint
    if resume is None:
        detector.fit_encoder(maps.batches())
        detector.fit_loss(maps.batches())
    else:
        checkpoints.load_trained_state(detector, resume.weights)
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


@pytest.fixture(scope="module")
def trained(maps: Maps, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Return what trains a variant without a break, once for all tests."""

    @functools.cache
    def whole(variant: str) -> Trained:
        return train(run_of(variant), maps, tmp_path_factory.mktemp(variant))

    return whole


Whole = Callable[[str], Trained]


def test_it_says_its_own_name() -> None:
    assert {name: model().variant for name, model in VARIANTS.items()} == {name: name for name in VARIANTS}


def start(model: Dinomaly) -> dict[str, Tensor]:
    """Return the trained weights by what they are: a wrapped MLP is the same MLP."""
    names = ((name.replace("bottleneck.mlp.", "bottleneck."), p) for name, p in model.named_parameters())
    return {name: parameter.detach() for name, parameter in names if parameter.requires_grad}


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    return start(fresh(run_of("baseline")))


@pytest.mark.parametrize("variant", EVERY)
def test_it_starts_from_the_baselines_weights(variant: str, reference: dict[str, Tensor]) -> None:
    own = start(fresh(run_of(variant)))
    assert reference.keys() <= own.keys()
    assert all(torch.equal(reference[name], own[name]) for name in reference)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_learns(variant: str, trained: Whole, maps: Maps) -> None:
    """Compares steps of equal settings, and the loss without noise before and after."""
    detector, record, run = trained(variant)
    loss = record.series("loss")
    assert sum(loss[-5:]) < 0.9 * sum(loss[:5])
    before, encoded = fresh(run), detector.encode(next(maps.batches()))
    assert (
        detector.validation_loss(encoded, position=0).mean()
        < 0.8 * before.validation_loss(encoded, position=0).mean()
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_interrupted_training_goes_on_to_the_same_bits(
    variant: str, trained: Whole, maps: Maps, tmp_path: Path
) -> None:
    whole, run = trained(variant), run_of(variant)
    with pytest.raises(Interrupted):
        train(run, maps, tmp_path, until=INTERRUPTED_AT)
    resumed = train(run, maps, tmp_path)
    expected = {step: values for step, values in whole.record.steps.items() if step >= INTERRUPTED_AT}
    assert resumed.record.steps == expected
    state, other = whole.detector.state_dict(), resumed.detector.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)


class Row(NamedTuple):
    """Moments of the share of one token row that is dropped."""

    mean: float
    variance: float


def segment_row(config: SegmentBottleneck | RowDropoutAttention, *, strength: float = 1.0) -> Row:
    """A row is picked with row_p; then the dropped count is binomial(seg_len, seg_drop_p)."""
    picked, count = config.row_p * strength, config.seg_len * config.seg_drop_p
    mean = picked * count / COLUMNS
    square = picked * (count * (1 - config.seg_drop_p) + count**2) / COLUMNS**2
    return Row(mean, square - mean**2)


def bottleneck_row(run: RunConfig) -> Row:
    config = run.model.bottleneck
    if isinstance(config, RowMaskingBottleneck):
        return Row(config.row_p, config.row_p * (1 - config.row_p))
    return segment_row(config) if isinstance(config, SegmentBottleneck) else Row(0.0, 0.0)


def assert_rate(measured: list[float], rows: list[Row]) -> None:
    """Compare a measured rate to theory within three sigma of its mean over all steps."""
    expected = sum(row.mean for row in rows) / STEPS
    variance = sum(row.variance for row in rows) / (STEPS**2 * BATCH * ROWS)
    assert sum(measured) / STEPS == pytest.approx(expected, abs=3 * math.sqrt(variance) + 1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_directional_noise_drops_what_theory_says(variant: str, trained: Whole) -> None:
    _, record, run = trained(variant)
    row = bottleneck_row(run)
    assert record.series("drop_rate_expected") == pytest.approx([row.mean] * STEPS, rel=1e-6)
    assert_rate(record.series("drop_rate"), [row] * STEPS)
    attention = run.model.attention
    reported = "train/decoder_drop_rate" in record.steps[0]
    assert reported == isinstance(attention, RowDropoutAttention)
    if isinstance(attention, RowDropoutAttention):
        rows = [segment_row(attention, strength=min(step / 10, 1)) for step in range(STEPS)]
        assert record.series("decoder_drop_rate_expected") == pytest.approx([row.mean for row in rows])
        assert_rate(record.series("decoder_drop_rate"), rows)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_it_discards_is_its_target(variant: str, trained: Whole, maps: Maps) -> None:
    _, record, run = trained(variant)
    if run.model.loss.loss == "focal":
        assert "train/discard_rate" not in record.steps[0]
        return
    p = 0.7 if run.model.loss.loss == "topk" else 0.6
    assert record.series("discard_target") == pytest.approx([p] * STEPS)
    rates = record.series("discard_rate")
    images = BATCH // 2 if run.model.auxiliary.auxiliary == "bands" else BATCH
    if run.model.loss.loss != "adaptive":
        assert rates == pytest.approx([p] * STEPS, abs=1.001 / (images * ROWS * COLUMNS))
        return
    # Each image has its own rate, whose mean over the training images is p; whole tokens round it up.
    steps = len(maps.train) // BATCH
    assert steps * BATCH == len(maps.train)
    assert steps <= STEPS
    mean = sum(rates[:steps]) / steps
    assert p - 1e-6 <= mean <= p + 1 / (ROWS * COLUMNS)
    assert max(rates) - min(rates) > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_inference_is_deterministic(variant: str, trained: Whole, maps: Maps) -> None:
    detector, _, run = trained(variant)
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
def test_every_trained_weight_has_moved(variant: str, trained: Whole) -> None:
    detector, _, run = trained(variant)
    before, after = start(fresh(run)), start(detector)
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert not still


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
