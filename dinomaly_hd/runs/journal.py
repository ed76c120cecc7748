"""What a run notes in its folder: every metric, and what MLflow is to hold besides; it outlives a kill."""

import json
import math
import os
import threading
import time
import uuid
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from dinomaly_hd.errors import CheckpointError, OutputError
from dinomaly_hd.files import publish

JOURNAL, OUTBOX = "journal.jsonl", "tracking.jsonl"
KEY_TAG, FOLDER_TAG = "mlflow.dinomaly_hd.run_key", "mlflow.dinomaly_hd.folder"
"""What begins with "mlflow.", its pages do not show among a run's tags."""


class JsonLines:
    """A file of JSON objects, one a line, each handed to the system in a single write.

    A line is there after the process dies; after `sync` also when the machine does. A torn last line
    (power loss, full disk) is never read and is cut off before the next append; any other damaged line is a
    CheckpointError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._lock = threading.RLock()

    def append(self, record: Mapping[str, Any]) -> None:
        line = _line(record)
        with self._lock:
            try:
                descriptor = self._open()
                written = os.write(descriptor, line)
                if written != len(line):  # a disk that fills up takes part of a line
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                    raise OSError(f"only {written} of {len(line)} bytes written, disk full?")
            except OSError as error:
                raise OutputError(f"cannot write {self.path}: {error}") from error

    def records(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Return the whole objects from byte ``offset`` on, and the offset behind the last of them."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(offset)
                data = stream.read()
        except FileNotFoundError:
            return [], offset
        whole = data[: data.rfind(b"\n") + 1]
        records = [self._parse(line, offset) for line in whole.split(b"\n")[:-1]]
        return records, offset + len(whole)

    def keep(self, records: list[dict[str, Any]]) -> None:
        """Replace the contents in one step: a reader finds the old file or the whole new one."""
        self.close()
        publish(self.path, lambda stream: stream.write(b"".join(map(_line, records))))

    def sync(self) -> None:
        """Force everything appended so far onto the disk."""
        with self._lock:
            if self._descriptor is not None:
                os.fsync(self._descriptor)

    def close(self) -> None:
        """Release the file; the next `append` opens it again."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            _, whole = self.records()
            if whole < os.fstat(self._descriptor).st_size:
                os.ftruncate(self._descriptor, whole)
        return self._descriptor

    def _parse(self, line: bytes, offset: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise CheckpointError(
                f"{self.path}: damaged line {line[:60]!r} (behind byte {offset}); remove that line"
            )
        return record


class Entry(NamedTuple):
    """One line of the journal: metric values at an optimizer step, time in UTC milliseconds."""

    step: int
    time_ms: int
    metrics: dict[str, float]


class Journal(JsonLines):
    """Metric history of one run (spec/reliability.md rows 1 and 11): the truth that MLflow copies.

    Values survive the way to disk and back bit by bit; NaN and infinities are written as the strings
    ``NaN``, ``Infinity``, ``-Infinity``, so that every line is valid JSON. For an exact resume, log a step's
    metrics and call `sync` before its checkpoint is published, and `truncate_after` the checkpoint's step.
    """

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        metrics = {key: _to_json(float(value)) for key, value in values.items()}
        self.append({"step": int(step), "time": now_ms(), "metrics": metrics})

    def tail(self, offset: int = 0) -> tuple[list[Entry], int]:
        """Return the entries from byte ``offset`` on, and the offset at which to go on reading."""
        records, end = self.records(offset)
        return [
            Entry(one["step"], one["time"], {key: float(value) for key, value in one["metrics"].items()})
            for one in records
        ], end

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """Return (step, value) pairs per metric in the order of writing: all but the times."""
        history: dict[str, list[tuple[int, float]]] = {}
        for entry in self.tail()[0]:
            for key, value in entry.metrics.items():
                history.setdefault(key, []).append((entry.step, value))
        return history

    def truncate_after(self, step: int) -> None:
        """Forget all from the first entry with a larger step on, since a resumed run writes that again.

        So are the final figures, whose step is smaller than that of the entries before them.
        """
        records, _ = self.records()
        steps = [-1, *(record["step"] for record in records)]
        ends = (i for i, (before, own) in enumerate(pairwise(steps)) if own > step or own < before)
        if records:
            self.keep(records[: next(ends, None)])

    def keep_first_of(self, step: int) -> None:
        """Forget what was logged at a step after its first entry: the validation that is made again."""
        records, _ = self.records()
        steps = [record["step"] for record in records]
        if step in steps:
            self.keep(records[: steps.index(step) + 1])


class RunRecord(NamedTuple):
    """How a run is to be made; ``key`` is the tag that finds it again if the answer to "create" got lost."""

    key: str
    experiment: str
    run_name: str
    tags: dict[str, str]
    parent_run_id: str | None
    time_ms: int


class Operation(NamedTuple):
    """One thing to send: its number, what ``Mirror`` does with it, and the values for that."""

    number: int
    kind: str
    values: dict[str, Any]


class Outbox(JsonLines):
    """The file ``tracking.jsonl`` of a run folder; safe to fill from one thread and empty from another.

    What one MLflow run has, another may lack, so arrivals are noted per run. Of equal operations only the
    last counts: a resumed training repeats them. ``ending`` is the run's last status and its time.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / OUTBOX)
        self._operations: dict[str, Operation] = {}
        self._arrived: set[tuple[int, str]] = set()
        self._next = 0
        self.run: RunRecord | None = None
        self.ending: tuple[str, int] | None = None
        self.attached: str | None = None
        self.tags: dict[str, str] = {}
        for record in self.records()[0]:
            self._take(record)

    def open_run(
        self, *, experiment: str, run_name: str, tags: dict[str, str], parent_run_id: str | None
    ) -> None:
        """Note how the run is to be made; a folder opened again keeps its key and its first start time."""
        before = self.run
        key, began_ms = (before.key, before.time_ms) if before else (uuid.uuid4().hex, now_ms())
        run = RunRecord(key, experiment, run_name, tags, parent_run_id, began_ms)
        self.note(run=run._asdict())

    def add(self, kind: str, **values: Any) -> None:
        """Note something to send."""
        self.note(number=self._next, kind=kind, values=values)

    def pending(self, run_id: str) -> list[Operation]:
        """Return what ``run_id`` lacks, oldest first."""
        with self._lock:
            missing = [one for one in self._operations.values() if (one.number, run_id) not in self._arrived]
        return sorted(missing)

    def note(self, **record: Any) -> None:
        """Write one of the lines that `_take` knows; those who send note what arrived, and in which run."""
        with self._lock:
            self.append(record)
            self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        match record:
            case {"run": fields}:
                self.run, self.ending = RunRecord(**fields), None
                self.tags |= self.run.tags
            case {"number": number, "kind": kind, "values": values}:
                identity = json.dumps([kind, values], sort_keys=True)
                self._operations[identity] = Operation(number, kind, values)
                self._next = number + 1
                self.tags |= values["tags"] if kind == "tags" else {}
            case {"arrived": number, "run_id": run_id}:
                self._arrived.add((number, run_id))
            case {"attached": run_id}:
                self.attached = run_id
            case {"ended": status, "time": time_ms}:
                self.ending = status, time_ms


def now_ms() -> int:
    """Return the time in UTC milliseconds."""
    return time.time_ns() // 1_000_000


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _to_json(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
