"""Copying a run folder into one MLflow run, as often as one likes: what arrived is not sent again."""

import json
import logging
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinomaly_hd.errors import TrackingError, reason_of
from dinomaly_hd.runs import journal, pages, store
from dinomaly_hd.runs.folder import FINISHED, IN_MLFLOW, RunFolder
from dinomaly_hd.runs.processes import close_stale_runs, process_tag

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

RANDOM_NAME = re.compile(r"[^\W\d_]+-[^\W\d_]+-\d+")
"""What MLflow calls a run that was given no name: "bold-snail-123"."""
DIGEST_LENGTH = 36
THUMBNAIL_WIDTH = 540  # what a description shows beside MLflow's facts in a window of 1280
ATTEMPTS = 3
HEARTBEAT_S = 30.0
ENDINGS = (FINISHED, "FAILED", "KILLED")


def mirror(folder: Path, *, uri: str, root: Path) -> "Mirror":
    """Give MLflow what it lacks of a tracked run folder that no process works on; again, it sends nothing.

    A run whose process died before it could say how it ended was killed.
    """
    outbox, points = journal.Outbox(folder), journal.Journal(folder / journal.JOURNAL)
    copy, run = Mirror(outbox, points, uri=uri, root=root), RunFolder(folder)
    status = run.state().get("status")
    ended = status if status in ENDINGS else "KILLED"
    with store.in_one_line(f"MLflow at {uri}", hint="; nothing is lost, sync again later"):
        try:
            copy.send()
            copy.end(ended)
        finally:
            copy.outbox.close()
    run.set_state(status=ended, mlflow_run_id=copy.run_id, **{IN_MLFLOW: copy.refused == 0})
    return copy


class Mirror:
    """Sends what an MLflow run lacks of its folder's journal and outbox; calls may block, and be repeated.

    The run is the ``adopted`` one that `mlflow run` made, that of an earlier start (``resumed``, where the
    folder may not know it), or a new one, in its parent's experiment or one that is made if need be. That
    of a folder ``at_work`` is marked RUNNING and this process's. A database's artifacts go to ``root``.

    A metric point is known by its name and step: a resumed run that logs a step again adds nothing.
    ``points`` and ``operations`` count what arrived, ``refused`` what the store answered with a refusal (that
    stays in the run folder). A store that does not answer raises what MLflow raises (`store.is_outage`).
    """

    client: "MlflowClient"

    def __init__(
        self,
        outbox: journal.Outbox,
        points: journal.Journal,
        *,
        uri: str,
        root: Path,
        adopted: str | None = None,
        resumed: str | None = None,
        at_work: bool = False,
    ) -> None:
        self.folder, self.uri, self.root = outbox.path.parent.resolve(), uri, root
        self.journal, self.outbox = points, outbox
        self.run_id = self.experiment_id = ""  # until `open`
        self.points = self.operations = self.refused = 0
        self._adopted, self._resumed = adopted, resumed
        self._at_work, self._next_beat = at_work, 0.0
        self._offset, self._steps = 0, dict[str, set[int]]()
        self._images: set[str] | None = None
        self._given_up: set[int] = set()
        self._causes: set[tuple[str, str]] = set()

    def open(self) -> None:
        """Find the run or make it; an open one stays. A refusal of the store is a TrackingError."""
        if self.run_id:
            return
        record = self.outbox.run
        if record is None:
            raise TrackingError(f"{self.folder}: no {journal.OUTBOX} in it, so no run that could be synced")
        parent = {} if record.parent_run_id is None else {"mlflow.parentRunId": record.parent_run_id}
        tags = {**record.tags, **parent, journal.KEY_TAG: record.key}
        if self._adopted is not None:
            run = self._adopt(self._adopted, name=record.run_name)
        else:
            experiment_id = store.prepare_store(self.uri, experiment=record.experiment, root=self.root)
            self.client = store.client_for(self.uri)
            above = record.parent_run_id and store.run_of(self.client, record.parent_run_id)
            if above:  # `mlflow run` may have chosen its experiment
                experiment_id = above.info.experiment_id
            run = self._before(experiment_id, key=record.key) or self._made(experiment_id, record, tags)
        run_id = run.info.run_id
        if self.outbox.attached != run_id:
            self.outbox.note(attached=run_id)
        self._params = set(run.data.params)
        logged = {store.entity_name(key) for entry in self.journal.tail()[0] for key in entry.metrics}
        # Not what the journal lacks: final figures that a resumed run makes anew replace MLflow's.
        self._metrics = logged & run.data.metrics.keys()
        if self._at_work:
            self.client.update_run(run_id, status="RUNNING")
            self._beat(run_id, tags)
            self._close_stale(run.info.experiment_id)
        self.experiment_id, self.run_id = run.info.experiment_id, run_id

    def _adopt(self, run_id: str, *, name: str) -> "Run":
        store.write_ahead(self.uri)
        self.client = store.client_for(self.uri)
        run = store.run_of(self.client, run_id)
        if run is None:
            raise TrackingError(
                f"MLFLOW_RUN_ID={run_id} cannot be adopted at {self.uri}: there is no such run"
            )
        if RANDOM_NAME.fullmatch(run.info.run_name or ""):  # one that somebody gave to `mlflow run` stays
            self.client.update_run(run_id, name=name)
        return run

    def _before(self, experiment_id: str, *, key: str) -> "Run | None":
        """Return the run of an earlier start, by its id or its key.

        By its key a run is found that was made although the answer got lost: "create" would make a second.
        """
        for run_id in filter(None, (self._resumed, self.outbox.attached)):
            run = store.run_of(self.client, run_id)
            if run is None:
                logger.warning("MLflow run %s is not there any more, its history goes to a new run", run_id)
            elif run.info.lifecycle_stage == "active":
                return run
        by_key = self.client.search_runs(
            [experiment_id], f"tags.`{journal.KEY_TAG}` = '{key}'", max_results=1
        )
        return next(iter(by_key), None)

    def _made(self, experiment_id: str, record: journal.RunRecord, tags: dict[str, str]) -> "Run":
        from mlflow.tracking.context.registry import resolve_tags

        own = resolve_tags(tags)
        return self.client.create_run(experiment_id, record.time_ms, own, run_name=record.run_name)

    def _beat(self, run_id: str, tags: dict[str, str]) -> None:
        store.send_tags(self.client, run_id, {**tags, **process_tag()})
        self._next_beat = time.monotonic() + HEARTBEAT_S

    def _close_stale(self, experiment_id: str) -> None:
        try:
            close_stale_runs(self.client, experiment_id)
        except Exception as error:
            if store.is_outage(error):
                raise
            logger.warning("runs left behind could not be closed: %s", reason_of(error))

    def send(self) -> None:
        """Send the journal from where the last call stopped, then what the outbox holds, in order."""
        self.open()
        entries, offset = self.journal.tail(self._offset)
        self._send_points(entries)
        self._offset = offset
        for operation in self.outbox.pending(self.run_id):
            if operation.number not in self._given_up:
                self._attempt(operation)
        if self._at_work and time.monotonic() >= self._next_beat:
            self._beat(self.run_id, {})

    def end(self, otherwise: str) -> None:
        """Give the run the status that was noted, else this one."""
        status, end_ms = self.outbox.ending or (otherwise, journal.now_ms())
        self.client.set_terminated(self.run_id, status, end_time=end_ms)

    def _send_points(self, entries: Iterable[journal.Entry]) -> None:
        from mlflow.entities import Metric

        points: dict[tuple[str, int], Metric] = {}
        for entry in entries:
            for key, value in entry.metrics.items():
                name = store.entity_name(key)
                if entry.step not in self._steps_of(name):
                    points.setdefault((name, entry.step), Metric(name, value, entry.time_ms, entry.step))
        waiting = list(points.values())
        for start in range(0, len(waiting), store.METRICS_PER_CALL):
            batch = waiting[start : start + store.METRICS_PER_CALL]
            try:
                self.client.log_batch(self.run_id, metrics=batch)
                self.points += len(batch)
            except Exception as error:
                if store.is_outage(error):
                    raise
                self._refuse("points", f"{len(batch)} metric points", error, count=len(batch))
            for point in batch:
                self._steps_of(point.key).add(point.step)

    def _steps_of(self, metric: str) -> set[int]:
        """Return the steps of a metric that the run has."""
        if metric not in self._steps:
            there = metric in self._metrics
            history = self.client.get_metric_history(self.run_id, metric) if there else ()
            self._steps[metric] = {point.step for point in history}
        return self._steps[metric]

    def _attempt(self, operation: journal.Operation) -> None:
        """Send one operation; what fails although the store answers is given up after some attempts."""
        kind = operation.kind
        for attempts_left in reversed(range(ATTEMPTS)):
            try:
                getattr(self, f"_do_{kind}")(**operation.values)
            except Exception as error:
                if store.is_outage(error):
                    if not self._answers():
                        raise
                    if attempts_left:
                        continue
                self._given_up.add(operation.number)
                named = [str(operation.values.get(key, "")) for key in ("file", "name", "path")]
                self._refuse(kind, " ".join([kind, *filter(None, named)]), error, count=1)
            else:
                self.outbox.note(arrived=operation.number, run_id=self.run_id)
                self.operations += 1
            return

    def _answers(self) -> bool:
        try:
            self.client.get_run(self.run_id)
        except Exception as error:
            return not store.is_outage(error)
        return True

    def _refuse(self, kind: str, what: str, error: Exception, *, count: int) -> None:
        """Count what is refused; of one cause the first thing is named."""
        self.refused += count
        cause = (kind, str(getattr(error, "error_code", type(error).__name__)))
        if cause not in self._causes:
            self._causes.add(cause)
            logger.warning("MLflow run %s does not take %s: %s", self.run_id, what, reason_of(error))

    # ---- what becomes of an outbox's operations, by their kind ----

    def _do_params(self, params: dict[str, str]) -> None:
        self._params |= store.log_params(self.client, self.run_id, params, known=self._params)

    def _do_tags(self, tags: dict[str, str]) -> None:
        store.send_tags(self.client, self.run_id, tags)

    def _do_artifact(self, path: str, folder: str | None) -> None:
        own = self._own(path)
        log = self.client.log_artifacts if own.is_dir() else self.client.log_artifact
        log(self.run_id, str(own), folder)

    _do_artifacts = _do_artifact  # of notes that tell folders from files

    def _do_text(self, text: str, file: str) -> None:
        self.client.log_text(self.run_id, text, file)

    def _do_image(self, path: str, key: str, step: int) -> None:
        import PIL.Image

        key = store.image_name(key)
        # log_image makes a new file name at every call, so what is there is found by its beginning.
        beginning = f"images/{key.replace('/', '~')}+step+{step}+"
        if self._images is None:
            self._images = {item.path for item in self.client.list_artifacts(self.run_id, "images")}
        if not any(name.startswith(beginning) for name in self._images):
            with PIL.Image.open(self._own(path)) as image:
                image.load()
                self.client.log_image(self.run_id, image, key=key, step=step, synchronous=True)
            self._images.add(beginning)

    def _do_thumbnail(self, path: str, file: str) -> None:
        import PIL.Image

        with PIL.Image.open(self._own(path)) as image:
            image.thumbnail((THUMBNAIL_WIDTH, image.height))
            self.client.log_image(self.run_id, image, file)

    def _do_view(self, name: str | None, **view: Any) -> None:
        tag = pages.view_tag(pages.view(**view), name=name, run_id=self.run_id)
        self.client.set_experiment_tag(self.experiment_id, *tag)

    def _do_dataset(self, name: str, digest: str, count: int, source: str, context: str, **more: Any) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        where, size = json.dumps({"uri": source}), json.dumps({"num_rows": count, **more.get("figures", {})})
        dataset = Dataset(name, digest[:DIGEST_LENGTH], "local", source=where, profile=size)
        tags = [InputTag("mlflow.data.context", context)]
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, tags)])

    def _do_model(self, path: str) -> None:
        from dinomaly_hd.serving.served import log_model

        log_model(self.client, self.run_id, folder=self._own(path))

    def _own(self, path: str) -> Path:
        """Return a path that was noted relative to the run folder, wherever that folder lies now.

        A folder may come from elsewhere: nothing outside of it is sent, whatever its notes or links say.
        """
        found = self.folder / path
        if not found.exists():
            raise FileNotFoundError(f"{found} is gone")
        for each in (found, *(found.rglob("*") if found.is_dir() else ())):
            if not each.resolve().is_relative_to(self.folder):
                raise PermissionError(f"{each} leads out of the run folder {self.folder}: not sent")
        return found
