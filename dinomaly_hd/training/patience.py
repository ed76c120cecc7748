"""Early stopping: the best weights so far, when to give up, and which validation is still to be made."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

Weights = dict[str, Tensor]


class Patience:
    """Watches one value, lower is better, and keeps a copy of the weights that had the lowest.

    Its state is part of every checkpoint, so that a resumed training stops where it would have.

    Args:
        limit: Validations in a row without a better value that end the training; 0 watches nothing.

    Attributes:
        due: Whether the validation after the last step is still to be made: a signal broke it off.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.best_value, self.best_step, self.stale = float("inf"), -1, 0
        self.best_weights: Weights = {}
        self.due = False

    @property
    def exhausted(self) -> bool:
        """Whether training should end."""
        return 0 < self.limit <= self.stale

    def observe(self, value: float, *, step: int, weights: Callable[[], Weights]) -> None:
        """Take in the value after ``step`` steps; a NaN is never better."""
        if not self.limit:
            return
        if value < self.best_value:
            self.best_value, self.best_step, self.stale = value, step, 0
            self.best_weights = weights()
        else:
            self.stale += 1

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "best_value": self.best_value,
            "best_step": self.best_step,
            "stale": self.stale,
            "best_weights": self.best_weights,
            "due": self.due,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Put back what ``state`` returned."""
        self.best_value, self.best_step = state["best_value"], state["best_step"]
        self.stale, self.best_weights = state["stale"], state["best_weights"]
        self.due = state.get("due", False)
