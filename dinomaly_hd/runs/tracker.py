"""One run in MLflow while it is at work: this thread writes to the run folder, a second one copies it."""

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dinomaly_hd.errors import (
    DinomalyHDError,
    Interrupted,
    OutputError,
    Pruned,
    TrackingError,
    reason_of,
    without_passwords,
)
from dinomaly_hd.runs.folder import IN_MLFLOW, Context, RunFolder
from dinomaly_hd.runs.journal import FOLDER_TAG, JOURNAL, Journal, Outbox, now_ms
from dinomaly_hd.runs.mirror import Mirror
from dinomaly_hd.runs.pages import LOCAL_UI, run_page, view_key, view_page
from dinomaly_hd.runs.store import (
    NOTE_TAG,
    default_uri,
    is_outage,
    load_mlflow,
    server_answers,
    shortened,
    why,
)

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

logger = logging.getLogger(__name__)

START_TIMEOUT_S, CLOSE_TIMEOUT_S = 60.0, 120.0
FLUSH_S = 2.0
LONGEST_PAUSE_S = 30.0
GRACE_S = 1.0

Status = Literal["FINISHED", "FAILED", "KILLED"]


@contextmanager
def tracked(
    folder: RunFolder,
    context: Context,
    *,
    name: str,
    tags: Mapping[str, str],
    resumed: str | None = None,
    system_metrics: bool = False,
) -> Iterator["Tracker"]:
    """Copy what is noted in a locked folder, be it a training's or a comparison's, to its MLflow run.

    ``tags`` come beside those that every run has; ``resumed`` is the run of an earlier start, where the
    folder may not know it.
    """
    outbox = Outbox(folder.path)
    outbox.open_run(
        experiment=context.experiment,
        run_name=context.run_name or name,
        tags={**tags, FOLDER_TAG: str(folder.path.resolve())},
        parent_run_id=context.parent_run_id,
    )
    uri, root = default_uri(context.root), context.root
    tracker = Tracker(outbox, uri=uri, root=root, resumed=resumed, system_metrics=system_metrics)
    status: Status = "FAILED"
    try:
        folder.set_state(**{IN_MLFLOW: False})
        run_id = tracker.start(timeout_s=START_TIMEOUT_S)
        if run_id is not None:
            folder.set_state(mlflow_run_id=run_id)
        yield tracker
        status = "FINISHED"
    except (Interrupted, Pruned) as stop:
        status = "KILLED"
        if isinstance(stop, Pruned):
            tracker.tags({"pruned": "true"})
        raise
    except BaseException as error:
        told = str(error) if isinstance(error, DinomalyHDError) else repr(error)
        tracker.tags({"error": without_passwords(told)})
        raise
    finally:
        _close(folder, tracker, status, context)


def _close(folder: RunFolder, tracker: "Tracker", status: Status, context: Context) -> None:
    """End the run in its folder and in MLflow, and say where to look.

    A folder that cannot be written any more, on a full disk, keeps MLflow from nothing.
    """

    def note(**values: Any) -> None:
        try:
            folder.set_state(**values)
        except OutputError as error:
            context.say(f"warning: {error}")

    note(status=status)
    delivered = tracker.close(status, timeout_s=CLOSE_TIMEOUT_S)
    # Its id again: a server may have been too slow at the start.
    run = {} if tracker.run_id is None else {"mlflow_run_id": tracker.run_id}
    note(**run, **{IN_MLFLOW: delivered})
    if (pages := tracker.pages()) and delivered and status == "FINISHED":
        context.say(f"MLflow run:   {pages[0]}")
        if context.parent_run_id is None:
            for page in pages[1:]:
                context.say(f"all its runs: {page}")
            if pages[0].startswith(LOCAL_UI):
                context.say("              (`make ui` starts these pages)")
    context.say(f"run folder:   {folder.path}")


class Tracker:
    """Keeps a run's copy in MLflow up to date while it is at work (spec/reliability.md row 11).

    Every method but `start` and `close` only writes to the run folder and returns at once: metrics to the
    journal, the rest to ``tracking.jsonl`` beside it. A daemon thread sends both. When the store does not
    answer, it warns once and goes on trying; what is not delivered by `close` is left to `mirror`.
    ``system_metrics`` are those of this machine, by MLflow's monitor.
    """

    def __init__(
        self, outbox: Outbox, *, uri: str, root: Path, resumed: str | None = None, system_metrics: bool
    ) -> None:
        self.folder, self.uri, self._root, self._outbox = outbox.path.parent.resolve(), uri, root, outbox
        self.journal = Journal(self.folder / JOURNAL)
        # None as long as the store has not answered.
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        # Taken out of the environment, so that no process that we start adopts the same run.
        self._which = {"adopted": os.environ.pop("MLFLOW_RUN_ID", None), "resumed": resumed}
        self._monitor: SystemMetricsMonitor | None = None
        self._refusal: TrackingError | None = None
        self._status: Status = "FAILED"
        self._system_metrics, self._failures, self._delivered = system_metrics, 0, False
        self._view: str | None = None
        self._settled, self._closing, self._abandoned = (threading.Event() for _ in range(3))
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def start(self, *, timeout_s: float) -> str | None:
        """Begin to copy; return the run's id, or None if the store did not answer within ``timeout_s``.

        Importing MLflow (3 to 8 s) comes on top. A refusal (bad experiment name, unknown MLFLOW_RUN_ID) is a
        TrackingError.
        """
        load_mlflow(self.uri)  # here, since two threads that import at a time can see half-made modules
        self._thread.start()
        # The first answer of a server behind TLS takes several round trips, of another continent a second.
        if server_answers(self.uri, timeout_s=2 * GRACE_S):  # else the thread goes on trying beside the run
            self._settled.wait(timeout_s)
        if self._refusal is not None:
            raise self._refusal
        return self.run_id

    def close(self, status: Status, *, timeout_s: float) -> bool:
        """End the run and return whether MLflow has all of it; waits 1 to 2 s only when the store is dead."""
        self._status = status
        try:
            self._outbox.note(ended=status, time=now_ms())
        except OutputError as error:
            logger.warning("the end of the run was not noted: %s", error)
        self._closing.set()
        if self._thread.is_alive():
            answers = server_answers(self.uri, timeout_s=GRACE_S)
            self._thread.join(timeout_s if answers else min(timeout_s, GRACE_S))
        self._abandoned.set()
        if not self._delivered:
            told = f"a sync of {self.folder} completes it"
            logger.warning("MLflow at %s lacks part of this run; %s", without_passwords(self.uri), told)
        return self._delivered

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Log metric values of an optimizer step; text before the last ``/`` of a name groups the charts."""
        self.journal.log(values, step=step)

    def params(self, values: Mapping[str, object]) -> None:
        """Log parameters that the run does not have yet."""
        self.add("params", params={key: str(value) for key, value in values.items()})

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags, cut to 8000 characters."""
        self.add("tags", tags=dict(values))

    def note(self, markdown: str) -> None:
        """Set the description that the run's page shows, cut to what MLflow keeps."""
        self.tags({NOTE_TAG: shortened(markdown)})

    def view(self, which: str, *, name: str | None, group_by: str | None = None, **shown: Any) -> None:
        """Let MLflow show runs as `pages.view` says, under a name of the experiment's or as the run's own."""
        self._view = "" if name is None else view_key(name)
        self.add("view", name=name, which=which, group_by=group_by, **shown)

    def artifact(self, path: Path, *, folder: str | None = None) -> None:
        """Log a file, or all files of a folder."""
        self.add("artifact", path, folder=folder)

    def add(self, kind: str, path: Path | None = None, **values: Any) -> None:
        """Log something of a kind that `Mirror` knows; a file must stay until the thread comes to it."""
        if path is not None:
            whole = path.resolve()
            inside = whole.is_relative_to(self.folder)
            values["path"] = str(whole.relative_to(self.folder) if inside else whole)
        try:
            self._outbox.add(kind, **values)
        except OutputError as error:
            logger.warning("not sent to MLflow: %s", error)

    def pages(self) -> list[str]:
        """Return the links to the run's page, as soon as there is a run, and to its view if it has one."""
        if self.run_id is None or self.experiment_id is None:
            return []
        base = (without_passwords(self.uri) if self.uri.startswith("http") else LOCAL_UI).rstrip("/")
        pages = [run_page(self.experiment_id, self.run_id)]
        pages += [] if self._view is None else [view_page(self.experiment_id, self._view or self.run_id)]
        return [f"{base}/{page}" for page in pages]

    # ---- the second thread, which owns every call to MLflow ----

    def _work(self) -> None:
        mirror = Mirror(
            self._outbox, self.journal, uri=self.uri, root=self._root, at_work=True, **self._which
        )
        while not self._abandoned.is_set():
            closing = self._closing.is_set()
            try:
                mirror.open()
                self.experiment_id, self.run_id = mirror.experiment_id, mirror.run_id
                self._settled.set()
                mirror.send()
                if closing:
                    if self._monitor is not None:
                        self._monitor.finish()  # type: ignore[no-untyped-call]
                    mirror.end(self._status)
                    self._delivered = mirror.refused == 0
                    return
                self._watch_machine(mirror.run_id)
                if self._failures > 1:
                    logger.warning("MLflow at %s answers again", without_passwords(self.uri))
                self._failures, pause = 0, FLUSH_S
            except Exception as error:
                if not mirror.run_id and not is_outage(error):
                    told = TrackingError(f"MLflow at {self.uri}: {reason_of(error)}")
                    self._refusal = error if isinstance(error, TrackingError) else told
                    if self._settled.is_set():  # start has returned long ago
                        logger.warning("%s; this run is not tracked", self._refusal)
                    self._settled.set()
                    return
                pause = self._failed(error)
            # `close` need not wait for the next turn.
            (self._abandoned if closing else self._closing).wait(pause)

    def _watch_machine(self, run_id: str) -> None:
        """Start MLflow's monitor of this machine, and again after an outage, in which it ends itself."""
        process = None if self._monitor is None else self._monitor._process
        if not self._system_metrics or (process is not None and process.is_alive()):
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        options = {"resume_logging": True, "tracking_uri": self.uri}
        self._monitor = SystemMetricsMonitor(run_id, **options)  # type: ignore[no-untyped-call]
        del self._monitor.monitors[1:3]  # of disks and networks: every metric is a chart
        self._monitor.start()  # type: ignore[no-untyped-call]

    def _failed(self, error: Exception) -> float:
        """Return how long to pause; the first failure is tried again at once: an idle connection closes."""
        self._failures += 1
        if self._failures == 1:
            return 0.1
        if self._failures == 2:
            kept = f"the run goes on, its metrics stay in {self.journal.path}"
            logger.warning("MLflow at %s fails (%s); %s", without_passwords(self.uri), why(error), kept)
        self._settled.set()
        longest = GRACE_S if self._closing.is_set() else LONGEST_PAUSE_S
        return min(2.0 ** (self._failures - 1), longest)
