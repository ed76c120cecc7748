"""What surrounds a run and changes none of its numbers."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dinomaly_hd.data.features import FeatureMemory
from dinomaly_hd.training.guards import SignalGuard


@dataclass(frozen=True, kw_only=True)
class Context:
    """Where results go and who is told.

    Attributes:
        root: The project: MLflow's database and the simulated data lie here.
        result_dir: Parent of the run folders.
        experiment: MLflow experiment.
        guard: Checked between batches.
        say: Prints a line.
        command: Repeats the run.
        entry_point: Its name.
        run_name: None for the default name.
        resume: "auto", "never", or a run.
        parent_run_id: MLflow parent of a comparison's member.
        folder: Where a comparison puts its member; None for a dated folder.
        tags: Further MLflow tags.
        features: Encoder outputs that the members of a comparison share; None for a run by itself.
        donors: Folders of runs whose checkpoint may stand for this one's training.
        observe: Called with every logged dict of metrics and its step, counted from 0; may raise ``Pruned``.
    """

    root: Path
    result_dir: Path
    experiment: str
    guard: SignalGuard
    say: Callable[[str], None]
    command: str
    entry_point: str
    run_name: str | None = None
    resume: str = "auto"
    parent_run_id: str | None = None
    folder: Path | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    features: FeatureMemory | None = None
    donors: tuple[Path, ...] = ()
    observe: Callable[[Mapping[str, float], int], None] | None = None


class Progress:
    """Says how far a training is, about ten times, with the time left."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.began, self.first = say, time.monotonic(), -1

    def __call__(self, done: int, total: int) -> None:
        if self.first < 0:
            self.first, self.began = done, time.monotonic()
        if done == total or done % max(1, total // 10) == 0:
            rate = (time.monotonic() - self.began) / max(1, done - self.first)
            self.say(f"step {done}/{total}, {rate * (total - done):.0f} s left")
