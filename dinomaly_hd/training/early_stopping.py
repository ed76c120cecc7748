"""Early stopping: the best weights so far, when to give up, and which validation is still to be made."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

STATE = ("best_value", "best_step", "stale", "best_weights", "due")
"""What a checkpoint keeps, so that a resumed training stops where it would have."""


class EarlyStopping:
    """Watches one value, lower is better, and keeps a copy of the weights that had the lowest.

    Args:
        patience: Validations in a row without a better value that end the training; 0 watches nothing.

    Attributes:
        due: Whether the validation after the last step is still to be made: a signal broke it off.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best_value, self.best_step, self.stale = float("inf"), -1, 0
        self.best_weights: dict[str, Tensor] = {}
        self.due = False

    @property
    def exhausted(self) -> bool:
        """Whether training should end."""
        return 0 < self.patience <= self.stale

    def observe(self, value: float, *, step: int, weights: Callable[[], dict[str, Tensor]]) -> None:
        """Take in the value after ``step`` steps; a NaN is never better."""
        if not self.patience:
            return
        if value < self.best_value:
            self.best_value, self.best_step, self.stale = value, step, 0
            self.best_weights = weights()
        else:
            self.stale += 1

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def load(self, state: dict[str, Any]) -> None:
        """Put back what ``state`` returned; checkpoints of early versions do not know ``due``."""
        for name in STATE:
            setattr(self, name, state.get(name, False) if name == "due" else state[name])
