"""A detector without a model: one number of the image itself."""

# B batch, H W pixels

import torch
import torch.nn.functional as F
from torch import Tensor

from dinomaly_hd.config import TrivialConfig
from dinomaly_hd.models.detector import Detector, Prediction
from dinomaly_hd.trivial import TRIVIAL


class Trivial(Detector):
    """The score, float64, is a number of the raw map, and the anomaly map is that raw map."""

    def __init__(self, config: TrivialConfig, *, map_size: tuple[int, int]) -> None:
        super().__init__()
        self.number, self.map_size = TRIVIAL[config.trivial_score], map_size

    def encode(self, images_BHW: Tensor) -> Tensor:
        return images_BHW

    @torch.no_grad()
    def score(self, encoded: Tensor) -> Prediction:
        score_B = torch.from_numpy(self.number(encoded.float().cpu().numpy())).to(encoded.device)
        map_B1HW = F.interpolate(
            encoded[:, None], size=self.map_size, mode="bilinear", align_corners=False, antialias=True
        )
        return Prediction(map_B1HW.squeeze(1), score_B)
