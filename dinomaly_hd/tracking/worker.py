"""The thread that copies a run folder to MLflow, and what it does when MLflow does not answer."""

import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dinomaly_hd.errors import TrackingError, reason_of
from dinomaly_hd.runs.journal import Journal
from dinomaly_hd.tracking.attach import Attachment, attach
from dinomaly_hd.tracking.delivery import Delivery
from dinomaly_hd.tracking.outbox import Outbox
from dinomaly_hd.runs.store import heartbeat, is_outage, server_answers

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

logger = logging.getLogger(__name__)

FLUSH_S = 2.0
HEARTBEAT_S = 30.0
LONGEST_PAUSE_S = 30.0
GRACE_S = 1.0


class Worker:
    """Owns every call to MLflow of one run; failures are counted, told once, and tried again for ever."""

    def __init__(
        self,
        journal: Journal,
        outbox: Outbox,
        *,
        uri: str,
        root: Path,
        adopted: str | None,
        resumed: str | None,
        system_metrics: bool,
    ) -> None:
        self.attachment: Attachment | None = None
        self._journal = journal
        self._outbox = outbox
        self._uri = uri
        self._root = root
        self._adopted = adopted
        self._resumed = resumed
        self._system_metrics = system_metrics
        self._delivery: Delivery | None = None
        self._monitor: SystemMetricsMonitor | None = None
        self._refusal: TrackingError | None = None
        self._next_beat = 0.0
        self._failures = 0
        self._delivered = False
        self._settled = threading.Event()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def start(self, *, timeout_s: float) -> None:
        """Begin, and wait until there is a run, the store has failed, or the time is up.

        Raises:
            TrackingError: The store answers with a refusal.
        """
        self._thread.start()
        if server_answers(self._uri, timeout_s=GRACE_S):  # else the thread goes on trying beside the run
            self._settled.wait(timeout_s)
        if self._refusal is not None:
            raise self._refusal

    def close(self, *, timeout_s: float) -> bool:
        """Send the rest and end the run; a store that is dead is given up after 1 to 2 s."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(min(timeout_s, GRACE_S))
            rest = timeout_s - GRACE_S
            if self._thread.is_alive() and rest > 0 and server_answers(self._uri, timeout_s=GRACE_S):
                self._thread.join(rest)
        self._abandoned.set()
        return self._delivered

    def _work(self) -> None:
        while not self._abandoned.is_set():
            closing = self._closing.is_set()
            try:
                delivery = self._delivery or self._open()
                self._copy(delivery)
                if closing:
                    self._finish(delivery)
                    return
                self._watch_machine(delivery.run_id)
                pause = self._succeeded()
            except Exception as error:
                if self.attachment is None and not is_outage(error):
                    self._refused(error)
                    return
                pause = self._failed(error)
            self._wake.wait(pause)
            self._wake.clear()

    def _open(self) -> Delivery:
        attachment = attach(
            self._outbox,
            uri=self._uri,
            root=self._root,
            adopted=self._adopted,
            resumed=self._resumed,
            live=True,
        )
        delivery = Delivery(attachment.client, attachment.run_id, journal=self._journal, outbox=self._outbox)
        if not attachment.made:
            delivery.load_known()
        self.attachment, self._delivery = attachment, delivery
        self._next_beat = time.monotonic() + HEARTBEAT_S
        self._settled.set()
        return delivery

    def _copy(self, delivery: Delivery) -> None:
        delivery.send_metrics()
        delivery.send_operations()
        if time.monotonic() >= self._next_beat:
            delivery.client.set_tag(delivery.run_id, "heartbeat", heartbeat())
            self._next_beat = time.monotonic() + HEARTBEAT_S

    def _finish(self, delivery: Delivery) -> None:
        if self._monitor is not None:
            self._monitor.finish()  # type: ignore[no-untyped-call]
        ending = self._outbox.ending
        assert ending is not None, "close notes the ending first"
        delivery.client.set_terminated(delivery.run_id, ending.status, end_time=ending.time_ms)
        self._delivered = delivery.refused == 0

    def _watch_machine(self, run_id: str) -> None:
        """Start MLflow's monitor of this machine, and again after an outage, in which it ends itself."""
        if not self._system_metrics:
            return
        if (
            self._monitor is not None
            and self._monitor._process is not None
            and self._monitor._process.is_alive()
        ):
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
            run_id, resume_logging=True, tracking_uri=self._uri
        )
        self._monitor.start()  # type: ignore[no-untyped-call]

    def _succeeded(self) -> float:
        if self._failures > 1:
            logger.warning("MLflow at %s answers again", self._uri)
        self._failures = 0
        return FLUSH_S

    def _failed(self, error: Exception) -> float:
        """Return how long to pause; the first failure is tried again at once: an idle connection closes."""
        self._failures += 1
        if self._failures == 1:
            return 0.1
        if self._failures == 2:
            logger.warning(
                "MLflow at %s fails (%s); the run goes on, its metrics stay in %s",
                self._uri,
                reason_of(error),
                self._journal.path,
            )
        self._settled.set()
        longest = GRACE_S if self._closing.is_set() else LONGEST_PAUSE_S
        return min(2.0 ** (self._failures - 1), longest)

    def _refused(self, error: Exception) -> None:
        refusal = (
            error
            if isinstance(error, TrackingError)
            else TrackingError(f"MLflow at {self._uri}: {reason_of(error)}")
        )
        if self._settled.is_set():  # start has returned long ago
            logger.warning("%s; this run is not tracked", refusal)
        self._refusal = refusal
        self._settled.set()
