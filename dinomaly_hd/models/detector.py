"""Detector: the one interface of all model families."""

# B batch, C channels, H W pixels

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from dinomaly_hd.batch import Batch
from dinomaly_hd.randomness import derive

GROUP_SIZE = 8


class Loss(NamedTuple):
    """What one training step minimises, and the parts worth logging (scalars, detached)."""

    total: Tensor
    parts: dict[str, Tensor]


class Prediction(NamedTuple):
    """Raw anomaly maps and image scores; higher is more anomalous."""

    map_BHW: Tensor
    score_B: Tensor


class ParameterGroup(NamedTuple):
    """Trained parameters and the factor on their scheduled learning rate."""

    parameters: list[nn.Parameter]
    rate_factor: float


class Noise:
    """The randomness of one training step: an own generator for every place that draws.

    Each is a function of (seed, step, place), so that a part one variant adds moves no other's.
    """

    def __init__(self, seed: int, *, step: int, device: torch.device) -> None:
        self.seed, self.step, self.device = seed, step, device

    def generator(self, place: str) -> Generator:
        """Return a fresh generator of a named place."""
        return Generator(self.device).manual_seed(derive(self.seed, place, self.step))


class Kept(NamedTuple):
    """What dropout keeps (boolean, of the shape of its input) and the factor that makes up for the rest."""

    mask: Tensor
    scale: float

    def of(self, x: Tensor) -> Tensor:
        """Return ``x``, scaled, where the mask says so, else 0; autograd keeps the mask, a byte a value."""
        return (x * self.scale).mul_(self.mask)


def draw_kept(like: Tensor, *, p: float, generator: Generator | None) -> Kept | None:
    """Return what dropout with probability ``p`` keeps of a tensor; None, all, without a generator."""
    if generator is None or p == 0:
        return None
    # Uniform numbers and a comparison: less than half the time of bernoulli_ on the CPU.
    mask = torch.rand(like.shape, generator=generator, device=like.device) >= p
    return Kept(mask, 1.0 if p == 1 else 1 / (1 - p))


def dropout(x: Tensor, *, p: float, generator: Generator | None) -> Tensor:
    """Zero elements with probability ``p`` and scale the rest by 1/(1-p); identity without a generator."""
    kept = draw_kept(x, p=p, generator=generator)
    return x if kept is None else kept.of(x)


class LearnedSizes(nn.Module):
    """A module whose own buffers get their sizes by learning: a loaded state brings them along."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            stored = state_dict.get(prefix + name)
            if isinstance(stored, Tensor):
                setattr(self, name, buffer.new_empty(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Detector(LearnedSizes, ABC):
    """An anomaly detector in two halves: a frozen one whose output may be cached, and one that learns.

    ``encode`` is a pure function of one image, without gradient; its result for an image is computed
    once per run and handed to ``training_loss`` and ``score``. A detector that alters its training images
    (``alters_images``) gets them encoded anew at every step.
    """

    @property
    def alters_images(self) -> bool:
        """Whether ``alter`` changes anything."""
        return False

    def fit_encoder(self, batches: Iterable[Tensor]) -> None:
        """Take what the frozen half needs from the training images (B, H, W), e.g. channel statistics."""

    def fit_loss(self, batches: Iterable[Tensor]) -> None:
        """Take what the loss needs from the training images (B, H, W); most need nothing."""

    @abstractmethod
    def encode(self, images_BHW: Tensor) -> Tensor:
        """Return what the trained half reads: float maps in, any tensor with leading dimension B out."""

    def alter(self, images_BHW: Tensor, *, step: int) -> Tensor:
        """Return the images that a step trains on; a function of images, seed and step."""
        del step
        return images_BHW

    def fit_bank(self, batches: Iterable[Tensor], *, tick: Callable[[], None] = lambda: None) -> None:
        """Learn from the encoded training images (B, ...) at once, where nothing is learned by gradients.

        ``tick`` is called now and then, and may end it with an exception.
        """

    def training_loss(self, batch: Batch, *, step: int) -> Loss:
        """Return the loss of one encoded batch at optimizer step ``step`` (from 0)."""
        raise NotImplementedError(f"{type(self).__name__} is not trained by gradients")

    def validation_loss(self, encoded: Tensor, *, position: int) -> Tensor:
        """Return the loss of each image (B,) in inference mode, without noise, mining or warm-up.

        ``position`` is the number of the batch, of which synthetic faults are a function.
        """
        raise NotImplementedError(f"{type(self).__name__} is not trained by gradients")

    @abstractmethod
    def score(self, encoded: Tensor) -> Prediction:
        """Return anomaly maps and image scores; deterministic."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return all trained parameters, none where nothing is trained by gradients."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [ParameterGroup(trained, 1.0)] if trained else []


def resized(maps_BHW: Tensor, size: tuple[int, int], *, antialias: bool = False) -> Tensor:
    """Return maps of another height and width, bilinear, corners not aligned."""
    maps_B1HW = maps_BHW.unsqueeze(1)
    return F.interpolate(
        maps_B1HW, size=size, mode="bilinear", align_corners=False, antialias=antialias
    ).squeeze(1)


def encode_in_groups(detector: Detector, images_BHW: Tensor) -> Tensor:
    """Return ``detector.encode`` of images: the same bits for an image whatever it came with."""
    # In groups of one size, the last one filled up: libraries choose other kernels for other batch sizes, and
    # round otherwise (measured: 3e-5 between batches of 8 and 16 on a CPU). So no number depends on what was
    # cached by whom.
    missing = -len(images_BHW) % GROUP_SIZE
    last = images_BHW[-1:].expand(missing, *images_BHW.shape[1:])
    filled = torch.cat([images_BHW, last]) if missing else images_BHW
    with torch.autocast(images_BHW.device.type, enabled=False):  # it refuses to join float16 under bfloat16
        encoded = [detector.encode(group_BHW) for group_BHW in torch.split(filled, GROUP_SIZE)]
        return torch.cat(encoded)[: len(images_BHW)]
