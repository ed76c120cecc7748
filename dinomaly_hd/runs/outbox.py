"""What MLflow is to hold besides metrics: written down before it is sent, ticked off once it arrived."""

import json
import threading
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from dinomaly_hd.runs.journal import JsonLines, now_ms

OUTBOX = "tracking.jsonl"


class RunRecord(NamedTuple):
    """How a run is to be made; ``key`` is the tag that finds it again if the answer to "create" got lost."""

    key: str
    experiment: str
    run_name: str
    tags: dict[str, str]
    parent_run_id: str | None
    time_ms: int


class Operation(NamedTuple):
    """One thing to send: its number, what ``runs.mirror`` does with it, and the values for that."""

    number: int
    kind: str
    values: dict[str, Any]


class Ending(NamedTuple):
    """How and when the run ended: FINISHED, FAILED or KILLED, in UTC milliseconds."""

    status: str
    time_ms: int


class Outbox:
    """The file ``tracking.jsonl`` of a run folder; safe to fill from one thread and empty from another.

    What one MLflow run has, another may lack, so arrivals are noted per run. Of equal operations only the
    last counts: a resumed training repeats them.

    Raises:
        OutputError: The file cannot be written.
        CheckpointError: A line other than the last is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._file = JsonLines(folder / OUTBOX)
        self._lock = threading.Lock()
        self._operations: dict[str, Operation] = {}
        self._arrived: set[tuple[int, str]] = set()
        self._next = 0
        self.run: RunRecord | None = None
        self.ending: Ending | None = None
        self.attached: str | None = None
        self.tags: dict[str, str] = {}
        for record in self._file.records()[0]:
            self._take(record)

    def open_run(
        self, *, experiment: str, run_name: str, tags: dict[str, str], parent_run_id: str | None
    ) -> None:
        """Note how the run is to be made; a folder opened again keeps its key and its first start time."""
        before = self.run
        key, began_ms = (before.key, before.time_ms) if before else (uuid.uuid4().hex, now_ms())
        run = RunRecord(key, experiment, run_name, dict(tags), parent_run_id, began_ms)
        self._write({"run": run._asdict()})

    def add(self, kind: str, **values: Any) -> None:
        """Note something to send."""
        self._write({"number": self._next, "kind": kind, "values": values})

    def pending(self, run_id: str) -> list[Operation]:
        """Return what ``run_id`` lacks, oldest first."""
        with self._lock:
            missing = [one for one in self._operations.values() if (one.number, run_id) not in self._arrived]
        return sorted(missing)

    def arrived(self, operation: Operation, run_id: str) -> None:
        """Tick an operation off."""
        self._write({"arrived": operation.number, "run_id": run_id})

    def attach(self, run_id: str) -> None:
        """Note the MLflow run that this folder is copied to."""
        self._write({"attached": run_id})

    def end(self, status: str) -> None:
        """Note how the run ended."""
        self._write({"ended": status, "time": now_ms()})

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        with self._lock:
            self._file.append(record)
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
                self.ending = Ending(status, time_ms)
