"""An auxiliary task beside reconstruction: tell whether a synthetic band was added to an image."""

# B batch, N tokens, D width, H W pixels

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinomaly_hd.models.detector import Loss
from dinomaly_hd.models.draem.faults import horizontal_bands


class BandClassifier(nn.Module):
    """Linear-GELU-linear on the mean bottleneck token, trained on a batch whose second half got a band.

    Only the clean half is rebuilt (spec/variants.md, Aux). A batch of one image has no altered half.

    Args:
        width: D.
        weight: Of the cross-entropy in the loss.
        score_weight: Of the logit in the image score; 0 leaves the score as it is.
        seed: Of the run.
    """

    def __init__(self, width: int, *, weight: float, score_weight: float, seed: int) -> None:
        super().__init__()
        self.weight, self.score_weight, self.seed = weight, score_weight, seed
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def clean(self, batch: int) -> int:
        """Return how many of a batch's images, its first ones, stay as they are."""
        return batch - batch // 2

    def alter(self, images_BHW: Tensor, *, step: int) -> Tensor:
        """Return the batch with a band added to each image of its second half."""
        clean = self.clean(len(images_BHW))
        faulty = horizontal_bands(images_BHW[clean:], seed=self.seed, position=step)
        return torch.cat([images_BHW[:clean], faulty.images_BHW])

    def logit(self, tokens_BND: Tensor) -> Tensor:
        """Return the log-odds of a band, (B,)."""
        logit_B1: Tensor = self.layers(tokens_BND.mean(dim=1))
        return logit_B1.squeeze(1)

    def loss(self, tokens_BND: Tensor) -> Loss:
        """Return the weighted cross-entropy of a batch that ``alter`` made, with accuracy."""
        logit_B = self.logit(tokens_BND)
        label_B = (torch.arange(len(logit_B), device=logit_B.device) >= self.clean(len(logit_B))).float()
        entropy = F.binary_cross_entropy_with_logits(logit_B.float(), label_B)
        accuracy = ((logit_B.detach() > 0) == (label_B > 0)).float().mean()
        return Loss(self.weight * entropy, {"aux_loss": entropy.detach(), "aux_accuracy": accuracy})
