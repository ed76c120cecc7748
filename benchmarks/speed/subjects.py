"""What is timed: our detector and anomalib's Dinomaly, with the same weights and images.

All get maps of 31 x 95; a peer gets them pre-processed (392 x 392, three channels), which our times include.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
from torch import Tensor, nn

from dinomaly_hd.batch import Batch
from dinomaly_hd.config import RunConfig, with_values
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.dinomaly import Dinomaly
from dinomaly_hd.models.weights import locate, timm_name
from dinomaly_hd.presets import full_dinomaly
from dinomaly_hd.training.optim import StableAdamW
from dinomaly_hd.variants import baseline

MAP = (31, 95)
CLIP, RATE = 0.1, 2e-3


@dataclass(frozen=True)
class Case:
    """What all subjects have alike.

    Attributes:
        encoder: One of timm's ViTs, by its name or our alias.
        weights: File of its weights; ``write_weights`` makes one.
        image: Side of the resized image, pixels.
        crop: Side of what the encoder sees.
        device: Where it runs.
        precision: Of ours: "32" or "bf16".
    """

    encoder: str
    weights: Path
    image: int = 448
    crop: int = 392
    device: str = "cpu"
    precision: str = "32"

    def run(self) -> RunConfig:
        """Return our configuration: the published baseline."""
        values = {
            "encoder": self.encoder,
            "encoder_weights": str(self.weights),
            "image_size": str(self.image),
            "crop": str(self.crop),
            "precision": self.precision,
        }
        return with_values(full_dinomaly(baseline()), values)

    def maps(self, count: int) -> Tensor:
        """Return the same maps for every subject."""
        return torch.rand(count, *MAP, generator=torch.Generator().manual_seed(count)).to(self.device)


class Subject(NamedTuple):
    """Something that trains and scores.

    ``prepare`` makes what the other two read; its time does not count. ``train`` does one optimizer step and
    returns the loss; ``score`` returns image scores (B,). ``model`` is what counting operations looks at.
    """

    prepare: Callable[[Tensor], Any]
    train: Callable[[Any, int], Tensor]
    score: Callable[[Any], Tensor]


def write_weights(encoder: str, path: Path) -> None:
    """Write random weights of an encoder, with which every subject starts."""
    torch.manual_seed(0)
    model = timm.create_model(timm_name(encoder), pretrained=False)
    torch.save(model.state_dict(), path)


def ours(case: Case, *, cached: bool) -> Subject:
    """Our detector; ``cached``: from encoder outputs instead of maps."""
    detector = _detector(case)
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = StableAdamW(trained, lr=RATE)
    bf16 = torch.autocast(case.device, dtype=torch.bfloat16, enabled=case.precision == "bf16")

    def encoded(given: Tensor) -> Tensor:
        return given if cached else detector.encode(given)

    def train(given: Tensor, step: int) -> Tensor:
        detector.train()
        domain_B = torch.zeros(len(given), dtype=torch.int64, device=given.device)
        with bf16:
            loss = detector.training_loss(Batch(given, domain_B, encoded(given)), step=step).total
        _optimise(loss, trained, optimizer)
        return loss.detach()

    def score(given: Tensor) -> Tensor:
        detector.eval()
        with torch.no_grad(), bf16:
            return detector.score(encoded(given)).score_B

    return Subject(detector.encode if cached else _as_it_is, train, score)


def anomalib(case: Case) -> Subject:
    """anomalib's Dinomaly with our weights, without its engine, logging and transforms."""
    from anomalib.models.components.feature_extractors import timm as extractors
    from anomalib.models.image.dinomaly.components import StableAdamW as TheirAdamW
    from anomalib.models.image.dinomaly.torch_model import DinomalyModel

    detector = _detector(case)
    create = extractors.timm.create_model
    extractors.timm.create_model = partial(_create_with, create, case)
    try:
        model = DinomalyModel(encoder_name=timm_name(case.encoder)).to(case.device)
    finally:
        extractors.timm.create_model = create
    copy_trained(detector, [model.bottleneck, model.decoder])
    model.encoder.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = TheirAdamW([{"params": trained}], lr=RATE, weight_decay=1e-4, amsgrad=True, eps=1e-8)

    def train(images_B3HW: Tensor, step: int) -> Tensor:
        model.train()
        loss = model(images_B3HW, global_step=step)
        _optimise(loss, trained, optimizer)
        return loss.detach()

    def score(images_B3HW: Tensor) -> Tensor:
        model.eval()
        with torch.no_grad():
            scores: Tensor = model(images_B3HW).pred_score
        return scores

    return Subject(detector.preprocessing, train, score)


def copy_trained(detector: Dinomaly, parts: list[nn.Module]) -> None:
    """Give a peer's bottleneck and decoder the weights of ours, layer by layer in the same order.

    A peer may lack a bias; ours are 0 at the start.
    """
    own = [cast(nn.Module, detector.bottleneck), detector.decoder]
    with torch.no_grad():
        for mine, theirs in zip(_layers(own), _layers(parts), strict=True):
            theirs.weight.copy_(mine.weight)
            if theirs.bias is not None:
                theirs.bias.copy_(mine.bias)


def _layers(parts: list[nn.Module]) -> list[Any]:
    return [
        layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear | nn.LayerNorm)
    ]


def _detector(case: Case) -> Dinomaly:
    run = case.run()
    weights = locate(run.encoder.encoder, run.encoder.encoder_weights)
    detector = build_detector(run, weights=weights).to(case.device)
    assert isinstance(detector, Dinomaly)
    return detector


def _as_it_is(maps_BHW: Tensor) -> Tensor:
    return maps_BHW


def _optimise(loss: Tensor, trained: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, CLIP)
    optimizer.step()
    optimizer.zero_grad()


def _create_with(create: Callable[..., nn.Module], case: Case, *names: str, **options: Any) -> nn.Module:
    model = create(*names, **{**options, "pretrained": False})
    model.load_state_dict(torch.load(case.weights, weights_only=True))
    return model
