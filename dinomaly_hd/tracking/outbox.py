"""What MLflow is to hold besides metrics: written down before it is sent, ticked off once it arrived."""

import json
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dinomaly_hd.runs.journal import JsonLines
from dinomaly_hd.runs.store import now_ms

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

OUTBOX_NAME = "tracking.jsonl"


class RunRecord(NamedTuple):
    """How a run is to be made; ``key`` is the tag that finds it again if the answer to "create" got lost."""

    key: str
    experiment: str
    run_name: str
    tags: dict[str, str]
    parent_run_id: str | None
    time_ms: int


class Operation(NamedTuple):
    """One thing to send; ``function`` is set for a call, which only the process that made it can send."""

    number: int
    kind: str
    values: dict[str, Any]
    function: Callable[["MlflowClient", str], object] | None = None


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

    def __init__(self, path: Path) -> None:
        self._file = JsonLines(path)
        self._lock = threading.Lock()
        self._operations: dict[str, Operation] = {}
        self._arrived: set[tuple[int, str]] = set()
        self._next = 0
        self.run: RunRecord | None = None
        self.ending: Ending | None = None
        self.attached: str | None = None
        for record in self._file.read()[0]:
            self._take(record)

    def open_run(
        self, *, experiment: str, run_name: str, tags: Mapping[str, str], parent_run_id: str | None
    ) -> RunRecord:
        """Note how the run is to be made; a folder opened again keeps its key and its first start time."""
        before = self.run
        run = RunRecord(
            key=before.key if before else uuid.uuid4().hex,
            experiment=experiment,
            run_name=run_name,
            tags=dict(tags),
            parent_run_id=parent_run_id,
            time_ms=before.time_ms if before else now_ms(),
        )
        self._write({"run": run._asdict()})
        return run

    def add(self, kind: str, values: dict[str, Any]) -> None:
        """Note something to send."""
        with self._lock:
            self._write({"number": self._next, "kind": kind, "values": values})

    def add_call(self, function: Callable[["MlflowClient", str], object]) -> None:
        """Queue a function behind what was added so far; it is not written down."""
        with self._lock:
            self._operations[f"call {self._next}"] = Operation(self._next, "call", {}, function)
            self._next += 1

    def pending(self, run_id: str) -> list[Operation]:
        """Return what ``run_id`` lacks, oldest first."""
        with self._lock:
            missing = [
                item for item in self._operations.values() if (item.number, run_id) not in self._arrived
            ]
        return sorted(missing, key=lambda item: item.number)

    def arrived(self, operation: Operation, run_id: str) -> None:
        """Tick an operation off."""
        with self._lock:
            if operation.function is None:
                self._write({"arrived": operation.number, "run_id": run_id})
            self._arrived.add((operation.number, run_id))

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
        self._file.append(record)
        self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        match record:
            case {"run": fields}:
                self.run, self.ending = RunRecord(**fields), None
            case {"number": number, "kind": kind, "values": values}:
                identity = json.dumps([kind, values], sort_keys=True)
                self._operations[identity] = Operation(number, kind, values)
                self._next = number + 1
            case {"arrived": number, "run_id": run_id}:
                self._arrived.add((number, run_id))
            case {"attached": run_id}:
                self.attached = run_id
            case {"ended": status, "time": time_ms}:
                self.ending = Ending(status, time_ms)
