"""Trained models of the original Dinomaly and of anomalib load into ours and compute the same."""

import re

import pytest
import torch
from torch import Tensor, nn

from dinomaly_hd.errors import CheckpointError
from dinomaly_hd.models.attention import PlainMixing
from dinomaly_hd.models.bottleneck import BottleneckMLP
from dinomaly_hd.models.convert import convert_dinomaly
from dinomaly_hd.models.dinomaly import Decoder

WIDTH, HEADS, DEPTH = 12, 3, 4


def ours() -> nn.ModuleDict:
    decoder = Decoder(WIDTH, heads=HEADS, mixings=[PlainMixing() for _ in range(DEPTH)])
    return nn.ModuleDict({"bottleneck": BottleneckMLP(WIDTH, hidden=4 * WIDTH, p=0.2), "decoder": decoder})


def original_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the original's names, with a frozen encoder beside them."""
    theirs = {}
    for name, value in state.items():
        renamed = re.sub(r"^bottleneck\.", "bottleneck.0.", name).replace("decoder.blocks.", "decoder.")
        renamed = renamed.replace("mlp.0.", "mlp.fc1.").replace("mlp.2.", "mlp.fc2.")
        theirs[renamed] = value
    return {**theirs, "encoder.patch_embed.proj.weight": torch.zeros(3)}


def output(module: nn.ModuleDict, x: Tensor) -> Tensor:
    with torch.no_grad():
        tokens = module["bottleneck"](x, noise=None).tokens_BND
        out: Tensor = module["decoder"](tokens, noise=None).groups_BSTD
    return out


@pytest.mark.parametrize("prefix", ["", "model.", "model.model.", "module."])
def test_the_originals_checkpoint_computes_the_same(prefix: str) -> None:
    source, target = ours(), ours()
    theirs = {f"{prefix}{name}": value for name, value in original_names(source.state_dict()).items()}
    target.load_state_dict(convert_dinomaly(theirs), strict=True)
    x = torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(1))
    assert torch.equal(output(source, x), output(target, x))


def test_anomalibs_layers_without_bias_get_zeros() -> None:
    theirs = {n: v for n, v in original_names(ours().state_dict()).items() if not re.search(r"mlp.*bias", n)}
    converted = convert_dinomaly(theirs)
    target = ours()
    target.load_state_dict(converted, strict=True)
    assert not converted["decoder.blocks.0.mlp.0.bias"].any()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"layer1.0.conv1.weight": torch.zeros(1)}, r"unknown tensor 'layer1\.0\.conv1\.weight'"),
        ({"encoder.norm.weight": torch.zeros(1)}, "no decoder"),
    ],
)
def test_other_models_are_refused(state: dict[str, Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert_dinomaly(state)
