"""Trained models of the original Dinomaly and of anomalib 2.x, brought to our names."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dinomaly_hd.errors import CheckpointError

WRAPPERS = re.compile(r"^(?:model\.|module\.)+")
"""What anomalib and parallel training put in front of every name."""
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
    """Return bottleneck and decoder under our names; the frozen encoder is left out, it is loaded by itself.

    Accepts ``encoder.*``, ``bottleneck.0.fc1.*``, ``decoder.{i}.{norm1,attn.qkv,attn.proj,norm2,mlp.fc1,
    mlp.fc2}.*``, with or without leading ``model.`` and ``module.``. Layers without bias get zeros.
    """
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
