"""Copying a run folder into one MLflow run, as often as one likes: what arrived is not sent again."""

import json
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from dinomaly_hd.errors import TrackingError, reason_of
from dinomaly_hd.runs.attach import Attachment, attach
from dinomaly_hd.runs.journal import JOURNAL, Entry, Journal, now_ms
from dinomaly_hd.runs.outbox import OUTBOX, Operation, Outbox
from dinomaly_hd.runs.store import KEYS_PER_CALL, entity_name, is_outage, load_mlflow, send_tags

logger = logging.getLogger(__name__)

METRICS_PER_CALL = 1000
PARAM_LENGTH = 6000
DIGEST_LENGTH = 36
ATTEMPTS = 3


class Mirrored(NamedTuple):
    """What one `mirror` sent: metric points, other operations, and what the store refused."""

    run_id: str
    points: int
    operations: int
    refused: int


def mirror(folder: Path, *, uri: str, root: Path, ended: str | None = None) -> Mirrored:
    """Send what MLflow lacks of a tracked run folder; called again, it sends nothing.

    The run is the one that the folder was tracked to, or a new one with the original start time. It gets the
    recorded status, else ``ended``; a new run of a folder without any was killed.

    Raises:
        TrackingError: The folder was never tracked, or the store does not answer or refuses.
    """
    outbox = Outbox(folder)
    if outbox.run is None:
        raise TrackingError(f"{folder}: no {OUTBOX} in it, so no run that could be synced")
    load_mlflow(uri)
    try:
        at = attach(outbox, uri=uri, root=root, adopted=None, resumed=None, live=False)
        copy = Mirror(at, folder=folder, journal=Journal(folder / JOURNAL), outbox=outbox)
        copy.send()
        status, end_ms = outbox.ending or (ended or ("KILLED" if at.made else None), now_ms())
        if status is not None:
            at.client.set_terminated(at.run_id, status, end_time=end_ms)
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(
            f"MLflow at {uri}: {reason_of(error)}; nothing is lost, sync again later"
        ) from error
    finally:
        outbox.close()
    return Mirrored(at.run_id, copy.points, copy.operations, copy.refused)


class Mirror:
    """Sends what an MLflow run lacks of a journal and an outbox; each call may block, and be repeated.

    A metric point is known by its name and step: a resumed run that logs a step again adds nothing. Files are
    sent from below ``folder`` alone. ``points`` and ``operations`` count what arrived, ``refused`` what the
    store answered with a refusal (that stays in the run folder).
    """

    def __init__(self, at: Attachment, *, folder: Path, journal: Journal, outbox: Outbox) -> None:
        self.client, self.run_id = at.client, at.run_id
        self.points = self.operations = self.refused = 0
        self._folder, self._journal, self._outbox = folder.resolve(), journal, outbox
        self._offset = 0
        self._params: set[str] | None = None
        self._images: set[str] | None = None
        self._given_up: set[int] = set()
        self._known: dict[str, set[int]] = {}
        if not at.made:
            self._ask_for_known_points()

    def _ask_for_known_points(self) -> None:
        theirs = self.client.get_run(self.run_id).data.metrics
        for name in {entity_name(key) for entry in self._journal.tail()[0] for key in entry.metrics}:
            if name in theirs:
                history = self.client.get_metric_history(self.run_id, name)
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
                SENDERS[operation.kind](self, **operation.values)
            except Exception as error:
                if is_outage(error):
                    if not self._answers():
                        raise
                    if attempts_left:
                        continue
                self._given_up.add(operation.number)
                named = (
                    str(operation.values[key]) for key in ("file", "name", "path") if key in operation.values
                )
                self._refuse(" ".join([operation.kind, *named]), error, count=1)
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

    def _send_params(self, params: dict[str, str]) -> None:
        """Log parameters that the run does not have yet: `mlflow run` logs its own, as shell-quoted text."""
        from mlflow.entities import Param

        if self._params is None:
            self._params = set(self.client.get_run(self.run_id).data.params)
        named = {entity_name(key): value[:PARAM_LENGTH] for key, value in params.items()}
        new = [Param(name, value) for name, value in named.items() if name not in self._params]
        for start in range(0, len(new), KEYS_PER_CALL):
            self.client.log_batch(self.run_id, params=new[start : start + KEYS_PER_CALL])
        self._params.update(named)

    def _send_tags(self, tags: dict[str, str]) -> None:
        send_tags(self.client, self.run_id, tags)

    def _send_artifact(self, path: str, folder: str | None) -> None:
        self.client.log_artifact(self.run_id, str(self._own(path)), folder)

    def _send_artifacts(self, path: str, folder: str | None) -> None:
        self.client.log_artifacts(self.run_id, str(self._own(path)), folder)

    def _send_text(self, text: str, file: str) -> None:
        self.client.log_text(self.run_id, text, file)

    def _send_image(self, path: str, key: str, step: int) -> None:
        import PIL.Image

        key = re.sub(
            r"[^a-zA-Z0-9_.\-/ ]", "_", key
        )  # all that MLflow takes; a domain may have other letters
        # log_image makes a new file name at every call, so what is there is found by its beginning.
        beginning = f"images/{key.replace('/', '~')}+step+{step}+"
        if self._images is None:
            self._images = {item.path for item in self.client.list_artifacts(self.run_id, "images")}
        if not any(name.startswith(beginning) for name in self._images):
            with PIL.Image.open(self._own(path)) as image:
                image.load()
                self.client.log_image(self.run_id, image, key=key, step=step, synchronous=True)
            self._images.add(beginning)

    def _send_dataset(self, name: str, digest: str, count: int, source: str, context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=digest[:DIGEST_LENGTH],
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps({"num_rows": count}),
        )
        tags = [InputTag("mlflow.data.context", context)]
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, tags)])

    def _send_model(self, path: str) -> None:
        from dinomaly_hd.serving.in_mlflow import log_model

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


SENDERS: dict[str, Callable[..., Any]] = {
    "params": Mirror._send_params,
    "tags": Mirror._send_tags,
    "artifact": Mirror._send_artifact,
    "artifacts": Mirror._send_artifacts,
    "text": Mirror._send_text,
    "image": Mirror._send_image,
    "dataset": Mirror._send_dataset,
    "model": Mirror._send_model,
}
"""What an outbox's operations become."""
