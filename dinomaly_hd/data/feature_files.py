"""Encoder outputs in files that every run of a project reads: verified, rebuilt where damaged, bounded."""

import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import filelock
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from dinomaly_hd.errors import OutputError
from dinomaly_hd.files import TEMPORARY_PREFIX, acquire, publish

Tensors = dict[str, Tensor]
OWN_FOLDER = "dinomaly_hd_features"  # everything lies in it; nothing outside of it is counted or removed
SUFFIX, LOCKS, USED = ".features", "locks", "used"
KEY = re.compile(r"[0-9a-f]{64}")
CHECK_BYTES = 4
HEADER_BYTES = 512  # more than a file has beside its values
STRIPES = 256
LONGEST_WAIT_S = 600.0  # for another process that encodes the same images; then they are encoded here, too
IN_USE_S, TOUCH_S = 3600.0, 300.0
GIB = 1024**3
AUTO_SHARE, AUTO_MOST_GB = 0.25, 50
RECOUNT_SHARE = 1 / 64  # of the budget is written before a process looks again what others have written
# Left free of the disk, whatever the budget says. A share alone would forbid files on a large disk of which a
# part is reserved, or taken by others.
FREE_SHARE, FREE_MOST_GB = 0.1, 10


class FeaturePlace(NamedTuple):
    """Where the files lie, and how many GiB all of them may take together.

    A budget of None is a quarter of the disk's free space, at most 50 GiB, where what the files take already
    counts as free.
    """

    folder: Path
    budget_gb: float | None


class FeatureFiles:
    """What one encoder makes, a file an image, named by the image's digest.

    A file is written beside its place and renamed, so that a reader never sees half of it, and ends with the
    CRC-32 of the rest: what a crash or a bad disk has damaged counts as missing. Nothing is flushed to the
    disk, since what is lost is made again. Where the budget is spent, the files of encoders that were not
    used for an hour make room, the oldest first. No fault of the disk ends a run: what cannot be read is
    missing, what cannot be written is not kept.

    ``key`` is 64 hex digits of the encoder; any other setting, weight, statistic or code has another key.
    """

    def __init__(self, place: FeaturePlace, key: str) -> None:
        assert KEY.fullmatch(key), "a SHA-256"
        self._place, self._all = place, place.folder / OWN_FOLDER
        self._own = self._all / key
        self._full, self._locking = False, True
        self._taken, self._budget, self._until_recount, self._touched = 0, 0, 0.0, -TOUCH_S
        try:
            self._touch()
        except OSError:
            self._full = True

    def get(self, name: str) -> Tensors | None:
        """Return what is kept under a name, None where it is missing or damaged; that file is removed."""
        path = self._path(name)
        try:
            content = path.read_bytes()
            self._touch()
        except OSError:
            return None
        body, check = content[:-CHECK_BYTES], content[-CHECK_BYTES:]
        if body and _check(body) == check:
            with suppress(SafetensorError):
                return safetensors.torch.load(body)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None

    def holds(self, name: str) -> bool:
        """Return whether there is a file, which may turn out to be damaged."""
        return os.path.isfile(self._path(name))

    def has_room(self, example: Tensor, *, count: int) -> bool:
        """Return whether ``count`` more outputs like ``example`` (1, ...) fit into budget and disk."""
        return self._room_for((example.nbytes + HEADER_BYTES) * count)

    def put(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a name, unless that would break the budget or fill the disk."""
        if self._full or self.holds(name):
            return
        body = safetensors.torch.save(
            {part: tensor.detach().cpu().contiguous() for part, tensor in tensors.items()}
        )
        size = len(body) + CHECK_BYTES
        self._full = not self._room_for(size)
        if self._full:
            return
        try:
            self._touch()
            publish(self._path(name), lambda stream: stream.write(body + _check(body)), durable=False)
        except (OutputError, OSError):
            self._full = True
        else:
            self._taken += size
            self._until_recount -= size

    @contextmanager
    def writing(self, names: Sequence[str], *, tick: Callable[[], None]) -> Iterator[None]:
        """Let one process at a time encode these images; the others wait, and then find them here.

        Where locks cannot be had, each encodes for itself.
        """
        stripe = zlib.crc32(names[0].encode()) % STRIPES
        lock = filelock.FileLock(self._own / LOCKS / f"{stripe}.lock", timeout=0)
        if self._locking:
            try:
                (self._own / LOCKS).mkdir(parents=True, exist_ok=True)
                acquire(lock, wait_s=LONGEST_WAIT_S, tick=tick)
            except (OSError, NotImplementedError):  # filelock.Timeout is an OSError
                self._locking = False
        try:
            yield
        finally:
            with suppress(OSError):
                lock.release()

    def _path(self, name: str) -> Path:
        return self._own / name[:2] / f"{name}{SUFFIX}"

    def _touch(self) -> None:
        """Say now and then that these files are in use."""
        now = time.monotonic()
        if now - self._touched >= TOUCH_S:
            self._own.mkdir(parents=True, exist_ok=True)
            (self._own / USED).touch()
            self._touched = now

    def _room_for(self, size: int) -> bool:
        """Return whether ``size`` bytes may be written, once files that nobody uses have made room."""
        if self._full:
            return False
        try:
            if self._until_recount <= 0:  # other processes write, too
                self._count()
            if size > self._budget:
                return False
            if (missing := self._missing(size)) > 0:
                self._drop_unused(missing)
                self._count()
            return self._missing(size) <= 0
        except OSError:
            return False

    def _count(self) -> None:
        """Look what all encoders' files take; only who writes needs to know."""
        self._taken = sum(map(_bytes_in, self._encoders()))
        if self._place.budget_gb is not None:
            self._budget = int(self._place.budget_gb * GIB)
        else:
            free = shutil.disk_usage(self._place.folder).free + self._taken
            self._budget = min(int(AUTO_SHARE * free), AUTO_MOST_GB * GIB)
        self._until_recount = RECOUNT_SHARE * self._budget

    def _missing(self, size: int) -> float:
        """Return how many bytes too many ``size`` more would be, for the budget or the disk."""
        disk = shutil.disk_usage(self._all)
        left_free = min(FREE_SHARE * disk.total, FREE_MOST_GB * GIB)
        return max(self._taken + size - self._budget, left_free - (disk.free - size))

    def _drop_unused(self, needed: float) -> None:
        """Remove files of encoders not used within the hour, oldest first, until ``needed`` bytes went."""
        for unused_s, path in sorted(((_unused_s(path), path) for path in self._encoders()), reverse=True):
            if needed <= 0 or unused_s <= IN_USE_S:
                return
            if path != self._own and _unused_s(path) > IN_USE_S:  # another process may have begun to use it
                needed -= _bytes_in(path)
                shutil.rmtree(path, ignore_errors=True)

    def _encoders(self) -> list[Path]:
        """Return the folders of all encoders, which have ``USED`` in them."""
        return [path for path in self._all.iterdir() if KEY.fullmatch(path.name) and (path / USED).is_file()]


def _check(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(CHECK_BYTES, "big")


def _unused_s(encoder: Path) -> float:
    try:
        return time.time() - (encoder / USED).stat().st_mtime
    except OSError:
        return 0.0


def _bytes_in(encoder: Path) -> int:
    """Return what an encoder's files take; removes what killed writers left there."""
    total = 0
    for parent, _, names in os.walk(encoder):
        for name in names:
            with suppress(OSError):  # another process makes room
                path = Path(parent, name)
                status = path.stat(follow_symlinks=False)
                if name.startswith(TEMPORARY_PREFIX) and time.time() - status.st_mtime > IN_USE_S:
                    path.unlink()
                else:
                    total += status.st_size
    return total
