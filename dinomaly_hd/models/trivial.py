"""A detector without a model: one number of the image itself."""

# B batch, H W pixels

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dinomaly_hd.models.detector import Detector, ParameterGroup, Prediction


class Trivial(Detector):
    """The score is a number of the raw map, and the anomaly map is that raw map.

    Args:
        number: Takes maps (B, H, W) to scores (B,), float64.
        map_size: (height, width) of the anomaly maps, pixels.
    """

    def __init__(self, number: Callable[[NDArray[Any]], NDArray[Any]], *, map_size: tuple[int, int]) -> None:
        super().__init__()
        self.number, self.map_size = number, map_size

    def fit_encoder(self, batches: Iterable[Tensor]) -> None:
        del batches

    def encode(self, images_BHW: Tensor) -> Tensor:
        return images_BHW

    @torch.no_grad()
    def score(self, encoded: Tensor) -> Prediction:
        score_B = torch.from_numpy(self.number(encoded.float().cpu().numpy())).to(encoded.device)
        map_B1HW = F.interpolate(
            encoded[:, None], size=self.map_size, mode="bilinear", align_corners=False, antialias=True
        )
        return Prediction(map_B1HW.squeeze(1), score_B)

    def parameter_groups(self) -> list[ParameterGroup]:
        return []
