"""What can be searched: ranges and switches by name, and the authors' settings as points of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from optuna import Trial

Native = bool | int | float
Point = Mapping[str, str]
"""Values by name as flags' text, without those that would do nothing."""


class Dimension(Protocol):
    """The values of one name; ``native`` reads a flag's text for Optuna."""

    def suggest(self, trial: "Trial", name: str) -> str: ...

    def native(self, text: str) -> Native: ...

    def holds(self, text: str) -> bool: ...


class Real(NamedTuple):
    """A number from ``low`` to ``high``: in hundredths, or by its logarithm with three digits."""

    low: float
    high: float
    log: bool = False

    def suggest(self, trial: "Trial", name: str) -> str:
        if self.log:
            return f"{trial.suggest_float(name, self.low, self.high, log=True):.3g}"
        return f"{trial.suggest_float(name, self.low, self.high, step=0.01):.10g}"

    def native(self, text: str) -> Native:
        return float(text)

    def holds(self, text: str) -> bool:
        return self.low <= float(text) <= self.high


class Whole(NamedTuple):
    """A whole number from ``low`` to ``high``."""

    low: int
    high: int

    def suggest(self, trial: "Trial", name: str) -> str:
        return str(trial.suggest_int(name, self.low, self.high))

    def native(self, text: str) -> Native:
        return int(text)

    def holds(self, text: str) -> bool:
        return self.low <= int(text) <= self.high


class Switch(NamedTuple):
    """On or off."""

    def suggest(self, trial: "Trial", name: str) -> str:
        return str(trial.suggest_categorical(name, [False, True])).lower()

    def native(self, text: str) -> Native:
        return text == "true"

    def holds(self, text: str) -> bool:
        return text in ("false", "true")


TOPK = "use_topk"
DIMENSIONS: dict[str, Dimension] = {
    TOPK: Switch(),
    "disable_segment": Switch(),
    "row_p": Real(0.1, 0.5),
    "seg_len": Whole(1, 6),
    "seg_drop_p": Real(0.4, 1.0),
    "elem_p": Real(0.0, 0.3),
    "q_percent": Real(0.5, 20.0, log=True),
    "tail_context": Whole(0, 2),
    "row_context": Whole(0, 2),
}
"""Every name that can be searched, switches first, since what else is suggested hangs on them."""

REFERENCES: dict[str, Point] = {
    "F": {
        TOPK: "true", "disable_segment": "false", "row_p": "0.2", "seg_len": "2", "seg_drop_p": "0.6",
        "elem_p": "0.1", "q_percent": "2.0", "tail_context": "0", "row_context": "0",
    },
    "G": {
        TOPK: "true", "disable_segment": "false", "row_p": "0.3", "seg_len": "3", "seg_drop_p": "0.8",
        "elem_p": "0.1", "q_percent": "2.0", "tail_context": "0", "row_context": "0",
    },
    "A0": {TOPK: "false", "disable_segment": "true", "elem_p": "0.2", "row_context": "0"},
}  # fmt: skip
"""The authors' settings as points; A0's plain bottleneck is one whose segments are off, at element dropout .2
(spec/variants.md, Ablation)."""
