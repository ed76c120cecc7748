"""A variant of your own, in a file outside of the package: hard mining that also wants even rows.

dinomaly-hd variant --plugin examples/my_variant.py --row_weight 5
dinomaly-hd ablation --plugin examples/my_variant.py --configs cfg-A0,even_rows --seeds 42,43,44
"""

from typing import Any, Literal

from torch import Tensor

from dinomaly_hd.config.base import NonNegative, doc
from dinomaly_hd.config.dinomaly import DinomalyConfig, HardMiningLoss
from dinomaly_hd.config.variants import baseline, change
from dinomaly_hd.models.detector import Loss
from dinomaly_hd.models.dinomaly.losses import HardMining, token_distance


class EvenRowsLoss(HardMiningLoss):
    """What may be set: a flag, a key of conditions files, and what may stand behind a colon."""

    loss: Literal["even_rows"] = "even_rows"
    row_weight: NonNegative = doc(1.0, "of the variance between rows in the loss")


class EvenRows(HardMining):
    """Adds the variance of the rows' mean distances: rows of a healthy map should be rebuilt equally well."""

    config: EvenRowsLoss

    def forward(self, encoder_BSND: Tensor, decoder_BSND: Tensor, **told: Any) -> Loss:
        loss = super().forward(encoder_BSND, decoder_BSND, **told)
        distance_BSN = token_distance(encoder_BSND.detach(), decoder_BSND)
        variance = distance_BSN.unflatten(-1, self.grid).mean(-1).var(-1).mean()
        total = loss.total + self.config.row_weight * variance
        return Loss(total, {**loss.parts, "row_variance": variance.detach()})


def even_rows() -> DinomalyConfig:
    """The baseline with another loss."""
    return change(baseline(), loss=EvenRowsLoss())


VARIANTS = {"even_rows": even_rows}
PARTS = {EvenRowsLoss: EvenRows}
