"""PatchCore measures what the paper says: patch features, token distances, eq. 7, a smoothed map, context."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dinomaly_hd.config.families import PatchCoreConfig
from dinomaly_hd.config.run import EncoderConfig
from dinomaly_hd.errors import ConfigError, NonFiniteError
from dinomaly_hd.models.encoders import build_encoder
from dinomaly_hd.models.networks import Preprocessing
from dinomaly_hd.models.patchcore import neighbours
from dinomaly_hd.models.patchcore.detector import PatchCore, smooth, with_context
from dinomaly_hd.models.patchcore.features import PatchFeatures, build_patch_features, check_layers
from dinomaly_hd.models.weights import Weights

GRID = (10, 25)
Points = NDArray[np.float64]


class Edges(PatchFeatures):
    """A convolution instead of a pretrained network."""

    def outputs(self, images_B3HW: Tensor) -> list[Tensor]:
        return [self.model(images_B3HW)]


def patchcore(*, seed: int = 3, **values: Any) -> PatchCore:
    torch.manual_seed(0)
    return PatchCore(
        PatchCoreConfig(**values),
        encoder=Edges(nn.Conv2d(3, 4, 3), layers=(0,)),
        preprocessing=Preprocessing((12, 27), None),
        map_size=(40, 60),
        seed=seed,
    )


def encoded(count: int, channels: int = 6, *, seed: int) -> Tensor:
    return 2 + torch.randn(count, channels, *GRID, generator=torch.Generator().manual_seed(seed))


def points_of(features: Tensor) -> Points:
    """Return tokens in reading order, image after image, float64."""
    return features.double().permute(0, 2, 3, 1).reshape(-1, features.shape[1]).numpy()


def distances(points: Points, other: Points) -> Points:
    """Return the distance of each point to the other one."""
    return np.sqrt(((points - other) ** 2).sum(axis=-1))


def slow_score(tokens: Points, bank: Points, *, num_neighbors: int) -> float:
    """Eq. 7 as it is written, one token at a time."""
    nearest = [distances(bank, token).min() for token in tokens]
    farthest, largest = tokens[np.argmax(nearest)], max(nearest)
    if num_neighbors == 1:
        return largest
    closest = bank[distances(bank, farthest).argmin()]
    around = bank[distances(bank, closest).argsort()[:num_neighbors]]
    return (1 - np.exp(largest) / np.exp(distances(around, farthest)).sum()) * largest


def plain_context(features: Tensor, k: int) -> Tensor:
    columns = torch.arange(features.shape[-1])
    near = ((columns[:, None] - columns).abs() <= k).double()
    return features.double() @ (near / near.sum(0))


@pytest.mark.parametrize(("num_neighbors", "size"), [(1, 100), (2, 100), (9, 100), (9, 4), (9, 1)], ids=str)
def test_image_scores_are_equation_7_with_at_most_the_whole_bank(num_neighbors: int, size: int) -> None:
    detector = patchcore(num_neighbors=num_neighbors, coreset_sampling_ratio=size / 500)
    detector.fit_bank(iter([encoded(1, seed=1), encoded(1, seed=2)]))
    assert detector.bank.shape == (size, 6)
    test = encoded(2, seed=5)
    bank, around = detector.bank.double().numpy(), min(num_neighbors, size)
    expected = [slow_score(points_of(image[None]), bank, num_neighbors=around) for image in test]
    assert detector.score(test).score_B.tolist() == pytest.approx(expected, rel=1e-5)


def test_far_tokens_do_not_overflow_and_nan_is_refused() -> None:
    detector = patchcore(coreset_sampling_ratio=0.1)
    detector.fit_bank([encoded(1, seed=1)])
    test = encoded(1, seed=5)
    test[0, :, 4, 4] = 1e4
    score = float(detector.score(test).score_B)
    largest = float((1e4 - detector.bank).norm(dim=1).min())
    assert 0 < score <= largest
    test[0, 0, 3, 3] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        detector.fit_bank([test])


def test_maps_are_upsampled_distances_smoothed_by_sigma_4() -> None:
    detector, test = patchcore(), encoded(2, seed=5)
    detector.fit_bank([encoded(2, seed=1)])
    bank = detector.bank.double().numpy()
    nearest = np.array([distances(bank, point).min() for point in points_of(test)])
    tokens = torch.from_numpy(nearest).view(2, 1, *GRID)
    large_BHW = nn.functional.interpolate(tokens, size=(40, 60), mode="bilinear")[:, 0].numpy()
    expected = ndimage.gaussian_filter(large_BHW, sigma=4, truncate=4, mode="mirror", axes=(1, 2))
    maps = detector.score(test).map_BHW
    torch.testing.assert_close(maps.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)
    for size in ((1, 1), (9, 40)):  # smoothed with what can be reflected
        torch.testing.assert_close(smooth(torch.full((2, *size), 3.0)), torch.full((2, *size), 3.0))


def test_context_is_the_mean_along_rows_in_the_bank_and_in_the_score() -> None:
    train, test = encoded(1, seed=1), encoded(1, seed=5)
    out = with_context(train, context=(2, 3))
    expected = torch.cat([train.double(), plain_context(train, 2), plain_context(train, 3)], dim=1)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(with_context(train, context=()), train)
    detector = patchcore(context="2,3", coreset_sampling_ratio=1.0)
    detector.fit_bank([train])
    tokens = points_of(out)
    assert sorted(map(tuple, detector.bank.double().tolist())) == sorted(map(tuple, tokens.tolist()))
    score = slow_score(points_of(with_context(test, context=(2, 3))), tokens, num_neighbors=9)
    assert float(detector.score(test).score_B) == pytest.approx(score, rel=1e-5)


def test_a_state_brings_its_banks_size_and_a_new_bank_is_searched_at_once() -> None:
    detector, other = patchcore(), patchcore(coreset_sampling_ratio=0.5)
    detector.fit_bank([encoded(2, seed=1)])
    other.fit_bank([encoded(1, channels=9, seed=2)])
    state, test = detector.state_dict(), encoded(2, seed=5)
    assert {name for name in state if not name.startswith("encoder.model.")} == {"bank"}
    before = detector.score(test)
    for target in (other, patchcore()):
        nn.ModuleDict({"a": target}).load_state_dict(nn.ModuleDict({"a": detector}).state_dict())
        assert torch.equal(target.bank, detector.bank)
        assert torch.equal(target.score(test).map_BHW, before.map_BHW)
    fresh = patchcore()
    for one in (detector, fresh):
        one.fit_bank([encoded(2, seed=3)])
    assert torch.equal(detector.score(test).score_B, fresh.score(test).score_B)
    assert not torch.equal(detector.score(test).score_B, before.score_B)


def test_the_bank_is_decided_by_features_and_seed() -> None:
    banks, ticks = [], []
    for seed, batches in ((3, [2, 1]), (3, [1, 1, 1]), (4, [2, 1])):
        detector = patchcore(seed=seed)
        detector.fit_bank(encoded(3, seed=1).split(batches), tick=lambda: ticks.append(None))
        banks.append(detector.bank)
    assert len(ticks) == sum(map(len, banks)) == 3 * 75
    assert torch.equal(banks[0], banks[1])
    assert not torch.equal(banks[0], banks[2])


def test_encoding_and_scores_do_not_depend_on_autocast() -> None:
    detector = patchcore(context="2").train()
    images = torch.rand(2, 31, 95, generator=torch.Generator().manual_seed(2), requires_grad=True)
    plain, test = detector.encode(images), encoded(2, channels=4, seed=5)
    assert plain.shape == (2, 4, *GRID)
    assert not plain.requires_grad
    detector.fit_bank([plain])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = detector.encode(images), *detector.score(test)
    expected = plain, *detector.score(test)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_memory_is_linear_in_the_tokens() -> None:
    """Of 6,000 tokens a distance matrix would hold 36 million numbers."""
    largest = [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            largest[0] = max(largest[0], out.numel() if isinstance(out, Tensor) else 0)
            return out

    detector = patchcore(coreset_sampling_ratio=0.02)
    with Watch():
        detector.fit_bank(encoded(24, seed=1).split(8))
        detector.score(encoded(8, seed=2))
    assert 24 * 250 * 6 <= largest[0] <= neighbours.CHUNK


# Patch features: the chosen layers, locally averaged, on the finest one's grid

CNN, VIT = "efficientnet_lite0", "vit_tiny_patch16_224"
RANDOM = Weights("random", None, "random")


def config(encoder: str, size: str) -> EncoderConfig:
    return EncoderConfig(encoder=encoder, image_size=size, crop="none")


def build(encoder: str, size: str, layers: str = "auto") -> PatchFeatures:
    return build_patch_features(config(encoder, size), layers=layers, weights=RANDOM, seed=7)


def images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def plain_features(layers: list[Tensor], *, grid: tuple[int, int]) -> Tensor:
    """Mean over 3 x 3 neighbours where there are any, then bilinear to the grid."""
    means = [nn.functional.avg_pool2d(one.double(), 3, 1, 1, count_include_pad=False) for one in layers]
    return torch.cat([nn.functional.interpolate(one, size=grid, mode="bilinear") for one in means], dim=1)


def test_a_cnns_stages_are_its_strides_8_and_16() -> None:
    features = build(CNN, "64x96")
    network: Any = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    own = features.model.state_dict()
    network.load_state_dict(own, strict=False)
    with torch.no_grad():
        stages = network(images(64, 96))
    out = features(images(64, 96))
    assert out.shape == (2, 40 + 112, 8, 12)
    expected = plain_features(stages[2:4], grid=(8, 12))
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


def test_a_transformers_blocks_are_those_at_two_thirds_and_the_last() -> None:
    features = build(VIT, "48x80")
    network: Any = timm.create_model(VIT, img_size=(48, 80), num_classes=0).eval()
    network.load_state_dict(features.model.state_dict())
    maps: list[Tensor] = []
    for number in (8, 11):
        network.blocks[number].register_forward_hook(
            lambda _, __, tokens: maps.append(tokens[:, 1:].transpose(1, 2).reshape(2, 192, 3, 5))
        )
    with torch.no_grad():
        network(images(48, 80))
    out = features(images(48, 80))
    assert out.shape == (2, 384, 3, 5)
    torch.testing.assert_close(out.double(), plain_features(maps, grid=(3, 5)), rtol=1e-4, atol=1e-4)


def test_blocks_after_the_last_are_let_go_and_the_others_run_once() -> None:
    features, calls = build(VIT, "32", "1,3"), []
    blocks: Any = features.model.get_submodule("blocks")
    for block in blocks:
        block.register_forward_hook(lambda own, *_: calls.append(own))
    features(images(32, 32))
    assert len(blocks) == 4
    assert calls == list(blocks)


@pytest.mark.parametrize(("encoder", "layers"), [(CNN, "3"), ("resnet18", "auto"), ("resnet18", "0,3")])
def test_layers_can_be_chosen(encoder: str, layers: str) -> None:
    widths = {CNN: [16, 24, 40, 112, 320], "resnet18": [64, 64, 128, 256, 512]}[encoder]
    chosen = check_layers(config(encoder, "64"), layers)
    grid = 64 // 2 ** (chosen[0] + 1)
    out = build(encoder, "64", layers)(images(64, 64))
    assert out.shape == (2, sum(widths[layer] for layer in chosen), grid, grid)


def test_layers_that_are_not_there_are_refused() -> None:
    for encoder, layers, message in (
        (CNN, "2,5", r"layers=2,5: efficientnet_lite0 has only 0\.\.4 \(stages, of strides 2, 4, 8, 16, 32"),
        (VIT, "12", r"layers=12: vit_tiny_patch16_224 has only 0\.\.11 \(blocks\)"),
        (VIT, "2,2", r"has 0\.\.11 \(blocks\)"),
        (CNN, "layer2", r"'layer2' names no layers.*has 0\.\.4"),
        ("resnet19", "auto", "not a known encoder"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_layers(config(encoder, "64"), layers)
        with pytest.raises(ConfigError, match=message):
            build(encoder, "64", layers)


@pytest.mark.parametrize("encoder", [CNN, VIT])
def test_the_network_stays_frozen_and_is_the_encoders(encoder: str) -> None:
    features = build(encoder, "32").train()
    assert not any(module.training for module in features.modules())
    assert not any(parameter.requires_grad for parameter in features.parameters())
    assert not features(images(32, 32).requires_grad_()).requires_grad
    other: Any = build_encoder(config(encoder, "32"), weights=RANDOM, keep_prefix=True, seed=7)
    same, kept = other.model.state_dict(), features.model.state_dict()
    shared = kept.keys() & same.keys()  # the other's later blocks are let go
    assert len(shared) > 0.8 * len(kept)
    assert all(torch.equal(kept[name], same[name]) for name in shared)
