"""The one writer for published files and the one lock: a reader never sees half a file; JSON and CSV read."""

import csv
import hashlib
import io
import json
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from dinomaly_hd.errors import OutputError

TEMPORARY_PREFIX = ".writing-"
LOCK_POLL_S = 0.2


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object, empty where there is no such file or it holds something else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def file_digest(path: Path) -> str:
    """Return 16 hex digits of a file's SHA-256."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def check_output(output: Path | None) -> None:
    """Refuse a folder that holds something: results of an earlier start would mix with this one's."""
    if output is not None and os.path.exists(output) and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"output={output}: already there; give a new or an empty folder")


def publish(path: Path, write: Callable[[BinaryIO], object], *, durable: bool = True) -> None:
    """Write a file through ``write(stream)`` so that it is either the old one or the whole new one.

    What can be made again need not be flushed (``durable=False``): a power failure may tear such a file.
    Raises OutputError where the folder is read-only, the disk is full, or the path is not a folder's.
    """
    # In the same folder, never in TMPDIR: a rename is atomic within one file system only.
    temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as stream:
                write(stream)
                if durable:
                    stream.flush()
                    os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        raise OutputError(f"cannot write {path}: {error}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_text(path: Path, text: str) -> None:
    """Publish a UTF-8 text file."""
    publish(path, lambda stream: stream.write(text.encode()))


def publish_json(path: Path, value: Any) -> None:
    """Publish a JSON file, keys in the order given; NaN becomes null, since JSON has none."""
    publish_text(path, json.dumps(_nan_to_null(value), indent=2, ensure_ascii=False) + "\n")


def _nan_to_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nan_to_null(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def make_dated_folder(parent: Path, *, suffix: str = "") -> Path:
    """Make ``{parent}/{YYYYMMDD_HHMMSS}{suffix}`` (UTC, numbered if need be), or raise OutputError."""
    path = first = parent / f"{datetime.now(UTC):%Y%m%d_%H%M%S}{suffix}"
    number = 1
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
            path = first.with_name(f"{first.name}_{number}")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error}; choose another folder") from error


def sweep(folder: Path) -> None:
    """Remove temporary files that a killed writer left in the folder."""
    for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
        leftover.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, *, timeout_s: float) -> Iterator[None]:
    """Hold an exclusive lock file, or raise OutputError; the system frees it when the process dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, timeout=timeout_s)
        lock.acquire()
    except filelock.Timeout as error:
        raise OutputError(f"{path}: another process holds this lock for more than {timeout_s:g} s") from error
    except OSError as error:
        raise OutputError(f"cannot lock {path}: {error}") from error
    try:
        yield
    finally:
        lock.release()


def acquire(lock: filelock.BaseFileLock, *, wait_s: float, tick: Callable[[], None]) -> bool:
    """Take a lock made with ``timeout=0`` and return whether another process had it.

    ``tick`` is called while waiting and may raise. Raises filelock.Timeout where another process keeps it
    longer than ``wait_s``, OSError where the folder is read-only.
    """
    deadline = time.monotonic() + wait_s
    waited = False
    while True:
        try:
            lock.acquire()
            return waited
        except filelock.Timeout:
            if time.monotonic() >= deadline:
                raise
        waited = True
        tick()
        time.sleep(LOCK_POLL_S)


def csv_rows(
    text: str, columns: Sequence[str], *, more: Collection[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """Return (line, fields by column) of each row; a ValueError with the reason if the text is no such table.

    Its first line names ``columns`` in this order, then any of ``more``. A semicolon may stand for the comma.
    """
    first = text.partition("\n")[0]
    separator = ";" if ";" in first and "," not in first else ","  # of some countries' spreadsheets
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error
    head = lines[0][1] if lines else []
    rest = head[len(columns) :]
    if head[: len(columns)] != list(columns) or len(set(rest)) < len(rest) or not set(rest) <= set(more):
        beside = f", then any of {', '.join(more)}" if more else ""
        raise ValueError(f"the first line must be {','.join(columns)!r}{beside}")
    for line, row in lines[1:]:
        if len(row) != len(head):
            raise ValueError(f"line {line} holds {len(row)} fields, expected {len(head)}")
    return [(line, dict(zip(head, row, strict=True))) for line, row in lines[1:]]
