"""Dinomaly's promises: one start for all variants, constant dropout, exact masks, losses and rates."""

import itertools
import math
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dinomaly_hd.batch import Batch
from dinomaly_hd.config import DinomalyConfig, TrainingConfig, with_values
from dinomaly_hd.config.presets import quick_dinomaly
from dinomaly_hd.config.variants import VARIANTS
from dinomaly_hd.models import pieces
from dinomaly_hd.models.bottleneck import BottleneckMLP, SegmentDropout
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.dinomaly.detector import Dinomaly
from dinomaly_hd.models.noise import Noise
from dinomaly_hd.models.weights import Weights
from dinomaly_hd.training.optim import warm_cosine
from dinomaly_hd.training.task import DetectorTask


@cache
def detector(variant: str, *, seed: int = 42, precision: str = "32") -> Dinomaly:
    values = {"image_size": "64", "decoder_depth": 2, "map_size": "32", "seed": seed, "precision": precision}
    run = with_values(quick_dinomaly(VARIANTS[variant]()), values)
    built = build_detector(run, weights=Weights("random", None, "random"))
    assert isinstance(built, Dinomaly)
    return built


def encoded(batch: int = 2) -> Tensor:
    return torch.randn(batch, 2, 64, 192, generator=torch.Generator().manual_seed(5))


def sample(count: int = 2) -> Batch:
    images_BHW = torch.rand(count, 31, 95, generator=torch.Generator().manual_seed(6))
    return Batch(images_BHW, torch.zeros(count, dtype=torch.int64), encoded(count))


def test_the_start_is_a_function_of_the_seed() -> None:
    weights = {seed: detector("baseline", seed=seed).bottleneck for seed in (42, 43)}
    first, other = (part.fc1.weight.detach() for part in weights.values())  # type: ignore[attr-defined]
    assert not torch.equal(first, other)
    assert float(first.abs().max()) <= 0.03
    assert float(first.std()) == pytest.approx(0.0099, abs=2e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_of_pieces_are_those_of_the_whole_batch(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, features = detector(variant), encoded(5)
    whole = model.score(features)
    monkeypatch.setattr(pieces, "CACHED_BYTES", 2 * 4 * 64 * 4 * 192)
    in_pieces = model.score(features)
    torch.testing.assert_close(in_pieces.map_BHW, whole.map_BHW, atol=1e-6, rtol=0)
    torch.testing.assert_close(in_pieces.score_B, whole.score_B, atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_inference_is_deterministic_and_alone_what_it_is_in_a_batch(variant: str) -> None:
    model, features = detector(variant).train(), encoded()
    first, again = model.score(features), model.score(features)
    assert torch.equal(first.map_BHW, again.map_BHW)
    assert torch.equal(first.score_B, again.score_B)
    torch.testing.assert_close(model.score(features[:1]).score_B, first.score_B[:1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_noise_is_a_function_of_the_step(variant: str) -> None:
    model, batch = detector(variant), sample()
    losses = [model.training_loss(batch, step=step).total.item() for step in (7, 7, 8)]
    assert losses[0] == losses[1] != losses[2]


def test_element_dropout_is_the_same_constant_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = detector("baseline")
    mlp: Any = model.bottleneck
    assert isinstance(mlp, BottleneckMLP)
    seen: list[float] = []

    def measure(inputs: Tensor) -> Tensor:
        seen.append(float((inputs == 0).float().mean()))
        return F.linear(inputs, mlp.fc1.weight, mlp.fc1.bias)

    monkeypatch.setattr(mlp.fc1, "forward", measure)
    for step in (0, 10_000):
        model.training_loss(sample(8), step=step)
    model.score(encoded(8))
    elements = 8 * 64 * 192
    sigma = math.sqrt(0.2 * 0.8 / elements)
    assert seen[:2] == pytest.approx([0.2, 0.2], abs=3 * sigma)
    assert seen[2] == 0


def segments(**changes: Any) -> SegmentDropout:
    settings: dict[str, Any] = {"row_p": 0.2, "seg_len": 3, "seg_drop_p": 0.6}
    return SegmentDropout((10, 12), **{**settings, **changes})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(seed: int = 0, *, step: int = 0) -> Noise:
    return Noise(seed, step=step, device=torch.device("cpu"))


@pytest.mark.parametrize(("row_p", "seg_len", "seg_drop_p"), [(0.2, 3, 0.6), (0.5, 12, 0.9), (1.0, 1, 0.5)])
def test_segments_drop_the_share_that_the_formula_says(row_p: float, seg_len: int, seg_drop_p: float) -> None:
    dropout = segments(row_p=row_p, seg_len=seg_len, seg_drop_p=seg_drop_p)
    mask_Bhw = dropout.draw(4000, generator=generator())
    expected = row_p * seg_len / 12 * seg_drop_p
    assert dropout.expected_drop_rate == pytest.approx(expected)
    per_row = mask_Bhw.float().mean(-1).flatten().double()  # rows are independent, tokens of a row are not
    sigma = float(per_row.std()) / math.sqrt(len(per_row))
    assert float(per_row.mean()) == pytest.approx(expected, abs=3 * sigma)


def test_segments_fit_their_row_and_begin_anywhere() -> None:
    mask_Bhw = segments(row_p=1.0, seg_drop_p=1.0).draw(2000, generator=generator())
    for row in mask_Bhw.flatten(0, 1)[:2000].tolist():
        runs = [(value, len(list(members))) for value, members in itertools.groupby(row)]
        assert [length for value, length in runs if value] == [3]
    starts = torch.bincount(mask_Bhw.flatten(0, 1).int().argmax(-1), minlength=12)
    assert (starts[:10] > 0).all()
    assert not starts[10:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_segments_drop_whole_tokens_and_rescale_nothing(dtype: torch.dtype) -> None:
    x_BND = 1 + torch.rand(4, 120, 6, generator=generator()).to(dtype)
    out, rate = segments(row_p=1.0)(x_BND, noise=noise(1))
    assert out.dtype == dtype
    zero_BN = (out == 0).all(-1)
    assert torch.equal(zero_BN, (out == 0).any(-1))
    assert torch.equal(out[~zero_BN], x_BND[~zero_BN])
    assert float(rate) == pytest.approx(float(zero_BN.float().mean())) != 0


def test_segments_are_drawn_from_seed_and_step_only() -> None:
    same = [segments().draw(8, generator=generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[2])
    x_BND = 1 + torch.rand(8, 120, 4, generator=generator())
    places = [noise(1, step=3), noise(1, step=3), noise(1, step=4), noise(2, step=3)]
    first, again, later, other = (segments()(x_BND, noise=place).tokens_BND for place in places)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, other)
    assert torch.equal(segments()(x_BND, noise=None).tokens_BND, x_BND)


def test_a_wrong_token_count_is_named() -> None:
    with pytest.raises(ValueError, match="got 125 tokens for a 10 x 12 grid of 120"):
        segments()(torch.zeros(1, 125, 4), noise=noise())


class Silent:
    def metrics(self, values: Any, *, step: int) -> None: ...

    def sync(self) -> None: ...


def rates(interval: str, *, steps: list[int], per_epoch: int = 63) -> list[float]:
    task = DetectorTask(
        detector("baseline"),
        training=TrainingConfig.model_validate({"lr_schedule_interval": interval}),
        steps_per_epoch=per_epoch,
        reporter=Silent(),
        name_files=str,
        position=0,
    )
    return [task.learning_rate(step) for step in steps]


def test_the_learning_rate_is_pinned_at_its_corners() -> None:
    last = 2e-4 + 0.5 * 1.8e-3 * (1 + math.cos(math.pi * 899 / 900))
    expected = [0.0, 2.0202e-05, 2e-3, 2e-3, last]
    assert rates("step", steps=[0, 1, 99, 100, 999]) == pytest.approx(expected, rel=1e-5)
    assert last == pytest.approx(2e-4, rel=1e-4)
    assert warm_cosine(1000, base=2e-3, final=2e-4, warmup=100, total=1000) == 2e-4


def test_stepping_per_epoch_repeats_the_fault_of_old_runs() -> None:
    first_epoch, second = rates("epoch", steps=[0, 62]), rates("epoch", steps=[63])
    assert first_epoch == [0.0, 0.0]
    assert second == pytest.approx([2.0202e-05], rel=1e-4)
    assert max(rates("epoch", steps=list(range(1000)))) < 4e-4  # warm-up of 100 epochs is never left


def test_a_model_config_names_its_own_variant() -> None:
    assert {name: model().variant for name, model in VARIANTS.items()} == {name: name for name in VARIANTS}
    assert isinstance(VARIANTS["baseline"](), DinomalyConfig)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_encoding_is_the_same_under_autocast(precision: str) -> None:
    model = detector("baseline", precision=precision)
    images = torch.rand(2, 31, 95, generator=torch.Generator().manual_seed(5))
    plain = model.encode(images)
    assert plain.dtype == (torch.float32 if precision == "32" else torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.encode(images), plain)


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_the_bits_of_an_encoder_move_losses_and_scores_little(variant: str) -> None:
    images = torch.rand(2, 31, 95, generator=torch.Generator().manual_seed(5))
    losses, scores = [], []
    for precision in ("32", "bf16"):
        model = detector(variant, precision=precision)
        encoded = model.encode(images)
        batch = Batch(images, torch.zeros(2, dtype=torch.int64), encoded)
        losses.append(float(model.training_loss(batch, step=0).total.detach()))
        scores.append(model.score(encoded).score_B)
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-2, atol=0)
    assert not torch.equal(scores[1], scores[0])
