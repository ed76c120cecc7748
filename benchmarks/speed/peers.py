"""Peers, with our weights: anomalib's Dinomaly and the original one.

Both get pre-processed maps (392 x 392, three channels); our times include that.
"""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.subjects import RATE, Case, Subject, detector_of, optimise
from dinomaly_hd.models.dinomaly.detector import Dinomaly
from dinomaly_hd.models.weights import timm_name

HARD_SHARE, EASY_GRADIENT = 0.9, 0.1
MAP_SIDE, KERNEL, SIGMA, TOP_SHARE = 256, 5, 4, 0.01
TARGETS = [2, 3, 4, 5, 6, 7, 8, 9]
GROUPS = [[0, 1, 2, 3], [4, 5, 6, 7]]


def anomalib(case: Case) -> Subject:
    """anomalib's Dinomaly with our weights, without its engine, logging and transforms."""
    from anomalib.models.components.feature_extractors import timm as extractors
    from anomalib.models.image.dinomaly.components import StableAdamW as TheirAdamW
    from anomalib.models.image.dinomaly.torch_model import DinomalyModel

    detector = detector_of(case)
    create = partial(_create_with, extractors.timm.create_model, case)
    with mock.patch.object(extractors.timm, "create_model", create):
        model = DinomalyModel(encoder_name=timm_name(case.encoder)).to(case.device)
    copy_trained(detector, [model.bottleneck, model.decoder])
    model.encoder.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = TheirAdamW([{"params": trained}], lr=RATE, weight_decay=1e-4, amsgrad=True, eps=1e-8)

    def train(images_B3HW: Tensor, step: int) -> Tensor:
        model.train()
        loss = model(images_B3HW, global_step=step)
        optimise(loss, trained, optimizer)
        return loss.detach()

    def score(images_B3HW: Tensor) -> Tensor:
        model.eval()
        with torch.no_grad():
            scores: Tensor = model(images_B3HW).pred_score
        return scores

    return Subject(detector.preprocessing, train, score)


def original(case: Case, checkout: Path) -> Subject:
    """Dinomaly as its authors wrote it, from a checkout of github.com/guojiajeremy/Dinomaly.

    Its encoder gets our weights under its own names; loss, optimizer, maps and scores are its functions, put
    together as its training script does for several classes.

    Raises:
        ImportError: The checkout lacks a module, or the environment what it imports.
    """
    sys.path.insert(0, str(checkout))
    uad, layers = import_module("models.uad"), import_module("models.vision_transformer")
    functions = import_module("utils")
    detector = detector_of(case)
    encoder = _original_encoder(case)
    width = encoder.embed_dim
    bottleneck = nn.ModuleList([layers.bMlp(width, 4 * width, width, drop=0.2)])
    norm, attention = partial(nn.LayerNorm, eps=1e-8), layers.LinearAttention2
    build = partial(layers.Block, width, encoder.num_heads, qkv_bias=True, norm_layer=norm, attn=attention)
    decoder = nn.ModuleList(build() for _ in TARGETS)
    copy_trained(detector, [bottleneck, decoder])
    groups = {"fuse_layer_encoder": GROUPS, "fuse_layer_decoder": GROUPS}
    model = uad.ViTill(encoder, bottleneck, decoder, target_layers=TARGETS, **groups).to(case.device)
    trained = [*bottleneck.parameters(), *decoder.parameters()]
    optimizer = import_module("optimizers").StableAdamW(
        [{"params": trained}], lr=RATE, betas=(0.9, 0.999), weight_decay=1e-4, amsgrad=True, eps=1e-10
    )
    blur = functions.get_gaussian_kernel(kernel_size=KERNEL, sigma=SIGMA).to(case.device)

    def train(images_B3HW: Tensor, step: int) -> Tensor:
        model.train()
        share = min(HARD_SHARE * step / 1000, HARD_SHARE)
        loss = functions.global_cosine_hm_percent(*model(images_B3HW), p=share, factor=EASY_GRADIENT)
        optimise(loss, trained, optimizer)
        return cast(Tensor, loss.detach())

    def score(images_B3HW: Tensor) -> Tensor:
        model.eval()
        with torch.no_grad():
            maps_B1HW, _ = functions.cal_anomaly_maps(*model(images_B3HW), images_B3HW.shape[-1])
            maps_B1HW = F.interpolate(maps_B1HW, size=MAP_SIDE, mode="bilinear", align_corners=False)
            sorted_BP = torch.sort(blur(maps_B1HW).flatten(1), dim=1, descending=True)[0]
            return sorted_BP[:, : int(sorted_BP.shape[1] * TOP_SHARE)].mean(dim=1)

    return Subject(detector.preprocessing, train, score)


def _original_encoder(case: Case) -> Any:
    """Return the original's encoder with timm's weights, where the class token holds its position."""
    _, size, patch = case.encoder.rsplit("_", 2)
    weights = torch.load(case.weights, weights_only=True)
    build = getattr(import_module("dinov2.models.vision_transformer"), f"vit_{size}")
    registers = weights.pop("reg_token", None)
    count = 0 if registers is None else registers.shape[1]
    sampled = {"interpolate_antialias": False, "interpolate_offset": 0.1, "num_register_tokens": count}
    encoder = build(patch_size=int(patch), img_size=518, block_chunks=0, init_values=1e-8, **sampled)
    if registers is not None:
        weights["register_tokens"] = registers
    missing = encoder.pos_embed.shape[1] - weights["pos_embed"].shape[1]
    weights["pos_embed"] = F.pad(weights["pos_embed"], (0, 0, missing, 0))
    weights["mask_token"] = encoder.mask_token.detach()
    encoder.load_state_dict(weights)
    return encoder


def copy_trained(detector: Dinomaly, parts: list[nn.Module]) -> None:
    """Give a peer's bottleneck and decoder the weights of ours, layer by layer in the same order.

    A peer may lack a bias; ours are 0 at the start.
    """
    mine, theirs = (
        [layer for part in every for layer in part.modules() if isinstance(layer, nn.Linear | nn.LayerNorm)]
        for every in ([detector.bottleneck, detector.decoder], parts)
    )
    with torch.no_grad():
        for own, other in zip(mine, theirs, strict=True):
            other.weight.copy_(own.weight)
            if other.bias is not None:
                other.bias.copy_(own.bias)


def _create_with(create: Callable[..., nn.Module], case: Case, *names: str, **options: Any) -> nn.Module:
    model = create(*names, **{**options, "pretrained": False})
    model.load_state_dict(torch.load(case.weights, weights_only=True))
    return model
