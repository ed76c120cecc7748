"""Encoders give what Dinomaly reads and stay frozen; trained models of others load and compute the same."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from dinomaly_hd.config.run import EncoderConfig
from dinomaly_hd.errors import CheckpointError, ConfigError, EncoderError
from dinomaly_hd.models import fast as pieces
from dinomaly_hd.models.convert import convert_state
from dinomaly_hd.models.dinomaly.attention import PlainMixing
from dinomaly_hd.models.dinomaly.bottleneck import BottleneckMLP
from dinomaly_hd.models.dinomaly.decoder import Decoder
from dinomaly_hd.models.encoders import ConvEncoder, ViTEncoder, build_encoder, target_blocks
from dinomaly_hd.models.networks import Preprocessing, architecture, check_weights
from dinomaly_hd.models.weights import CONVERTERS, Weights, locate, read_state

SMALL = "dinov2reg_vit_small_14"
DAISY = 985


def config(encoder: str, size: str, crop: str = "none") -> EncoderConfig:
    return EncoderConfig(encoder=encoder, image_size=size, crop=crop)


def build(encoder: str, size: str, *, weights: Weights | None = None, keep_prefix: bool = True) -> Any:
    weights = weights or Weights("random", None, "random")
    return build_encoder(config(encoder, size), weights=weights, keep_prefix=keep_prefix, seed=7)


def test_the_embedded_weights_classify_a_flower() -> None:
    network: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    path: Any = locate("efficientnet_lite0", "auto").path
    network.load_state_dict(CONVERTERS["embedded"](read_state(path), list(network.state_dict())))
    flower = torch.from_numpy(np.array(load_sample_image("flower.jpg"))).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(network.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    sized = nn.functional.interpolate(flower, size=(224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        assert int(network((sized - mean) / std).argmax()) == DAISY


def meta_format(state: dict[str, Tensor], *, side: int) -> dict[str, Tensor]:
    """Return timm's register ViT under the names and shapes of Meta's DINOv2 checkpoints."""
    state = dict(state)
    width = state["cls_token"].shape[-1]
    class_position = torch.full((1, 1, width), 0.25)
    assert state["pos_embed"].shape == (1, side * side, width)
    return {
        **{name: value for name, value in state.items() if name != "reg_token"},
        "register_tokens": state["reg_token"],
        "cls_token": state["cls_token"] - class_position,
        "pos_embed": torch.cat([class_position, state["pos_embed"]], dim=1),
        "mask_token": torch.ones(1, width),
    }


def test_metas_checkpoint_equals_timms(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network: Any = timm.create_model("vit_small_patch14_reg4_dinov2.lvd142m", pretrained=False, num_classes=0)
    state = {name: value + 0.01 * torch.randn_like(value) for name, value in network.state_dict().items()}
    save_file(state, tmp_path / "timm.safetensors")
    torch.save(meta_format(state, side=37), tmp_path / "meta.pth")
    images = torch.rand(1, 3, 28, 56)
    outputs = []
    for name in ("timm.safetensors", "meta.pth"):
        weights = locate(SMALL, str(tmp_path / name))
        check_weights(config(SMALL, "28x56"), weights=weights)
        outputs.append(build(SMALL, "28x56", weights=weights)(images))
    assert outputs[0].shape == (1, 2, 5 + 2 * 4, 384)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)


def test_weights_with_a_class_position_fit_other_grids_and_no_other_encoder(tmp_path: Path) -> None:
    network: Any = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    encoder = build("vit_tiny_patch16_224", "32x48", weights=locate("", str(tmp_path / "vit.safetensors")))
    torch.testing.assert_close(encoder.model.pos_embed[:, :1], network.pos_embed[:, :1])
    assert encoder(torch.rand(1, 3, 32, 48)).shape == (1, 2, 1 + 2 * 3, 192)
    with pytest.raises(EncoderError, match=f"not the weights of {SMALL}"):
        check_weights(config(SMALL, "56"), weights=locate(SMALL, str(tmp_path / "vit.safetensors")))


def test_target_blocks_are_the_middle_eight() -> None:
    for depth in range(8, 49):
        blocks = target_blocks(depth)
        assert blocks == sorted(set(blocks) & set(range(depth))), depth
        assert len(blocks) == 8, depth
    with pytest.raises(ConfigError, match="has 6 blocks"):
        target_blocks(6)


def test_a_vit_takes_images_in_pieces_and_runs_its_first_blocks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder: ViTEncoder = build(SMALL, "28")
    images, calls = torch.rand(5, 3, 28, 28), list[tuple[nn.Module, int]]()
    blocks: Any = encoder.model.get_submodule("blocks")
    for block in blocks:
        block.register_forward_pre_hook(lambda own, given: calls.append((own, len(given[0]))))
    whole = encoder(images)
    assert len(blocks) == 10
    assert calls == [(block, 5) for block in blocks]
    calls.clear()
    monkeypatch.setattr(pieces, "CACHED_BYTES", 2 * 4 * (2 * 2) * (4 * 384))
    torch.testing.assert_close(encoder(images), whole, rtol=1e-5, atol=1e-5)
    assert [size for own, size in calls if own is blocks[0]] == [2, 2, 1]


@pytest.mark.parametrize(
    ("name", "size", "grid", "keep", "prefix"),
    [
        (SMALL, (28, 70), (2, 5), True, 5),
        (SMALL, (70, 28), (5, 2), False, 0),
        ("efficientnet_lite0", (64, 32), (8, 4), True, 0),
    ],
)
def test_grids_need_not_be_square_and_encoders_stay_frozen(
    name: str, size: tuple[int, int], grid: tuple[int, int], keep: bool, prefix: int
) -> None:
    text = f"{size[0]}x{size[1]}"
    encoder = build(name, text, keep_prefix=keep).train()
    assert encoder.grid == architecture(config(name, text)).grid == grid
    assert encoder.prefix_tokens == prefix
    out = encoder(torch.rand(2, 3, *size, requires_grad=True))
    assert out.shape == (2, 2, prefix + grid[0] * grid[1], encoder.width)
    assert not out.requires_grad
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_conv_features_are_standardised_and_projected_without_loss() -> None:
    encoder: ConvEncoder = build("efficientnet_lite0", "64", weights=locate("efficientnet_lite0", "auto"))
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    encoder.fit(iter([images[:4], images[4:]]))
    standard_NC = ((encoder._raw(images) - encoder.mean) / encoder.std).flatten(0, 1).double()
    zeros = torch.zeros(len(encoder.mean)).double()
    torch.testing.assert_close(standard_NC.mean(0), zeros, atol=1e-5, rtol=0)
    torch.testing.assert_close(standard_NC.std(0, correction=0), zeros + 1, atol=1e-4, rtol=0)
    out_SND = encoder(images).transpose(0, 1).flatten(1, 2)[:, :40].double()
    for i, group in enumerate(encoder.groups):
        used = torch.tensor([s in group for s, size in enumerate(encoder.channels) for _ in range(size)])
        before = torch.cdist(standard_NC[:40, used], standard_NC[:40, used])
        after = torch.cdist(out_SND[i], out_SND[i])
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5 * float(before.max()))


def test_any_cnn_fits_its_own_width() -> None:
    for name, width in (("resnet18", 384), ("resnet50", 768)):
        encoder = build(name, "64x32")
        assert (encoder.grid, encoder.width, encoder.heads) == ((8, 4), width, width // 32)
        images = torch.rand(3, 3, 64, 32, generator=torch.Generator().manual_seed(1))
        encoder.fit(iter([images]))
        out_BSND = encoder(images)
        assert out_BSND.shape == (3, 2, 32, width)
        assert bool(torch.isfinite(out_BSND).all())


def test_the_box_says_what_the_crop_hides() -> None:
    whole, cropped = Preprocessing((392, 392), None), Preprocessing((448, 448), (392, 392))
    assert whole.visible((31, 95)) == (0, 31, 0, 95)
    assert cropped.visible((31, 95)) == pytest.approx((31 / 16, 31 - 31 / 16, 95 / 16, 95 - 95 / 16))
    images = torch.zeros(1, 31, 95)
    images[:, :1], images[:, :, :5] = 9, 9
    assert float(cropped(images)[0, 0].max()) == pytest.approx(-0.485 / 0.229, abs=1e-5)
    assert whole(images)[0, 0].max() > 30
    assert whole(images).shape == cropped(images).shape == (1, 3, 392, 392)


# Trained models of others


WIDTH, HEADS, DEPTH = 12, 3, 4


def ours() -> nn.ModuleDict:
    decoder = Decoder(WIDTH, heads=HEADS, mixings=[PlainMixing() for _ in range(DEPTH)])
    return nn.ModuleDict({"bottleneck": BottleneckMLP(WIDTH, p=0.2), "decoder": decoder})


def original_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the original's names, with a frozen encoder beside them."""
    theirs = {}
    for name, value in state.items():
        renamed = name.replace("bottleneck.", "bottleneck.0.").replace("decoder.blocks.", "decoder.")
        theirs[renamed.replace("mlp.0.", "mlp.fc1.").replace("mlp.2.", "mlp.fc2.")] = value
    return {**theirs, "encoder.patch_embed.proj.weight": torch.zeros(3)}


def output(module: nn.ModuleDict, x: Tensor) -> Tensor:
    with torch.no_grad():
        tokens = module["bottleneck"](x, noise=None).tokens_BND
        out: Tensor = module["decoder"](tokens, noise=None).groups_BSTD
    return out


def test_the_originals_checkpoint_computes_the_same_under_every_prefix() -> None:
    source, target = ours(), ours()
    original = original_names(source.state_dict())
    x = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(1))
    for prefix in ("", "model.", "model.model.", "module."):
        theirs = {f"{prefix}{name}": value for name, value in original.items()}
        target.load_state_dict(convert_state(theirs), strict=True)
        assert torch.equal(output(source, x), output(target, x))
    anomalib = {name: value for name, value in original.items() if not re.search(r"mlp.*bias", name)}
    target.load_state_dict(convert_state(anomalib), strict=True)
    assert not target.state_dict()["decoder.blocks.0.mlp.0.bias"].any(), "its layers have no bias"
    for state, message in (
        ({"layer1.0.conv1.weight": torch.zeros(1)}, r"unknown tensor 'layer1\.0\.conv1\.weight'"),
        ({"encoder.norm.weight": torch.zeros(1)}, "no decoder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert_state(state)
