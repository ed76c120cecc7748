"""One run in MLflow while it is at work: this thread writes to the run folder, a second one copies it."""

import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dinomaly_hd.errors import OutputError, TrackingError, reason_of
from dinomaly_hd.runs.attach import Attachment, attach
from dinomaly_hd.runs.journal import JOURNAL, Journal
from dinomaly_hd.runs.mirror import Mirror
from dinomaly_hd.runs.outbox import Outbox
from dinomaly_hd.runs.pages import TRAINING_RUNS, charts_page, run_page, shortened
from dinomaly_hd.runs.store import is_outage, load_mlflow, process_tag, send_tags, server_answers

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

logger = logging.getLogger(__name__)

LOCAL_UI = "http://127.0.0.1:5000"
FLUSH_S = 2.0
HEARTBEAT_S = 30.0
LONGEST_PAUSE_S = 30.0
GRACE_S = 1.0

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker:
    """Copies one run folder to MLflow (spec/tracking.md; spec/reliability.md row 11).

    Every method but `start` and `close` only writes to the run folder and returns at once: metrics to the
    journal, the rest to ``tracking.jsonl`` beside it. A daemon thread sends both. When the store does not
    answer, it warns once and goes on trying; what is not delivered by `close` is left to `mirror`.

    Args:
        folder: The run folder.
        uri: Tracking address, e.g. of `default_uri`.
        experiment: Made if it is not there; a run that `mlflow run` made and a child of another run have
            theirs.
        root: The project's folder, where a database's artifacts go.
        resume_run_id: A run to go on with; a run folder that was tracked before finds its run by itself.
        system_metrics: Record CPU, memory, network and GPU of this machine (MLflow's monitor).
    """

    def __init__(
        self,
        folder: Path,
        *,
        uri: str,
        experiment: str,
        run_name: str,
        tags: Mapping[str, str],
        root: Path,
        parent_run_id: str | None = None,
        resume_run_id: str | None = None,
        system_metrics: bool = True,
    ) -> None:
        self.uri, self.folder, self.journal = uri, folder.resolve(), Journal(folder / JOURNAL)
        self.attachment: Attachment | None = None
        self._outbox, self._root = Outbox(folder), root
        self._outbox.open_run(
            experiment=experiment, run_name=run_name, tags=dict(tags), parent_run_id=parent_run_id
        )
        # Taken out of the environment, so that no process that we start adopts the same run.
        self._adopted, self._resumed = os.environ.pop("MLFLOW_RUN_ID", None), resume_run_id
        self._system_metrics = system_metrics
        self._monitor: SystemMetricsMonitor | None = None
        self._mirror: Mirror | None = None
        self._refusal: TrackingError | None = None
        self._next_beat, self._failures, self._delivered = 0.0, 0, False
        self._settled, self._wake = threading.Event(), threading.Event()
        self._closing, self._abandoned = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    @property
    def run_id(self) -> str | None:
        """The MLflow run, None as long as the store has not answered."""
        return self.attachment and self.attachment.run_id

    @property
    def experiment_id(self) -> str | None:
        """The run's MLflow experiment, None as long as the store has not answered."""
        return self.attachment and self.attachment.experiment_id

    def start(self, *, timeout_s: float) -> str | None:
        """Begin to copy; return the run's id, or None if the store did not answer within ``timeout_s``.

        Importing MLflow (3 to 8 s) comes on top. A fresh SQLite file takes another 2 to 7 s to prepare.

        Raises:
            TrackingError: The store answers with a refusal: bad experiment name, unknown MLFLOW_RUN_ID.
        """
        load_mlflow(self.uri)  # here, since two threads that import at a time can see half-made modules
        self._thread.start()
        if server_answers(self.uri, timeout_s=GRACE_S):  # else the thread goes on trying beside the run
            self._settled.wait(timeout_s)
        if self._refusal is not None:
            raise self._refusal
        return self.run_id

    def close(self, status: Status, *, timeout_s: float) -> bool:
        """End the run and return whether MLflow has all of it; waits 1 to 2 s only when the store is dead."""
        try:
            self._outbox.end(status)
        except OutputError as error:
            logger.warning("the end of the run was not noted: %s", error)
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(min(timeout_s, GRACE_S))
            rest = timeout_s - GRACE_S
            if self._thread.is_alive() and rest > 0 and server_answers(self.uri, timeout_s=GRACE_S):
                self._thread.join(rest)
        self._abandoned.set()
        if not self._delivered:
            logger.warning(
                "MLflow at %s lacks part of this run; a sync of %s completes it", self.uri, self.folder
            )
        return self._delivered

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Log metric values of an optimizer step; text before the last ``/`` of a name groups the charts."""
        self.journal.log(values, step=step)

    def params(self, values: Mapping[str, object]) -> None:
        """Log parameters that the run does not have yet."""
        self._add("params", params={key: str(value) for key, value in values.items()})

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags, cut to 8000 characters."""
        self._add("tags", tags=dict(values))

    def note(self, markdown: str) -> None:
        """Set the description that the run's page shows, cut to what MLflow keeps."""
        self.tags({"mlflow.note.content": shortened(markdown)})

    def text(self, text: str, *, file: str) -> None:
        """Log a text as the artifact ``file``."""
        self._add("text", text=text, file=file)

    def artifact(self, path: Path, *, folder: str | None = None) -> None:
        """Log a file; it must still be there when the thread comes to it."""
        self._add("artifact", path=self._relative(path), folder=folder)

    def artifacts(self, path: Path, *, folder: str) -> None:
        """Log all files of a folder."""
        self._add("artifacts", path=self._relative(path), folder=folder)

    def image(self, path: Path, *, key: str, step: int) -> None:
        """Log a PNG file that the run's page shows by step."""
        self._add("image", path=self._relative(path), key=key, step=step)

    def dataset(self, name: str, *, digest: str, count: int, source: str, context: str) -> None:
        """Log a data set as input; ``context`` is e.g. "training", the digest is cut to 36 characters."""
        self._add("dataset", name=name, digest=digest, count=count, source=source, context=context)

    def model(self, path: Path) -> None:
        """Log an exported model as the run's loadable MLflow model."""
        self._add("model", path=self._relative(path))

    def url(self) -> str | None:
        """Return the link to the run's page, None as long as there is no run."""
        at = self.attachment
        return at and f"{self._base()}/{run_page(at.experiment_id, at.run_id)}"

    def experiment_url(self, *, which: str = TRAINING_RUNS) -> str | None:
        """Return the link to the charts of the experiment's runs that match MLflow's filter string."""
        at = self.attachment
        return at and f"{self._base()}/{charts_page(at.experiment_id, which=which)}"

    def _base(self) -> str:
        return (self.uri if self.uri.startswith("http") else LOCAL_UI).rstrip("/")

    def _add(self, kind: str, **values: Any) -> None:
        try:
            self._outbox.add(kind, **values)
        except OutputError as error:
            logger.warning("not sent to MLflow: %s", error)

    def _relative(self, path: Path) -> str:
        whole = path.resolve()
        return str(whole.relative_to(self.folder) if whole.is_relative_to(self.folder) else whole)

    # ---- the second thread, which owns every call to MLflow ----

    def _work(self) -> None:
        while not self._abandoned.is_set():
            closing = self._closing.is_set()
            try:
                mirror = self._mirror or self._open()
                mirror.send()
                self._beat(mirror)
                if closing:
                    self._finish(mirror)
                    return
                self._watch_machine(mirror.run_id)
                if self._failures > 1:
                    logger.warning("MLflow at %s answers again", self.uri)
                self._failures, pause = 0, FLUSH_S
            except Exception as error:
                if self.attachment is None and not is_outage(error):
                    self._refused(error)
                    return
                pause = self._failed(error)
            self._wake.wait(pause)
            self._wake.clear()

    def _open(self) -> Mirror:
        at = attach(
            self._outbox,
            uri=self.uri,
            root=self._root,
            adopted=self._adopted,
            resumed=self._resumed,
            live=True,
        )
        self._mirror = Mirror(at, folder=self.folder, journal=self.journal, outbox=self._outbox)
        self.attachment = at
        self._next_beat = time.monotonic() + HEARTBEAT_S
        self._settled.set()
        return self._mirror

    def _beat(self, mirror: Mirror) -> None:
        if time.monotonic() >= self._next_beat:
            send_tags(mirror.client, mirror.run_id, process_tag())
            self._next_beat = time.monotonic() + HEARTBEAT_S

    def _finish(self, mirror: Mirror) -> None:
        if self._monitor is not None:
            self._monitor.finish()  # type: ignore[no-untyped-call]
        ending = self._outbox.ending
        assert ending is not None, "close notes the ending first"
        mirror.client.set_terminated(mirror.run_id, ending.status, end_time=ending.time_ms)
        self._delivered = mirror.refused == 0

    def _watch_machine(self, run_id: str) -> None:
        """Start MLflow's monitor of this machine, and again after an outage, in which it ends itself."""
        process = None if self._monitor is None else self._monitor._process
        if not self._system_metrics or (process is not None and process.is_alive()):
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
            run_id, resume_logging=True, tracking_uri=self.uri
        )
        self._monitor.start()  # type: ignore[no-untyped-call]

    def _failed(self, error: Exception) -> float:
        """Return how long to pause; the first failure is tried again at once: an idle connection closes."""
        self._failures += 1
        if self._failures == 1:
            return 0.1
        if self._failures == 2:
            logger.warning(
                "MLflow at %s fails (%s); the run goes on, its metrics stay in %s",
                self.uri,
                reason_of(error),
                self.journal.path,
            )
        self._settled.set()
        longest = GRACE_S if self._closing.is_set() else LONGEST_PAUSE_S
        return min(2.0 ** (self._failures - 1), longest)

    def _refused(self, error: Exception) -> None:
        refusal = TrackingError(f"MLflow at {self.uri}: {reason_of(error)}")
        if isinstance(error, TrackingError):
            refusal = error
        if self._settled.is_set():  # start has returned long ago
            logger.warning("%s; this run is not tracked", refusal)
        self._refusal = refusal
        self._settled.set()
