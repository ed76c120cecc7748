"""One training run in MLflow: the training thread writes to the run folder, a second thread copies it."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dinomaly_hd.errors import OutputError
from dinomaly_hd.files import publish
from dinomaly_hd.runs.journal import Journal
from dinomaly_hd.tracking.outbox import OUTBOX_NAME, Outbox
from dinomaly_hd.runs.pages import TRAINING_RUNS, charts_page, run_page, shortened
from dinomaly_hd.runs.store import load_mlflow
from dinomaly_hd.tracking.worker import Worker

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

IMAGE_FOLDER = "tracking_images"
LOCAL_UI = "http://127.0.0.1:5000"

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker:
    """Copies one run folder to MLflow (spec/tracking.md; spec/reliability.md row 11).

    Every method but `start` and `close` only writes to the run folder and returns at once: metrics to the
    journal, the rest to ``tracking.jsonl`` beside it. A daemon thread sends both. When the store does not
    answer, it warns once and goes on trying; what is not delivered by `close` is left to `sync_run`.

    Args:
        journal: The run folder's journal; the folder's name is not used.
        uri: Tracking address, e.g. of `default_uri`.
        experiment: Made if it is not there; not used for a run that `mlflow run` made.
        root: The project's folder, where a database's artifacts go.
        resume_run_id: A run to go on with; a run folder that was tracked before finds its run by itself.
        system_metrics: Record CPU, memory, network and GPU of this machine (MLflow's monitor).
    """

    def __init__(
        self,
        journal: Journal,
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
        self.uri = uri
        self._journal = journal
        self._folder = journal.path.parent.resolve()
        self._outbox = Outbox(self._folder / OUTBOX_NAME)
        self._outbox.open_run(
            experiment=experiment, run_name=run_name, tags=tags, parent_run_id=parent_run_id
        )
        self._worker = Worker(
            journal,
            self._outbox,
            uri=uri,
            root=root,
            # Taken out of the environment, so that no process that we start adopts the same run.
            adopted=os.environ.pop("MLFLOW_RUN_ID", None),
            resumed=resume_run_id,
            system_metrics=system_metrics,
        )

    @property
    def run_id(self) -> str | None:
        """The MLflow run, None as long as the store has not answered."""
        at = self._worker.attachment
        return at and at.run_id

    @property
    def experiment_id(self) -> str | None:
        """The run's MLflow experiment, None as long as the store has not answered."""
        at = self._worker.attachment
        return at and at.experiment_id

    def start(self, *, timeout_s: float) -> str | None:
        """Begin to copy; return the run's id, or None if the store did not answer within ``timeout_s``.

        Importing MLflow (3 to 8 s) comes on top. A fresh SQLite file takes another 2 to 7 s to prepare.

        Raises:
            TrackingError: The store answers with a refusal: bad experiment name, unknown MLFLOW_RUN_ID.
        """
        load_mlflow(self.uri)  # here, since two threads that import at a time can see half-made modules
        self._worker.start(timeout_s=timeout_s)
        return self.run_id

    def close(self, status: Status, *, timeout_s: float) -> bool:
        """End the run and return whether MLflow has all of it; waits 1 to 2 s only when the store is dead."""
        try:
            self._outbox.end(status)
        except OutputError as error:
            logger.warning("the end of the run was not noted: %s", error)
        delivered = self._worker.close(timeout_s=timeout_s)
        if not delivered:
            logger.warning(
                "MLflow at %s lacks part of this run; a sync of %s completes it", self.uri, self._folder
            )
        return delivered

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Log metric values of an optimizer step; text before the last ``/`` of a name groups the charts."""
        self._journal.log(values, step=step)

    def params(self, values: Mapping[str, object]) -> None:
        """Log parameters that the run does not have yet (`mlflow run` logs its own, as shell-quoted text)."""
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

    def image(self, image: NDArray[np.uint8] | Path, *, key: str, step: int) -> None:
        """Log a picture (a PNG file, or pixels HxW or HxWx3, 0..255) that the run's page shows by step."""
        path = (
            image
            if isinstance(image, Path)
            else self._save(image, name=f"{key.replace('/', '~')}-{step}.png")
        )
        self._add("image", path=self._relative(path), key=key, step=step)

    def dataset(self, name: str, *, digest: str, count: int, source: str, context: str) -> None:
        """Log a data set as input; ``context`` is e.g. "training", the digest is cut to 36 characters."""
        self._add("dataset", name=name, digest=digest, count=count, source=source, context=context)

    def call(self, function: Callable[["MlflowClient", str], object]) -> None:
        """Run ``function(client, run_id)`` in the thread, behind all that was logged so far.

        It is repeated when the store fails in the midst of it, and no later `sync_run` can make up for it.
        """
        self._outbox.add_call(function)

    def url(self, ui_base: str | None = None) -> str | None:
        """Return the link to the run's page, None as long as there is no run."""
        at = self._worker.attachment
        return at and f"{self._base(ui_base)}/{run_page(at.experiment_id, at.run_id)}"

    def experiment_url(self, ui_base: str | None = None, *, which: str = TRAINING_RUNS) -> str | None:
        """Return the link to the charts of the experiment's runs that match MLflow's filter string."""
        at = self._worker.attachment
        return at and f"{self._base(ui_base)}/{charts_page(at.experiment_id, which=which)}"

    def _base(self, ui_base: str | None) -> str:
        return (ui_base or (self.uri if self.uri.startswith("http") else LOCAL_UI)).rstrip("/")

    def _add(self, kind: str, **values: Any) -> None:
        try:
            self._outbox.add(kind, values)
        except OutputError as error:
            logger.warning("not sent to MLflow: %s", error)

    def _relative(self, path: Path) -> str:
        whole = path.resolve()
        return str(whole.relative_to(self._folder) if whole.is_relative_to(self._folder) else whole)

    def _save(self, pixels: NDArray[np.uint8], *, name: str) -> Path:
        import PIL.Image

        assert pixels.dtype == np.uint8, f"pixels are uint8, not {pixels.dtype}"
        path = self._folder / IMAGE_FOLDER / name
        publish(path, lambda stream: PIL.Image.fromarray(pixels).save(stream, format="PNG"))
        return path
