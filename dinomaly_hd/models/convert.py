"""Trained models of the original Dinomaly and of anomalib 2.x, brought to our names."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dinomaly_hd.errors import CheckpointError

# Their name -> ours. anomalib nests everything under "model." and calls the decoder's MLP the same way.
RENAMED = (
    (re.compile(r"^bottleneck\.0\.(fc[12])\.(weight|bias)$"), r"bottleneck.\1.\2"),
    (re.compile(r"^decoder\.(\d+)\.(norm[12])\.(weight|bias)$"), r"decoder.blocks.\1.\2.\3"),
    (re.compile(r"^decoder\.(\d+)\.attn\.(qkv|proj)\.(weight|bias)$"), r"decoder.blocks.\1.attn.\2.\3"),
    (re.compile(r"^decoder\.(\d+)\.mlp\.fc1\.(weight|bias)$"), r"decoder.blocks.\1.mlp.0.\2"),
    (re.compile(r"^decoder\.(\d+)\.mlp\.fc2\.(weight|bias)$"), r"decoder.blocks.\1.mlp.2.\2"),
)
WRAPPERS = ("model.", "module.")
IGNORED = ("encoder.", "gaussian", "pre_processor.", "post_processor.", "image_threshold", "normalization")


def convert_dinomaly(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return bottleneck and decoder under our names; the frozen encoder is left out, it is loaded by itself.

    Accepts ``encoder.*``, ``bottleneck.0.fc1.*``, ``decoder.{i}.{norm1,attn.qkv,attn.proj,norm2,mlp.fc1,
    mlp.fc2}.*``, with or without a leading ``model.`` or ``module.``. Layers without bias get zeros.

    Raises:
        CheckpointError: A tensor that belongs to neither, or no decoder at all.
    """
    converted: dict[str, Tensor] = {}
    unknown = []
    for name, value in state.items():
        bare = _unwrapped(name)
        if bare.startswith(IGNORED):
            continue
        ours = _renamed(bare)
        if ours is None:
            unknown.append(name)
        else:
            converted[ours] = value
    if unknown:
        raise CheckpointError(
            f"not a Dinomaly of the original or of anomalib: unknown tensor {unknown[0]!r} "
            f"({len(unknown)} in all)"
        )
    if not any(name.startswith("decoder.blocks.") for name in converted):
        raise CheckpointError("not a Dinomaly of the original or of anomalib: it has no decoder")
    return _with_biases(converted)


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        while name.startswith(wrapper):
            name = name[len(wrapper) :]
    return name


def _renamed(name: str) -> str | None:
    for pattern, ours in RENAMED:
        if pattern.match(name):
            return pattern.sub(ours, name)
    return None


def _with_biases(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add zero biases where a linear layer has none."""
    complete = dict(state)
    for name, weight in state.items():
        bias = name.removesuffix("weight") + "bias"
        if name.endswith(".weight") and bias not in complete:
            complete[bias] = torch.zeros(weight.shape[0], dtype=weight.dtype)
    return complete
