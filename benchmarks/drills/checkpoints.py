"""Drills 2 and 3: torn checkpoints and full disks; 5 is in ``nonfinite.py``."""

import contextlib
import os
import random
import resource
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from pathlib import Path
from unittest import mock

import torch

from benchmarks.drills.nonfinite import poisoned_steps
from benchmarks.drills.runs import launcher
from benchmarks.drills.tally import Drill, Tally
from dinomaly_hd.errors import OutputError
from dinomaly_hd.files import TEMPORARY_PREFIX
from dinomaly_hd.training import checkpoint as checkpoints
from dinomaly_hd.training.checkpoint import Checkpoint

OLDER, NEWER = 5, 10
CUTS, FAST_CUTS = 100, 20
KIB = 1024
SIZES, FAST_SIZES = 20, 4
SMALLEST_KIB, LARGEST_KIB = 200, 4000
FIRST_KIB, GROWTH_KIB = 256, 48
"""Weights of the first checkpoint on a small disk, and by how much each later one has more."""
MOST_SAVES = 200


def _save(folder: Path, step: int, *, kib: int) -> Path:
    """Save a checkpoint of so many KiB of weights, which its step names."""
    weights = {"weight": torch.full((kib * KIB // 4,), float(step))}
    return checkpoints.save(folder, Checkpoint(step, "{}", "data", "encoder", 0, weights, {}, {}))


def _leftovers(folder: Path) -> list[Path]:
    return list(folder.glob(f"{TEMPORARY_PREFIX}*"))


def _holds(checkpoint: Checkpoint | None, step: int) -> bool:
    return (
        checkpoint is not None
        and checkpoint.step == step
        and bool((checkpoint.weights["weight"] == float(step)).all())
    )


def torn_checkpoints(folder: Path, full: bool) -> Tally:
    """Cut the newest checkpoint off anywhere: the one before is used, and the torn one named."""
    tally, draws = Tally(), random.Random(2)
    _save(folder, OLDER, kib=64)
    newer = _save(folder, NEWER, kib=64)
    whole = newer.read_bytes()
    ends = [0, 1, len(whole) // 2, len(whole) - 1]
    others = draws.sample([size for size in range(2, len(whole) - 1) if size not in ends], CUTS)
    for size in [*ends, *others][: CUTS if full else FAST_CUTS]:
        newer.write_bytes(whole[:size])
        leftover = folder / f"{TEMPORARY_PREFIX}{size}"
        leftover.write_bytes(whole[:size])  # what a writer leaves that is killed
        tally.add(f"cut at {size} of {len(whole)} bytes", _use_older(folder, newer))
    tally.add("written out before it is renamed", _order_of_writing(folder))
    return tally


def _use_older(folder: Path, torn: Path) -> str | None:
    try:
        found = checkpoints.newest(folder)
    except Exception as error:  # any other exception is what the drill looks for
        return repr(error)
    if not _holds(found.checkpoint, OLDER):
        return "the older checkpoint is not used"
    if len(found.unreadable) != 1 or str(torn) not in found.unreadable[0]:
        return f"the torn file is not named: {found.unreadable}"
    return "a temporary file is left" if _leftovers(folder) else None


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
        _save(folder, NEWER, kib=64)
    return None if calls == ["file", "replace", "folder"] else f"{calls}"


def full_disks(folder: Path, full: bool) -> Tally:
    """Save on real small disks until they are full: the older checkpoint stays, nothing else does."""
    tally, draws = Tally(), random.Random(3)
    sizes = sorted(draws.sample(range(SMALLEST_KIB, LARGEST_KIB, 4), SIZES if full else FAST_SIZES))
    if _may_mount(folder / "try"):
        tally.note = "tmpfs mounts"
        faults = [_on_small_disk(folder / f"disk{kib}", kib) for kib in sizes]
    else:
        tally.note = "limits on the size of files, since mounting is not permitted here"
        with ProcessPoolExecutor(1, mp_context=launcher()) as pool:
            faults = list(pool.map(_with_small_files, [folder / f"disk{kib}" for kib in sizes], sizes))
    for kib, fault in zip(sizes, faults, strict=True):
        tally.add(f"{kib} KiB", fault)
    return tally


def _may_mount(folder: Path) -> bool:
    try:
        with _mounted(folder, SMALLEST_KIB):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextlib.contextmanager
def _mounted(folder: Path, kib: int) -> Iterator[None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _on_small_disk(folder: Path, kib: int) -> str | None:
    with _mounted(folder, kib):
        return _fill(folder)


def _with_small_files(folder: Path, kib: int) -> str | None:
    """Fill a folder where no file may be larger, in a process whose limits nobody else has."""
    folder.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib * KIB, limits[1]))
    try:
        return _fill(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _fill(folder: Path) -> str | None:
    """Save ever larger checkpoints until one does not fit, and return what was wrong about that."""
    with tempfile.TemporaryDirectory() as elsewhere, mock.patch.object(tempfile, "tempdir", elsewhere):
        untouched = os.stat(elsewhere).st_mtime_ns
        with mock.patch.dict("os.environ", {"TMPDIR": elsewhere}):
            refused, step = _save_until_refused(folder)
        if os.stat(elsewhere).st_mtime_ns != untouched:
            return "TMPDIR was used"
    if not isinstance(refused, OutputError) or str(folder) not in str(refused):
        return repr(refused)
    if _leftovers(folder):
        return "a temporary file is left"
    found = checkpoints.newest(folder)
    kept = step - 1
    if found.unreadable or not (_holds(found.checkpoint, kept) if kept else found.checkpoint is None):
        return f"step {kept} is not the newest readable checkpoint: {found.unreadable}"
    return None


def _save_until_refused(folder: Path) -> tuple[Exception | None, int]:
    for step in count(1):
        try:
            _save(folder, step, kib=FIRST_KIB + step * GROWTH_KIB)
        except Exception as error:  # any other exception is what the drill looks for
            return error, step
        if step == MOST_SAVES:
            break
    return None, MOST_SAVES


DRILLS = (
    Drill(2, "a torn checkpoint is named, the one before used", torn_checkpoints),
    Drill(3, "a full disk keeps the old checkpoint", full_disks),
    Drill(5, "NaN and infinities never reach the weights", poisoned_steps),
)
