"""What surrounds a run and changes none of its numbers."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dinomaly_hd.data.feature_files import FeaturePlace
from dinomaly_hd.data.features import FeatureCache
from dinomaly_hd.data.hdmap import Manifest
from dinomaly_hd.training.signals import SignalGuard


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
        feature_place: Of the files that hold encoder outputs for other runs; None keeps none.
        manifests: Data sets that were read and checked, for many runs that begin at about the same time; None
            reads the data for this run.
        donors: Folders of runs whose checkpoint may stand for this one's training.
        lock_wait_s: How long the run waits for another process that still works in its folder.
        on_progress: Called after every step with the steps done, those in all, and the seconds left.
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
    features: FeatureCache | None = None
    feature_place: FeaturePlace | None = None
    manifests: dict[str, Manifest] | None = None
    donors: tuple[Path, ...] = ()
    lock_wait_s: float = 0.0
    on_progress: Callable[[int, int, float], None] | None = None
    observe: Callable[[Mapping[str, float], int], None] | None = None


class Progress:
    """Says how far a training is, about ten times, with the time left; tells the context of every step."""

    def __init__(self, context: Context) -> None:
        self.context, self.began, self.first = context, time.monotonic(), -1

    def __call__(self, done: int, total: int) -> None:
        if self.first < 0:
            self.first, self.began = done, time.monotonic()
        seconds_left = (time.monotonic() - self.began) / max(1, done - self.first) * (total - done)
        if self.context.on_progress is not None:
            self.context.on_progress(done, total, seconds_left)
        if done == total or done % max(1, total // 10) == 0:
            self.context.say(f"step {done}/{total}, {seconds_left:.0f} s left")
