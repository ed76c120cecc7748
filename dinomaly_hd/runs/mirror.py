"""Copying a run folder into one MLflow run, as often as one likes: what arrived is not sent again."""

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dinomaly_hd.errors import TrackingError, reason_of
from dinomaly_hd.runs.journal import JOURNAL, KEY_TAG, OUTBOX, Entry, Journal, Operation, Outbox, now_ms
from dinomaly_hd.runs.store import (
    KEYS_PER_CALL,
    client_for,
    entity_name,
    in_one_line,
    is_outage,
    load_mlflow,
    prepare_store,
    send_tags,
    write_ahead,
)

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

RANDOM_NAME = re.compile(r"[^\W\d_]+-[^\W\d_]+-\d+")
"""What MLflow calls a run that was given no name: "bold-snail-123"."""
METRICS_PER_CALL = 1000
PARAM_LENGTH, DIGEST_LENGTH = 6000, 36
ATTEMPTS = 3


def mirror(
    folder: Path, *, uri: str, root: Path, ended: str | None = None, adopted: str | None = None
) -> "Mirror":
    """Send what MLflow lacks of a tracked run folder, and return the copy; called again, it sends nothing.

    The run gets the recorded status, else ``ended``; a new run of a folder without any was killed.
    """
    outbox = Outbox(folder)
    if outbox.run is None:
        raise TrackingError(f"{folder}: no {OUTBOX} in it, so no run that could be synced")
    load_mlflow(uri)
    with in_one_line(f"MLflow at {uri}", hint="; nothing is lost, sync again later"):
        try:
            copy = attach(outbox, Journal(folder / JOURNAL), uri=uri, root=root, adopted=adopted)
            copy.send()
            status, end_ms = outbox.ending or (ended or ("KILLED" if copy.made else None), now_ms())
            if status is not None:
                copy.client.set_terminated(copy.run_id, status, end_time=end_ms)
        finally:
            outbox.close()
    return copy


def attach(
    outbox: Outbox,
    journal: Journal,
    *,
    uri: str,
    root: Path,
    adopted: str | None = None,
    resumed: str | None = None,
) -> "Mirror":
    """Return a folder's copy: the run that `mlflow run` made, or that of an earlier start, or a new one.

    A refusal of the store is a TrackingError; where it does not answer, MLflow's own is raised (`is_outage`).
    """
    record, made = outbox.run, False
    assert record is not None, "open_run first"
    if adopted is not None:
        write_ahead(uri)
        client = client_for(uri)
        run = _get(client, adopted)
        if run is None:
            raise TrackingError(f"MLFLOW_RUN_ID={adopted} cannot be adopted at {uri}: there is no such run")
        if RANDOM_NAME.fullmatch(run.info.run_name or ""):  # one that somebody gave to `mlflow run` stays
            client.update_run(adopted, name=record.run_name)
        send_tags(client, adopted, record.all_tags)
    else:
        experiment_id = prepare_store(uri, experiment=record.experiment, root=root)
        client = client_for(uri)
        parent = _get(client, record.parent_run_id)
        if parent is not None:  # `mlflow run` may have chosen its experiment
            experiment_id = parent.info.experiment_id
        run = _before(client, experiment_id, [resumed, outbox.attached], key=record.key)
        if run is None:
            from mlflow.tracking.context.registry import resolve_tags

            tags, made = resolve_tags(record.all_tags), True
            run = client.create_run(experiment_id, record.time_ms, tags, run_name=record.run_name)
    if outbox.attached != run.info.run_id:
        outbox.attach(run.info.run_id)
    return Mirror(client, run, outbox, journal, made=made)


def _get(client: "MlflowClient", run_id: str | None) -> "Run | None":
    """Return a run, None where the store has none of this id."""
    try:
        return None if run_id is None else client.get_run(run_id)
    except Exception as error:
        if is_outage(error):
            raise
        return None


def _before(client: "MlflowClient", experiment_id: str, ids: list[str | None], *, key: str) -> "Run | None":
    """Return the run of an earlier start, by its id or its key.

    By its key a run is found that was made although the answer got lost: "create" again would make a second.
    """
    for run_id in filter(None, ids):
        run = _get(client, run_id)
        if run is None:
            logger.warning("MLflow run %s is not there any more, its history goes to a new run", run_id)
        elif run.info.lifecycle_stage == "active":
            return run
    return next(iter(client.search_runs([experiment_id], f"tags.{KEY_TAG} = '{key}'", max_results=1)), None)


class Mirror:
    """Sends what an MLflow run lacks of a journal and an outbox; each call may block, and be repeated.

    A metric point is known by its name and step: a resumed run that logs a step again adds nothing. Files are
    sent from below ``folder`` alone, the outbox's own if none is given. ``points`` and ``operations`` count
    what arrived, ``refused`` what the store answered with a refusal (that stays in the run folder). ``made``
    says that the run held nothing yet.
    """

    def __init__(
        self,
        client: "MlflowClient",
        run: "Run",
        outbox: Outbox,
        journal: Journal,
        *,
        made: bool = False,
        folder: Path | None = None,
    ) -> None:
        self.client, self.made = client, made
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.points = self.operations = self.refused = 0
        self._folder, self._journal, self._outbox = (folder or outbox.path.parent).resolve(), journal, outbox
        self._offset = 0
        self._params: set[str] | None = None
        self._images: set[str] | None = None
        self._given_up: set[int] = set()
        self._known: dict[str, set[int]] = {}
        if not made:
            for name in {entity_name(key) for entry in journal.tail()[0] for key in entry.metrics}:
                if name in run.data.metrics:
                    history = client.get_metric_history(self.run_id, name)
                    self._known[name] = {point.step for point in history}

    def send(self) -> None:
        """Send the journal from where the last call stopped, then what the outbox holds, in order."""
        entries, offset = self._journal.tail(self._offset)
        self._send_points(entries)
        self._offset = offset
        for operation in self._outbox.pending(self.run_id):
            if operation.number not in self._given_up:
                self._attempt(operation)

    def _send_points(self, entries: Iterable[Entry]) -> None:
        from mlflow.entities import Metric

        points: dict[tuple[str, int], Metric] = {}
        for entry in entries:
            for key, value in entry.metrics.items():
                name = entity_name(key)
                if entry.step not in self._known.get(name, ()):
                    points.setdefault((name, entry.step), Metric(name, value, entry.time_ms, entry.step))
        waiting = list(points.values())
        for start in range(0, len(waiting), METRICS_PER_CALL):
            batch = waiting[start : start + METRICS_PER_CALL]
            try:
                self.client.log_batch(self.run_id, metrics=batch)
                self.points += len(batch)
            except Exception as error:
                if is_outage(error):
                    raise
                self._refuse(f"{len(batch)} metric points", error, count=len(batch))
            for point in batch:
                self._known.setdefault(point.key, set()).add(point.step)

    def _attempt(self, operation: Operation) -> None:
        """Send one operation; what fails although the store answers is given up after some attempts."""
        for attempts_left in reversed(range(ATTEMPTS)):
            try:
                getattr(self, f"_do_{operation.kind}")(**operation.values)
            except Exception as error:
                if is_outage(error):
                    if not self._answers():
                        raise
                    if attempts_left:
                        continue
                self._given_up.add(operation.number)
                named = [str(operation.values.get(key, "")) for key in ("file", "name", "path")]
                self._refuse(" ".join([operation.kind, *filter(None, named)]), error, count=1)
            else:
                self._outbox.arrived(operation, self.run_id)
                self.operations += 1
            return

    def _answers(self) -> bool:
        try:
            self.client.get_run(self.run_id)
        except Exception as error:
            return not is_outage(error)
        return True

    def _refuse(self, what: str, error: Exception, *, count: int) -> None:
        self.refused += count
        logger.warning("MLflow run %s does not take %s: %s", self.run_id, what, reason_of(error))

    # ---- what becomes of an outbox's operations, by their kind ----

    def _do_params(self, params: dict[str, str]) -> None:
        """Log parameters that the run does not have yet: `mlflow run` logs its own, as shell-quoted text."""
        from mlflow.entities import Param

        if self._params is None:
            self._params = set(self.client.get_run(self.run_id).data.params)
        named = {entity_name(key): value[:PARAM_LENGTH] for key, value in params.items()}
        new = [Param(name, value) for name, value in named.items() if name not in self._params]
        for start in range(0, len(new), KEYS_PER_CALL):
            self.client.log_batch(self.run_id, params=new[start : start + KEYS_PER_CALL])
        self._params.update(named)

    def _do_tags(self, tags: dict[str, str]) -> None:
        send_tags(self.client, self.run_id, tags)

    def _do_artifact(self, path: str, folder: str | None) -> None:
        own = self._own(path)
        log = self.client.log_artifacts if own.is_dir() else self.client.log_artifact
        log(self.run_id, str(own), folder)

    _do_artifacts = _do_artifact  # of notes that tell folders from files

    def _do_text(self, text: str, file: str) -> None:
        self.client.log_text(self.run_id, text, file)

    def _do_image(self, path: str, key: str, step: int) -> None:
        import PIL.Image

        # All that MLflow takes; a domain may have other letters.
        key = re.sub(r"[^a-zA-Z0-9_.\-/ ]", "_", key)
        # log_image makes a new file name at every call, so what is there is found by its beginning.
        beginning = f"images/{key.replace('/', '~')}+step+{step}+"
        if self._images is None:
            self._images = {item.path for item in self.client.list_artifacts(self.run_id, "images")}
        if not any(name.startswith(beginning) for name in self._images):
            with PIL.Image.open(self._own(path)) as image:
                image.load()
                self.client.log_image(self.run_id, image, key=key, step=step, synchronous=True)
            self._images.add(beginning)

    def _do_dataset(self, name: str, digest: str, count: int, source: str, context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        where, size = json.dumps({"uri": source}), json.dumps({"num_rows": count})
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
        found = self._folder / path
        if not found.exists():
            raise FileNotFoundError(f"{found} is gone")
        for each in (found, *(found.rglob("*") if found.is_dir() else ())):
            if not each.resolve().is_relative_to(self._folder):
                raise PermissionError(f"{each} leads out of the run folder {self._folder}: not sent")
        return found
