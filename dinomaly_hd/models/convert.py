"""Trained models of the original Dinomaly and of anomalib 2.x, brought to our names."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dinomaly_hd.errors import CheckpointError

# What anomalib and parallel training put in front of every name.
WRAPPERS = re.compile(r"^(?:model\.|module\.)+")
IGNORED = ("encoder.", "gaussian", "pre_processor.", "post_processor.", "image_threshold", "normalization")
THEIRS = re.compile(
    r"(?:bottleneck\.0\.fc[12]|decoder\.\d+\.(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12]))\.(?:weight|bias)"
)
RENAMED = {
    "bottleneck.0.": "bottleneck.",
    "decoder.": "decoder.blocks.",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}


def convert_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return bottleneck and decoder under our names; the encoder, which is frozen, is left out."""
    converted: dict[str, Tensor] = {}
    unknown = []
    for name, value in state.items():
        ours = WRAPPERS.sub("", name)
        if ours.startswith(IGNORED):
            continue
        if not THEIRS.fullmatch(ours):
            unknown.append(name)
        for old, new in RENAMED.items():
            ours = ours.replace(old, new)
        converted[ours] = value
    foreign = "not a Dinomaly of the original or of anomalib"
    if unknown:
        raise CheckpointError(f"{foreign}: unknown tensor {unknown[0]!r} ({len(unknown)} in all)")
    if not any(name.startswith("decoder.blocks.") for name in converted):
        raise CheckpointError(f"{foreign}: it has no decoder")
    biases = {  # anomalib's MLPs have none
        name.removesuffix("weight") + "bias": torch.zeros(weight.shape[0], dtype=weight.dtype)
        for name, weight in converted.items()
        if name.endswith(".weight")
    }
    return {**biases, **converted}
