"""Every variant of the table starts like the baseline, learns, resumes exactly, and does what it says."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from dinomaly_hd.batch import Batch
from dinomaly_hd.config.base import flatten, with_values
from dinomaly_hd.config.dinomaly import (
    DinomalyConfig,
    RowDropoutAttention,
    RowMaskingBottleneck,
    SegmentBottleneck,
)
from dinomaly_hd.config.presets import preset_run
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.config.variants import ABLATION, VARIANTS
from dinomaly_hd.errors import Interrupted
from dinomaly_hd.experiments.run import execute
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.dinomaly.detector import Dinomaly
from dinomaly_hd.models.weights import Weights
from dinomaly_hd.runs.folder import Context

from .light_runs import Seen, assert_same_weights, evaluate_four_images, stopping_at

STEPS, BATCH, INTERRUPTED_AT = 20, 4, 12
TOKENS = 6 * 6
# Fixed settings: no schedule changes what a loss means between the first and the last step.
VALUES = {
    "gpu": "cpu",
    "simulate_size": "tiny",
    "val_split_ratio": 0,
    "image_size": "48",
    "map_size": "32",
    "decoder_depth": 2,
    "max_steps": STEPS,
    "batch_size": BATCH,
    "warmup_steps": 5,
    "checkpoint_interval": 10,
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


def run_of(variant: str, **values: Any) -> RunConfig:
    return with_values(preset_run("quick", EVERY[variant]()), {**VALUES, **values})


@cache
def built(run: RunConfig) -> Dinomaly:
    detector = build_detector(run, weights=Weights("random", None, "random"))
    assert isinstance(detector, Dinomaly)
    return detector


def test_it_says_its_own_name() -> None:
    assert {name: model().variant for name, model in VARIANTS.items()} == {name: name for name in VARIANTS}


def trained_parts(model: Any) -> dict[str, Tensor]:
    """Return the trained weights by what they are: a wrapped MLP is the same MLP."""
    names = ((name.replace("bottleneck.mlp.", "bottleneck."), p) for name, p in model.named_parameters())
    return {name: parameter.detach() for name, parameter in names if parameter.requires_grad}


def test_all_start_from_the_baselines_weights() -> None:
    reference = trained_parts(built(run_of("baseline")))
    for variant in EVERY:
        own = trained_parts(built(run_of(variant)))
        assert reference.keys() <= own.keys()
        assert all(torch.equal(reference[name], own[name]) for name in reference), variant


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_learns_resumes_exactly_and_does_what_it_says(
    variant: str, own: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, run = evaluate_four_images(monkeypatch), run_of(variant)
    execute(run, replace(own, result_dir=own.result_dir / "whole"))
    broken = replace(own, result_dir=own.result_dir / "broken")
    with pytest.raises(Interrupted):
        execute(run, stopping_at(broken, INTERRUPTED_AT))
    execute(run, broken)
    whole, resumed = seen
    assert resumed.trained.steps == STEPS - INTERRUPTED_AT
    assert resumed.history == whole.history
    assert_same_weights(resumed.weights, whole.weights)
    assert torch.equal(resumed.score_4, whole.score_4)

    loss = series(whole, "loss")
    assert sum(loss[-5:]) < 0.9 * sum(loss[:5])
    first, last = trained_parts(built(run)), trained_parts(whole.detector)
    assert not [name for name in first if torch.equal(first[name], last[name])], "a weight has not moved"
    assert_noise_and_discards(whole)


def series(seen: Seen, name: str) -> list[float]:
    return [value for _, value in seen.history[f"train/{name}"]]


def assert_noise_and_discards(seen: Seen) -> None:
    """Compare what is reported to the config; that noise is drawn at its rate, unit tests say."""
    run = seen.work.run
    assert isinstance(run.model, DinomalyConfig)
    noise, attention, loss = run.model.bottleneck, run.model.attention, run.model.loss
    expected = 0.0
    if isinstance(noise, RowMaskingBottleneck):
        expected = noise.row_p
    elif isinstance(noise, SegmentBottleneck):
        expected = noise.row_p * noise.seg_len / 6 * noise.seg_drop_p
    assert series(seen, "drop_rate_expected") == pytest.approx([expected] * STEPS, rel=1e-6)
    assert (sum(series(seen, "drop_rate")) > 0) == (expected > 0)
    assert ("train/decoder_drop_rate" in seen.history) == isinstance(attention, RowDropoutAttention)
    if isinstance(attention, RowDropoutAttention):
        full = attention.row_p * attention.seg_len / 6 * attention.seg_drop_p
        rising = [full * min(step / 10, 1) for step in range(STEPS)]
        assert series(seen, "decoder_drop_rate_expected") == pytest.approx(rising)
        assert sum(series(seen, "decoder_drop_rate")) > 0
    if loss.loss == "focal":
        assert "train/discard_rate" not in seen.history
        return
    p = 0.7 if loss.loss == "topk" else 0.6
    assert series(seen, "discard_target") == pytest.approx([p] * STEPS)
    rates = series(seen, "discard_rate")
    images = BATCH // 2 if run.model.auxiliary.auxiliary == "bands" else BATCH
    if loss.loss != "adaptive":
        assert rates == pytest.approx([p] * STEPS, abs=1.001 / (images * TOKENS))
        return
    # Each image has its own rate, whose mean over the training images is p; whole tokens round it up.
    count = len(seen.work.ready.split.train)
    assert count % BATCH == 0
    assert count // BATCH <= STEPS
    mean = sum(rates[: count // BATCH]) / (count // BATCH)
    assert p - 1e-6 <= mean <= p + 1 / TOKENS
    assert max(rates) - min(rates) > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_fixed_also_on_a_transformer_with_its_own_class_token_setting(variant: str) -> None:
    run = run_of(variant, encoder="vit_tiny_patch16_224", encoder_weights="random", image_size="64")
    detector = copy.deepcopy(built(run))
    images = torch.rand(3, 31, 95, generator=torch.Generator().manual_seed(1))
    detector.fit_loss([images])
    kept = flatten(run)["class_token"] == "keep"
    encoded = detector.encode(images)
    assert encoded.shape == (3, 2, 16 + kept, 192)
    loss = detector.training_loss(Batch(images, torch.tensor([0, 0, 1]), encoded), step=5)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    again = copy.deepcopy(built(run))
    again.load_state_dict(detector.state_dict())
    first = detector.train().score(encoded)
    for other in (detector.eval().score(encoded), again.score(encoded)):
        assert torch.equal(first.map_BHW, other.map_BHW)
        assert torch.equal(first.score_B, other.score_B)
    assert first.map_BHW.shape == (3, 32, 32)
    assert torch.isfinite(first.map_BHW).all()
    assert torch.isfinite(first.score_B).all()
    torch.testing.assert_close(detector.score(encoded[:1]).score_B, first.score_B[:1], atol=1e-6, rtol=0)
