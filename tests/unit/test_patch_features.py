"""Patch features are the chosen layers, locally averaged, on the finest one's grid."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinomaly_hd.config import EncoderConfig
from dinomaly_hd.errors import ConfigError
from dinomaly_hd.models.build_encoder import build_encoder, build_patch_features, check_layers
from dinomaly_hd.models.patch_features import PatchFeatures
from dinomaly_hd.models.weights import Weights

CNN, VIT = "efficientnet_lite0", "vit_tiny_patch16_224"
RANDOM = Weights("random", None, "random")
Maps = NDArray[np.float64]


def config(encoder: str, size: str) -> EncoderConfig:
    return EncoderConfig(encoder=encoder, image_size=size, crop="none")


def build(encoder: str, size: str, layers: str = "auto") -> PatchFeatures:
    return build_patch_features(config(encoder, size), layers=layers, weights=RANDOM, seed=7)


def images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def slow_local_mean(maps: Maps) -> Maps:
    mean = np.empty_like(maps)
    for row in range(maps.shape[-2]):
        for column in range(maps.shape[-1]):
            around = maps[..., max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
            mean[..., row, column] = around.mean(axis=(-2, -1))
    return mean


def slow_resize(maps: Maps, *, grid: tuple[int, int]) -> Maps:
    out = np.empty((*maps.shape[:2], *grid))
    for place in np.ndindex(*grid):
        weights = []
        for index, have, want in zip(place, maps.shape[2:], grid, strict=True):
            at = min(max((index + 0.5) * have / want - 0.5, 0), have - 1)
            weights.append(np.maximum(0, 1 - np.abs(np.arange(have) - at)))
        out[..., place[0], place[1]] = np.einsum("bchw,h,w->bc", maps, *weights)
    return out


def slow_features(layers: list[Tensor], *, grid: tuple[int, int]) -> Tensor:
    maps = [slow_local_mean(layer.double().numpy()) for layer in layers]
    return torch.from_numpy(np.concatenate([slow_resize(layer, grid=grid) for layer in maps], axis=1))


def test_a_cnns_stages_are_its_strides_8_and_16() -> None:
    features = build(CNN, "64x96")
    network: Any = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    own = features.model.state_dict()
    network.load_state_dict(own, strict=False)
    with torch.no_grad():
        stages = network(images(64, 96))
    out = features(images(64, 96))
    assert out.shape == (2, 40 + 112, 8, 12)
    expected = slow_features(stages[2:4], grid=(8, 12))
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


def test_a_transformers_blocks_are_those_at_two_thirds_and_the_last() -> None:
    features = build(VIT, "48x80")
    network: Any = timm.create_model(VIT, img_size=(48, 80), num_classes=0).eval()
    network.load_state_dict(features.model.state_dict())
    outputs: list[Tensor] = []
    for number in (8, 11):
        network.blocks[number].register_forward_hook(lambda *call: outputs.append(call[2]))
    with torch.no_grad():
        network(images(48, 80))
    maps = [tokens[:, 1:].transpose(1, 2).reshape(2, 192, 3, 5) for tokens in outputs]
    out = features(images(48, 80))
    assert out.shape == (2, 384, 3, 5)
    torch.testing.assert_close(out.double(), slow_features(maps, grid=(3, 5)), rtol=1e-4, atol=1e-4)


def test_blocks_after_the_last_are_let_go_and_the_others_run_once() -> None:
    features = build(VIT, "32", "1,3")
    calls: list[int] = []
    blocks: Any = features.model.get_submodule("blocks")
    assert len(blocks) == 4
    for number, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    features(images(32, 32))
    assert calls == [0, 1, 2, 3]


@pytest.mark.parametrize(("encoder", "layers"), [(CNN, "3"), ("resnet18", "auto"), ("resnet18", "0,3")])
def test_layers_can_be_chosen(encoder: str, layers: str) -> None:
    widths = {CNN: [16, 24, 40, 112, 320], "resnet18": [64, 64, 128, 256, 512]}[encoder]
    chosen = check_layers(config(encoder, "64"), layers)
    grid = 64 // 2 ** (chosen[0] + 1)
    out = build(encoder, "64", layers)(images(64, 64))
    assert out.shape == (2, sum(widths[layer] for layer in chosen), grid, grid)


@pytest.mark.parametrize(
    ("encoder", "layers", "message"),
    [
        (
            CNN,
            "2,5",
            r"layers=2,5: efficientnet_lite0 has only 0\.\.4 \(stages, of strides 2, 4, 8, 16, 32\)",
        ),
        (VIT, "12", r"layers=12: vit_tiny_patch16_224 has only 0\.\.11 \(blocks\)"),
        (VIT, "2,2", r"has 0\.\.11 \(blocks\)"),
        (CNN, "layer2", r"'layer2' names no layers.*has 0\.\.4"),
        ("resnet19", "auto", "not a known encoder"),
    ],
)
def test_layers_that_are_not_there_are_refused(encoder: str, layers: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_layers(config(encoder, "64"), layers)
    with pytest.raises(ConfigError, match=message):
        build(encoder, "64", layers)


@pytest.mark.parametrize("encoder", [CNN, VIT])
def test_the_network_stays_frozen_and_is_the_encoders(encoder: str) -> None:
    features = build(encoder, "32")
    features.train()
    assert not any(module.training for module in features.modules())
    assert not any(parameter.requires_grad for parameter in features.parameters())
    assert not features(images(32, 32).requires_grad_()).requires_grad
    assert all(name.startswith("model.") for name in features.state_dict())
    other: Any = build_encoder(config(encoder, "32"), weights=RANDOM, keep_prefix=True, seed=7)
    same, kept = other.model.state_dict(), features.model.state_dict()
    shared = kept.keys() & same.keys()  # the other's later blocks are let go
    assert len(shared) > 0.8 * len(kept)
    assert all(torch.equal(kept[name], same[name]) for name in shared)
