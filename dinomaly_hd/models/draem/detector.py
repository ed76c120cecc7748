"""DRAEM: rebuild an image without its synthetic fault, tell where it was; SevNet also tells how severe."""

# B batch, H W pixels

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torchvision.ops import sigmoid_focal_loss  # type: ignore[import-untyped]

from dinomaly_hd.batch import Batch
from dinomaly_hd.config.families import DraemConfig, SevNetConfig
from dinomaly_hd.models.detector import Detector, Loss, Noise, Prediction, resized
from dinomaly_hd.models.dinomaly.score import top_share_score
from dinomaly_hd.models.draem.faults import Faults, Faulty
from dinomaly_hd.models.draem.networks import (
    SSIM_WINDOW,
    DiscriminativeNetwork,
    ReconstructiveNetwork,
    SeverityHead,
    activation_channels,
    initialise,
)
from dinomaly_hd.models.networks import Preprocessing

SSIM_SIGMA, SSIM_WEIGHT = 1.5, 2.0
FOCAL_GAMMA, NO_ALPHA = 2.0, -1.0


def structural_similarity(rebuilt_B3HW: Tensor, clean_B3HW: Tensor) -> Tensor:
    """Return the mean SSIM of each image (B,): Gaussian window 11 x 11, sigma 1.5, data range 1."""
    # Imported here: it takes seconds, and scoring needs none of it.
    from torchmetrics.functional.image import structural_similarity_index_measure

    window: Any = {"kernel_size": SSIM_WINDOW, "sigma": SSIM_SIGMA}
    similarity = structural_similarity_index_measure(
        rebuilt_B3HW, clean_B3HW, data_range=1.0, reduction="none", **window
    )
    return cast(Tensor, similarity)


def focal_loss(logits_B2HW: Tensor, mask_BHW: Tensor) -> Tensor:
    """Return the two-class focal loss of each image (B,), gamma 2, both classes weighted alike."""
    # The softmax of two logits is the sigmoid of their difference.
    logit_BHW = logits_B2HW[:, 1] - logits_B2HW[:, 0]
    loss_BHW: Tensor = sigmoid_focal_loss(
        logit_BHW, mask_BHW.to(logit_BHW.dtype), alpha=NO_ALPHA, gamma=FOCAL_GAMMA
    )
    return loss_BHW.mean(dim=(1, 2))


class Outputs(NamedTuple):
    """What the networks say about images."""

    rebuilt_B3HW: Tensor  # the images as they would be without fault
    logits_B2HW: Tensor  # of normal and anomalous pixels
    activations: tuple[Tensor, ...]  # the discriminator's act1 .. act6, (B, C, H / 2^i, W / 2^i), rounded up


class ImageLosses(NamedTuple):
    """The loss of each image (B,), and the parts worth logging, each (B,) as well."""

    total_B: Tensor
    parts: dict[str, Tensor]


class Draem(Detector):
    """Two networks trained from scratch on normal images with synthetic faults (spec/models.md, DRAEM).

    ``encode`` gives the pre-processed image (of mean 0 and standard deviation 1), one channel (B, 1, H, W).
    Losses and scores are float32 under autocast too.
    """

    config: DraemConfig | SevNetConfig

    def __init__(
        self,
        config: DraemConfig | SevNetConfig,
        *,
        preprocessing: Preprocessing,
        faults: Faults,
        map_size: tuple[int, int],
        seed: int,
    ) -> None:
        super().__init__()
        self.config, self.preprocessing, self.faults = config, preprocessing, faults
        self.map_size, self.seed = map_size, seed
        self.reconstruction = ReconstructiveNetwork(config.width)
        self.discrimination = DiscriminativeNetwork(config.width)
        initialise(self, seed=seed)

    @torch.no_grad()
    def encode(self, images_BHW: Tensor) -> Tensor:
        with torch.autocast(images_BHW.device.type, enabled=False):
            # A copy: a view of one channel would keep all three in the cache.
            return self.preprocessing(images_BHW)[:, :1].clone()

    def examine(self, images_BHW: Tensor) -> Outputs:
        """Run both networks on pre-processed images, clean or faulty, in the module's mode."""
        images_B3HW = _three_channels(images_BHW)
        rebuilt_B3HW = self.reconstruction(images_B3HW)
        return Outputs(rebuilt_B3HW, *self.discrimination(torch.cat([rebuilt_B3HW, images_B3HW], dim=1)))

    def image_losses(
        self, outputs: Outputs, *, clean_BHW: Tensor, faulty: Faulty, noise: Noise | None
    ) -> ImageLosses:
        """Return L2 + 2 (1 - SSIM) + focal of each image; ``noise=None`` means inference."""
        del noise
        rebuilt_B3HW, clean_B3HW = outputs.rebuilt_B3HW.float(), _three_channels(clean_BHW)
        l2_B = F.mse_loss(rebuilt_B3HW, clean_B3HW, reduction="none").mean(dim=(1, 2, 3))
        ssim_B = structural_similarity(rebuilt_B3HW, clean_B3HW)
        focal_B = focal_loss(outputs.logits_B2HW.float(), faulty.mask_BHW)
        fault_rate_B = faulty.mask_BHW.flatten(1).any(dim=1).float()
        parts = {"l2": l2_B, "ssim": ssim_B, "focal": focal_B, "fault_rate": fault_rate_B}
        return ImageLosses(l2_B + SSIM_WEIGHT * (1 - ssim_B) + focal_B, parts)

    def _losses(self, encoded: Tensor, *, generator: Generator, noise: Noise | None) -> ImageLosses:
        clean_BHW = encoded.squeeze(1).float()
        with torch.autocast(clean_BHW.device.type, enabled=False):
            faulty = self.faults(clean_BHW, generator=generator)
        outputs = self.examine(faulty.images_BHW)
        with torch.autocast(clean_BHW.device.type, enabled=False):
            return self.image_losses(outputs, clean_BHW=clean_BHW, faulty=faulty, noise=noise)

    def training_loss(self, batch: Batch, *, step: int) -> Loss:
        assert batch.encoded is not None, "encode the batch first"
        noise = Noise(self.seed, step=step, device=batch.encoded.device)
        losses = self._losses(batch.encoded, generator=noise.generator("faults"), noise=noise)
        parts = {name: part.detach().mean() for name, part in losses.parts.items()}
        return Loss(losses.total_B.mean(), parts)

    def validation_loss(self, encoded: Tensor, *, position: int) -> Tensor:
        generator = Noise(self.seed, step=position, device=encoded.device).generator("validation faults")
        with self._inference():
            return self._losses(encoded, generator=generator, noise=None).total_B

    def score(self, encoded: Tensor) -> Prediction:
        with self._inference():
            outputs = self.examine(encoded.squeeze(1).float())
            anomaly_BHW = outputs.logits_B2HW.float().softmax(dim=1)[:, 1]
            map_BHW = resized(anomaly_BHW, self.map_size)
            with torch.autocast(encoded.device.type, enabled=False):
                return Prediction(map_BHW, self.scores(anomaly_BHW, outputs))

    def scores(self, anomaly_BHW: Tensor, outputs: Outputs) -> Tensor:
        """Return the image scores (B,), 0..1, from the full-size map: its largest value, or the top 1 %."""
        del outputs
        if getattr(self.config, "image_score", "max") == "top_share":
            return top_share_score(anomaly_BHW)
        return anomaly_BHW.amax(dim=(1, 2))

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Keep batch norm from using, or learning from, what is validated or scored."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(was_training)


def _three_channels(images_BHW: Tensor) -> Tensor:
    return images_BHW.unsqueeze(1).expand(-1, 3, -1, -1)


ELEMENT_LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    # Errors stay below 1, the threshold, where it is half the mse.
    "smooth_l1": F.smooth_l1_loss,
}
COMBINATIONS: dict[str, Callable[[Tensor, Tensor, Any], Tensor]] = {
    "simple_average": lambda map_B, severity_B, _: (map_B + severity_B) / 2,
    "weighted_average": lambda map_B, severity_B, config: (
        (1 - config.severity_weight_for_combination) * map_B
        + config.severity_weight_for_combination * severity_B
    ),
    "maximum": lambda map_B, severity_B, _: torch.maximum(map_B, severity_B),
}
"""The image score of the map's largest value and the severity, each (B,), 0..1."""


class SevNet(Draem):
    """DRAEM with a severity head on the discriminator's encoder (spec/models.md, DRAEM-SevNet).

    Both networks start as those of ``Draem`` with the same seed and width, and train on the same faults. The
    head is compared with severity / severity_max of these, so that both live in 0..1.
    """

    config: SevNetConfig

    def __init__(self, config: SevNetConfig, **parts: Any) -> None:
        super().__init__(config, **parts)
        self.head = SeverityHead(config, activation_channels(config.width))
        initialise(nn.ModuleDict({"head": self.head}), seed=self.seed)

    def image_losses(
        self, outputs: Outputs, *, clean_BHW: Tensor, faulty: Faulty, noise: Noise | None
    ) -> ImageLosses:
        base = super().image_losses(outputs, clean_BHW=clean_BHW, faulty=faulty, noise=noise)
        severity_B = self.head(outputs.activations, noise=noise)
        label_B = faulty.severity_B / self.faults.severity_max
        loss_B = ELEMENT_LOSSES[self.config.severity_loss_type](severity_B, label_B, reduction="none")
        parts = {"severity_loss": loss_B, "severity_mae": (severity_B - label_B).abs()}
        return ImageLosses(base.total_B + self.config.severity_weight * loss_B, {**base.parts, **parts})

    def scores(self, anomaly_BHW: Tensor, outputs: Outputs) -> Tensor:
        combination, severity_B = self.config.combination, self.head(outputs.activations, noise=None)
        combine = COMBINATIONS[combination.score_combination]
        return combine(super().scores(anomaly_BHW, outputs), severity_B, combination)
