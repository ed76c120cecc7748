"""Drills 2, 3 and 5: torn checkpoints, full disks, and what is not finite in the midst of a training."""

import contextlib
import math
import os
import random
import re
import resource
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.drills import Drill, Tally
from dinomaly_hd.batch import Batch
from dinomaly_hd.errors import Interrupted, NonFiniteError, OutputError
from dinomaly_hd.files import TEMPORARY_PREFIX
from dinomaly_hd.models.detector import Loss
from dinomaly_hd.training import checkpoint as checkpoints
from dinomaly_hd.training.checkpoint import Checkpoint
from tests.training import DATA, Line, Record, Samples, config, train

OLDER, NEWER = 5, 10
CUTS, FAST_CUTS = 100, 20
KIB = 1024
SIZES, FAST_SIZES = 20, 4
SMALLEST_KIB, LARGEST_KIB = 200, 4000
FIRST_KIB, GROWTH_KIB = 256, 48
"""Weights of the first checkpoint on a small disk, and by how much each later one has more."""


def _save(folder: Path, step: int, *, kib: int = 64) -> Path:
    """Save a checkpoint of so many KiB of weights, which its step names."""
    weights = {"weight": torch.full((kib * KIB // 4,), float(step))}
    return checkpoints.save(folder, Checkpoint(step, "{}", "data", "encoder", 0, weights, {}, {}))


def _newest_is_not(folder: Path, step: int, *, unreadable: Sequence[Path] = ()) -> str | None:
    """Return what else there is than that checkpoint (0: none), these files named, and nothing left over."""
    try:
        found = checkpoints.newest(folder)
    except Exception as error:  # any other exception is what the drill looks for
        return repr(error)
    held = found.checkpoint.weights["weight"] if found.checkpoint else torch.zeros(1)
    if (found.checkpoint.step if found.checkpoint else 0) != step or not (held == float(step)).all():
        return f"step {step} is not the newest readable checkpoint: {found.unreadable}"
    named = [str(path) in said for path, said in zip(unreadable, found.unreadable, strict=False)]
    if len(found.unreadable) != len(unreadable) or not all(named):
        return f"unreadable, and not named: {found.unreadable}"
    return "a temporary file is left" if list(folder.glob(f"{TEMPORARY_PREFIX}*")) else None


def torn_checkpoints(folder: Path, full: bool) -> Tally:
    """Cut the newest checkpoint off anywhere: the one before is used, and the torn one named."""
    tally, draws = Tally(), random.Random(2)
    _save(folder, OLDER)
    newer = _save(folder, NEWER)
    whole = newer.read_bytes()
    ends = [0, 1, len(whole) // 2, len(whole) - 1]
    others = draws.sample([size for size in range(2, len(whole) - 1) if size not in ends], CUTS)
    for size in [*ends, *others][: CUTS if full else FAST_CUTS]:
        newer.write_bytes(whole[:size])
        (folder / f"{TEMPORARY_PREFIX}{size}").write_bytes(whole[:size])  # what a killed writer leaves
        fault = _newest_is_not(folder, OLDER, unreadable=[newer])
        tally.add(f"cut at {size} of {len(whole)} bytes", fault)
    tally.add("written out before it is renamed", _order_of_writing(folder))
    return tally


def _order_of_writing(folder: Path) -> str | None:
    """Look at the order of the system calls: only a power failure could show another one's harm."""
    calls: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        calls.append("replace" if Path(source).parent == Path(target).parent else "replace from elsewhere")
        replace(source, target)

    with mock.patch.object(os, "fsync", synced), mock.patch.object(os, "replace", replaced):
        _save(folder, NEWER)
    return None if calls == ["file", "replace", "folder"] else f"{calls}"


def full_disks(folder: Path, full: bool) -> Tally:
    """Save on real small disks until they are full: the older checkpoint stays, nothing else does."""
    tally, draws, disk = Tally(note="tmpfs mounts"), random.Random(3), _mounted
    try:
        with _mounted(folder / "try", SMALLEST_KIB):
            pass
    except (OSError, subprocess.CalledProcessError):
        tally.note, disk = "limits on the size of files, since mounting is not permitted here", _limited
    for kib in sorted(draws.sample(range(SMALLEST_KIB, LARGEST_KIB, 4), SIZES if full else FAST_SIZES)):
        with disk(folder / f"disk{kib}", kib):
            fault = _fill(folder / f"disk{kib}")
        tally.add(f"{kib} KiB", fault)
    return tally


@contextlib.contextmanager
def _mounted(folder: Path, kib: int) -> Iterator[None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def _limited(folder: Path, kib: int) -> Iterator[None]:
    folder.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib * KIB, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _fill(folder: Path) -> str | None:
    """Save ever larger checkpoints until one does not fit, and return what was wrong about that."""
    refused, step = None, 0
    with tempfile.TemporaryDirectory() as elsewhere, mock.patch.object(tempfile, "tempdir", elsewhere):
        untouched = os.stat(elsewhere).st_mtime_ns
        with mock.patch.dict("os.environ", {"TMPDIR": elsewhere}):
            while refused is None and step * GROWTH_KIB <= LARGEST_KIB:
                step += 1
                try:
                    _save(folder, step, kib=FIRST_KIB + step * GROWTH_KIB)
                except Exception as error:  # which one is what the drill looks at
                    refused = error
        if os.stat(elsewhere).st_mtime_ns != untouched:
            return "TMPDIR was used"
    if not isinstance(refused, OutputError) or str(folder) not in str(refused):
        return repr(refused)
    return _newest_is_not(folder, step - 1)


# Promise 5: a loss, a gradient or an input that is not finite.

STEPS, KINDS = (1, 37, 3000), ("loss", "gradient", "input")
LEAD = 3
"""Steps between the checkpoint that a poisoned training goes on from and the poison."""
CONFIG = {"max_steps": 2 * max(STEPS), "warmup_steps": 0, "checkpoint_interval": 500, "val_check_interval": 0}


class Poison(NamedTuple):
    """What is not finite at which step: the loss (NaN), a gradient (infinite), or the input (NaN)."""

    kind: str
    step: int


class _Scale(Line):
    """Has running statistics, too."""

    def __init__(self, poison: Poison | None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(DATA.shape[1])
        self.poison = poison

    def training_loss(self, batch: Batch, *, step: int) -> Loss:
        assert batch.encoded is not None
        total = (self.norm(self.linear(batch.encoded)) - batch.encoded).square().mean()
        if self.poison == ("loss", step):
            total = total * math.nan
        if self.poison == ("gradient", step):  # the root's slope at zero; the loss itself stays as it is
            weight = self.linear.weight.sum()
            total = total + (weight - weight.detach()).sqrt()
        return Loss(total, {})


class _Rows(Samples):
    """``poisoned`` is the number of the batch that has a NaN in it, counted from 0."""

    def __init__(self, poisoned: int | None) -> None:
        super().__init__()
        self.poisoned, self.batches = poisoned, 0

    def __getitems__(self, items: Sequence[int]) -> Batch:
        batch = super().__getitems__(items)
        if self.batches == self.poisoned:
            batch.images_BHW[0, 0] = math.nan  # which are the encoded ones
        self.batches += 1
        return batch


class _Ended(NamedTuple):
    """How a training ended: its detector's state, its newest checkpoint, the steps skipped, and the error."""

    state: dict[str, Tensor]
    checkpoint: Checkpoint | None
    skipped: float
    error: Exception | None


def _train(folder: Path, *, policy: str, poison: Poison | None, until: int) -> _Ended:
    resume = checkpoints.newest(folder).checkpoint
    inputs = poison.step - (resume.step if resume else 0) if poison and poison.kind == "input" else None
    detector, error, record = _Scale(poison), None, Record()
    try:
        run = config(**CONFIG, on_nonfinite=policy)
        train(detector, run, folder, until=until, samples=_Rows(inputs), record=record)
    except Exception as ended:  # which one is what the drill looks at
        error = ended
    state, skipped = checkpoints.trained_state(detector), [0.0, *record.series("train/nonfinite")]
    return _Ended(state, checkpoints.newest(folder).checkpoint, skipped[-1], error)


def _changed(state: dict[str, Tensor], before: dict[str, Tensor]) -> str | None:
    changed = [name for name in before if not torch.equal(state[name], before[name])]
    return f"the poisoned step changed {', '.join(changed)}" if changed else None


def _stopped(ended: _Ended, healthy: dict[str, Tensor], poison: Poison) -> str | None:
    if not isinstance(ended.error, NonFiniteError):
        return f"ended with {ended.error!r}"
    figures = r"loss \S+, gradient norm (nan|inf), lr \S*[1-9]\S*;"
    if not re.search(rf"^step {poison.step}: {figures}.*files of {poison.step};", str(ended.error)):
        return f"does not name step, loss, lr and files: {ended.error}"
    if ended.checkpoint is not None and ended.checkpoint.step > poison.step:
        return f"a checkpoint of step {ended.checkpoint.step} was written"
    # Running statistics are not put back: they are gone with the process, and no checkpoint has them.
    return _changed(ended.state, {name: healthy[name] for name, _ in _Scale(None).named_parameters()})


def _skipped(ended: _Ended, healthy: dict[str, Tensor], poison: Poison) -> str | None:
    kept = ended.checkpoint
    if not isinstance(ended.error, Interrupted) or kept is None:
        return f"skipping ended with {ended.error!r}"
    if (kept.step, kept.nonfinite, ended.skipped) != (poison.step + 1, 1, 1):
        return f"step {kept.step}, {kept.nonfinite} steps skipped, {ended.skipped:g} reported"
    moments = [value for state in kept.optimizer["state"].values() for value in state.values()]
    if not all(bool(torch.isfinite(torch.as_tensor(value)).all()) for value in moments):
        return "the optimizer remembers what is not finite"
    return _changed(ended.state, healthy)


def poisoned_steps(folder: Path, _full: bool) -> Tally:
    """Make loss, gradient or input not finite at early and late steps; both sizes are the same."""
    tally = Tally()
    for step in STEPS:
        lead, whole = folder / f"lead{step}", folder / f"healthy{step}"
        lead.mkdir()
        if step > LEAD:
            _train(lead, policy="stop", poison=None, until=step - LEAD)
        shutil.copytree(lead, whole)
        healthy = _train(whole, policy="stop", poison=None, until=step).state
        for poison in (Poison(kind, step) for kind in KINDS):
            ended = {}
            for policy in ("stop", "skip"):
                own = folder / f"{poison.kind}{step}" / policy
                shutil.copytree(lead, own)
                ended[policy] = _train(own, policy=policy, poison=poison, until=step + 1)
            fault = _stopped(ended["stop"], healthy, poison) or _skipped(ended["skip"], healthy, poison)
            tally.add(f"{poison.kind} at step {step}", fault)
    return tally


DRILLS = (
    Drill(2, "a torn checkpoint is named, the one before used", torn_checkpoints),
    Drill(3, "a full disk keeps the old checkpoint", full_disks),
    Drill(5, "NaN and infinities never reach the weights", poisoned_steps),
)
