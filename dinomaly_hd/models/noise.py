"""The randomness of one training step: an own generator for every place that draws."""

import torch
from torch import Generator

from dinomaly_hd.randomness import derive


class Noise:
    """Generators that are functions of (seed, step, place), so that a part one variant adds moves no other's.

    Args:
        seed: Of the run.
        step: Optimizer step from 0.
        device: Where the numbers are drawn.
    """

    def __init__(self, seed: int, *, step: int, device: torch.device) -> None:
        self.seed, self.step, self.device = seed, step, device

    def generator(self, place: str) -> Generator:
        """Return a fresh generator of a named place."""
        return Generator(self.device).manual_seed(derive(self.seed, place, self.step))
