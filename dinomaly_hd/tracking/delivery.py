"""Copying a run folder into one MLflow run: every call here may block and may raise what MLflow raises."""

import json
import logging
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dinomaly_hd.errors import reason_of
from dinomaly_hd.runs.journal import Entry, Journal
from dinomaly_hd.tracking.outbox import Operation, Outbox
from dinomaly_hd.runs.store import is_outage

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

METRICS_PER_CALL = 1000
KEYS_PER_CALL = 100
KEY_LENGTH = 250
PARAM_LENGTH = 6000
TAG_LENGTH = 8000
DIGEST_LENGTH = 36
ATTEMPTS = 3

Item = TypeVar("Item")


class Delivery:
    """Sends what an MLflow run lacks of a journal and an outbox; each call may be repeated without doubles.

    A metric point is known by its name and step: a resumed run that logs a step again adds nothing. Files are
    sent from below ``folder`` alone, by default the journal's.
    ``points`` and ``operations`` count what arrived, ``refused`` what the store answered with a refusal (that
    stays in the run folder).
    """

    def __init__(
        self,
        client: "MlflowClient",
        run_id: str,
        *,
        journal: Journal,
        outbox: Outbox,
        folder: Path | None = None,
    ) -> None:
        self.client = client
        self.run_id = run_id
        self.points = 0
        self.operations = 0
        self.refused = 0
        self._journal = journal
        self._outbox = outbox
        self._folder = journal.path.parent if folder is None else folder
        self._offset = 0
        self._known: dict[str, set[int]] = {}
        self._params: set[str] | None = None
        self._images: set[str] | None = None
        self._given_up: set[int] = set()

    def load_known(self) -> None:
        """Ask which points of the journal the run already has; needed where it was not made just now."""
        theirs = self.client.get_run(self.run_id).data.metrics
        for name in {_entity_name(key) for entry in self._journal.read() for key in entry.metrics}:
            if name in theirs:
                history = self.client.get_metric_history(self.run_id, name)
                self._known[name] = {point.step for point in history}

    def send_metrics(self) -> None:
        """Send the journal from where the last call stopped."""
        entries, offset = self._journal.tail(self._offset)
        for batch in _batches(self._missing(entries), METRICS_PER_CALL):
            try:
                self.client.log_batch(self.run_id, metrics=batch)
                self.points += len(batch)
            except Exception as error:
                if is_outage(error):
                    raise
                self._refuse(f"{len(batch)} metric points", error, count=len(batch))
            for point in batch:
                self._known.setdefault(point.key, set()).add(point.step)
        self._offset = offset

    def send_operations(self) -> None:
        """Send what the outbox holds, in order; what fails while the store answers is refused in the end."""
        for operation in self._outbox.pending(self.run_id):
            if operation.number not in self._given_up:
                self._attempt(operation)

    def _attempt(self, operation: Operation) -> None:
        for attempts_left in reversed(range(ATTEMPTS)):
            try:
                self._send(operation)
            except Exception as error:
                if is_outage(error):
                    if not self._answers():
                        raise
                    if attempts_left:
                        continue
                self._given_up.add(operation.number)
                self._refuse(_describe(operation), error, count=1)
            else:
                self._outbox.arrived(operation, self.run_id)
                self.operations += 1
            return

    def _missing(self, entries: Iterable[Entry]) -> Iterator["Metric"]:
        from mlflow.entities import Metric

        queued: set[tuple[str, int]] = set()
        for entry in entries:
            for key, value in entry.metrics.items():
                name = _entity_name(key)
                if entry.step not in self._known.get(name, ()) and (name, entry.step) not in queued:
                    queued.add((name, entry.step))
                    yield Metric(name, value, entry.time_ms, entry.step)

    def _answers(self) -> bool:
        try:
            self.client.get_run(self.run_id)
        except Exception as error:
            return not is_outage(error)
        return True

    def _refuse(self, what: str, error: Exception, *, count: int) -> None:
        self.refused += count
        logger.warning("MLflow run %s does not take %s: %s", self.run_id, what, reason_of(error))

    def _send(self, operation: Operation) -> None:
        if operation.function is not None:
            operation.function(self.client, self.run_id)
        else:
            _SENDERS[operation.kind](self, **operation.values)

    def _send_params(self, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        if self._params is None:
            self._params = set(self.client.get_run(self.run_id).data.params)
        new = [
            Param(name, value[:PARAM_LENGTH])
            for name, value in _renamed(params).items()
            if name not in self._params
        ]
        for batch in _batches(new, KEYS_PER_CALL):
            self.client.log_batch(self.run_id, params=batch)
            self._params.update(param.key for param in batch)

    def _send_tags(self, tags: dict[str, str]) -> None:
        send_tags(self.client, self.run_id, tags)

    def _send_artifact(self, path: str, folder: str | None) -> None:
        self.client.log_artifact(self.run_id, str(self._existing(path)), folder)

    def _send_artifacts(self, path: str, folder: str | None) -> None:
        self.client.log_artifacts(self.run_id, str(self._existing(path)), folder)

    def _send_text(self, text: str, file: str) -> None:
        self.client.log_text(self.run_id, text, file)

    def _send_image(self, path: str, key: str, step: int) -> None:
        import PIL.Image

        key = re.sub(
            r"[^a-zA-Z0-9_.\-/ ]", "_", key
        )  # all that MLflow takes: a domain may have other letters
        # log_image makes a new file name at every call, so what is there is found by its beginning.
        beginning = f"images/{key.replace('/', '~')}+step+{step}+"
        if self._images is None:
            self._images = {item.path for item in self.client.list_artifacts(self.run_id, "images")}
        if not any(name.startswith(beginning) for name in self._images):
            with PIL.Image.open(self._existing(path)) as image:
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

    def _existing(self, path: str) -> Path:
        """Return a path that was noted relative to the run folder, wherever that folder lies now.

        A folder may come from elsewhere: nothing outside of it is sent, whatever its notes or links say.
        """
        folder = self._folder.resolve()
        found = folder / path
        if not found.exists():
            raise FileNotFoundError(f"{found} is gone")
        for each in (found, *(found.rglob("*") if found.is_dir() else ())):
            if not each.resolve().is_relative_to(folder):
                raise PermissionError(f"{each} leads out of the run folder {folder}: not sent")
        return found


def send_tags(client: "MlflowClient", run_id: str, tags: dict[str, str]) -> None:
    """Set tags, cut to MLflow's limits."""
    from mlflow.entities import RunTag

    cut = [RunTag(key, value[:TAG_LENGTH]) for key, value in _renamed(tags).items()]
    for batch in _batches(cut, KEYS_PER_CALL):
        client.log_batch(run_id, tags=batch)


_SENDERS: dict[str, Callable[..., None]] = {
    "params": Delivery._send_params,
    "tags": Delivery._send_tags,
    "artifact": Delivery._send_artifact,
    "artifacts": Delivery._send_artifacts,
    "text": Delivery._send_text,
    "image": Delivery._send_image,
    "dataset": Delivery._send_dataset,
}


def _entity_name(name: str) -> str:
    """Return a metric, parameter or tag name that MLflow takes: one bad name fails a whole batch."""
    allowed = re.sub(r"[^\w.\-: /]", "_", name)
    return posixpath.normpath(allowed).lstrip("./")[:KEY_LENGTH] or "_"


def _renamed(values: dict[str, str]) -> dict[str, str]:
    return {_entity_name(key): value for key, value in values.items()}


def _batches(items: Iterable[Item], size: int) -> Iterator[Sequence[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _describe(operation: Operation) -> str:
    named = operation.values.keys() & {"path", "name", "file"}
    return " ".join([operation.kind, *(str(operation.values[key]) for key in sorted(named))])
