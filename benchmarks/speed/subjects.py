"""What is timed: our detector here, others in ``peers``, all with the same weights and maps of 31 x 95."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from dinomaly_hd.batch import Batch
from dinomaly_hd.config.base import with_values
from dinomaly_hd.config.presets import preset_run
from dinomaly_hd.config.run import RunConfig
from dinomaly_hd.config.variants import baseline
from dinomaly_hd.models.allocator import keep_freed_memory
from dinomaly_hd.models.build import build_detector
from dinomaly_hd.models.dinomaly.detector import Dinomaly
from dinomaly_hd.models.weights import locate, timm_name
from dinomaly_hd.training.optim import StableAdamW

MAP = (31, 95)
CLIP, RATE = 0.1, 2e-3


class Case(NamedTuple):
    """What all subjects have alike.

    One of timm's ViTs, by its name or our alias, and the file of its weights; the sides of the resized image
    and of what the encoder sees of it, pixels; where it runs; our precision, "32" or "bf16"; and the mode in
    which torch.compile makes our encoder and decoder anew ("": not at all).
    """

    encoder: str
    weights: str
    image: int = 448
    crop: int = 392
    device: str = "cpu"
    precision: str = "32"
    compiled: str = ""

    def run(self) -> RunConfig:
        given = {"encoder": self.encoder, "encoder_weights": self.weights, "precision": self.precision}
        sides = {"image_size": str(self.image), "crop": str(self.crop)}
        return with_values(preset_run("full", baseline()), {**given, **sides})

    def maps(self, count: int) -> Tensor:
        return torch.rand(count, *MAP, generator=torch.Generator().manual_seed(count)).to(self.device)


class Subject(NamedTuple):
    """Something that trains and scores.

    ``prepare`` makes what the other two read; its time does not count. ``train`` does one optimizer step and
    returns the loss; ``score`` returns image scores (B,).
    """

    prepare: Callable[[Tensor], Any]
    train: Callable[[Any, int], Tensor]
    score: Callable[[Any], Tensor]


def write_weights(encoder: str, folder: str) -> str:
    """Write random weights of an encoder, with which every subject starts, and return their file."""
    path = Path(folder) / "encoder.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model(timm_name(encoder), pretrained=False).state_dict(), path)
    return str(path)


def ours(case: Case, *, cached: bool) -> Subject:
    """Our detector; ``cached``: from encoder outputs instead of maps."""
    keep_freed_memory()  # as a run does
    detector = detector_of(case)
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = cache(lambda: StableAdamW(trained, lr=RATE))  # what only scores needs no moments
    bf16 = torch.autocast(case.device, dtype=torch.bfloat16, enabled=case.precision == "bf16")

    def encoded(given: Tensor) -> Tensor:
        return given if cached else detector.encode(given)

    def train(given: Tensor, step: int) -> Tensor:
        detector.train()
        domain_B = torch.zeros(len(given), dtype=torch.int64, device=given.device)
        with bf16:
            loss = detector.training_loss(Batch(given, domain_B, encoded(given)), step=step).total
        optimise(loss, trained, optimizer())
        return loss.detach()

    def score(given: Tensor) -> Tensor:
        detector.eval()
        with torch.no_grad(), bf16:
            return detector.score(encoded(given)).score_B

    return Subject(detector.encode if cached else lambda maps_BHW: maps_BHW, train, score)


def detector_of(case: Case) -> Dinomaly:
    """Return our detector with the case's encoder, untrained."""
    run = case.run()
    weights = locate(run.encoder.encoder, run.encoder.encoder_weights)
    detector = build_detector(run, weights=weights).to(case.device)
    assert isinstance(detector, Dinomaly)
    for part in (detector.encoder, detector.decoder) if case.compiled else ():
        part.compile(mode=case.compiled)
    return detector


def optimise(loss: Tensor, trained: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Do one step as all subjects do it: gradients clipped, then freed."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, CLIP)
    optimizer.step()
    optimizer.zero_grad()
