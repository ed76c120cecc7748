"""Find runs by what a user calls them: a folder, its name, an MLflow id; what is not here lies in MLflow."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dinomaly_hd.errors import CheckpointError, ConfigError, TrackingError, nearest, reason_of
from dinomaly_hd.files import read_json
from dinomaly_hd.runs.folder import FINISHED, RESULTS, STATE, SUMMARY, folders_named, read_state, states
from dinomaly_hd.runs.journal import FOLDER_TAG, Outbox
from dinomaly_hd.runs.store import NOT_UNDERSTOOD, RUN_ID, client_of_existing, in_one_line, matching, run_of

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

TRAINING = "train"


class Found(NamedTuple):
    """A run or a comparison, wherever it lies.

    ``name`` is its MLflow run id, else its folder; ``folder`` is None where it lies in MLflow only.
    ``began_ms`` is UTC milliseconds, 0 where unknown.
    """

    name: str
    folder: Path | None
    status: str
    tags: Mapping[str, str]
    began_ms: int
    seed: str

    @property
    def run_id(self) -> str | None:
        return self.name if RUN_ID.fullmatch(self.name) else None

    @property
    def place(self) -> Path:
        """The folder that it has or had, wherever that was moved to."""
        return Path(self.folder or self.tags.get(FOLDER_TAG, ""))

    @property
    def kind(self) -> str:
        return self.tags.get("kind", TRAINING)

    @property
    def is_comparison(self) -> bool:
        """Whether it stands for its members."""
        if self.folder is not None:
            if (self.folder / RESULTS).is_file():
                return False
            if (self.folder / SUMMARY).is_file() or any(self.folder.glob(f"*/{STATE}")):
                return True
        return self.kind != TRAINING


class Shelf:
    """Runs in folders here, and in MLflow, which is imported and asked only for what is not here.

    Every method raises TrackingError where MLflow has to be asked and is not there or does not answer.
    """

    def __init__(self, result_dir: Path, uri: str) -> None:
        self.result_dir, self.uri = result_dir, uri
        self._states = list(states(result_dir))
        self._client: MlflowClient | TrackingError | None = None

    def find(self, name: str) -> Found:
        """Return what a user calls so, or raise ConfigError."""
        here = folders_named(name, self._states, holding=(STATE, RESULTS, SUMMARY))
        if len(here) > 1:
            places = ", ".join(str(folder) for folder in here)
            raise ConfigError(f"{name!r} is the name of {len(here)} runs ({places}); give one's path or id")
        if here:
            return _at(here[0])
        if os.path.isdir(name):
            raise ConfigError(f"{name!r} holds no run")
        if RUN_ID.fullmatch(name) is None:
            raise ConfigError(f"{name!r} is no run folder, no name of one under {self.result_dir}, and no id")
        absent = f"{name!r} is not under {self.result_dir}"
        try:
            with self._asking() as client:
                run = run_of(client, name)
        except TrackingError as error:
            raise TrackingError(f"{absent}, and {error}") from error
        if run is None or run.info.lifecycle_stage != "active":
            raise ConfigError(f"{absent} and not in MLflow at {self.uri}")
        return self._of(run)

    def members(self, comparison: Found) -> list[Found]:
        """Return the runs that began in a comparison, in their order."""
        if comparison.folder is not None:
            found = [_at(path.parent) for path in sorted(comparison.folder.glob(f"*/{STATE}"))]
            return sorted(found, key=lambda run: run.began_ms)
        children = f"tags.`mlflow.parentRunId` = '{comparison.name}'"
        with self._asking() as client:
            experiment_id = client.get_run(comparison.name).info.experiment_id
            return [self._of(run) for run in matching(client, experiment_id, children)]

    def search(self, query: str, *, experiment: str) -> list[Found]:
        """Return the runs of an experiment that match MLflow's filter string, the first one begun first."""
        with self._asking() as client:
            found = client.get_experiment_by_name(experiment)
            if found is None:
                known = nearest(experiment, [one.name for one in client.search_experiments()])
                raise ConfigError(
                    f"experiment={experiment!r}: MLflow at {self.uri} has none of this name.{known}"
                )
            try:
                return [self._of(run) for run in matching(client, found.experiment_id, query)]
            except Exception as error:
                if getattr(error, "error_code", None) != NOT_UNDERSTOOD:
                    raise
                raise ConfigError(
                    f"query={query!r}: MLflow cannot read it: {reason_of(error)}; "
                    "write e.g. tags.variant = 'horizontal' and params.seed = '42'"
                ) from error

    @contextmanager
    def folder(self, run: Found, *names: str) -> Iterator[Path]:
        """Yield a run's folder, or one with copies of these artifacts from MLflow if it is not here."""
        if run.folder is not None:
            yield run.folder
            return
        with tempfile.TemporaryDirectory() as temporary:
            with self._asking() as client:
                from mlflow.artifacts import download_artifacts

                for name in {item.path for item in client.list_artifacts(run.name)}.intersection(names):
                    place = {"artifact_path": name, "dst_path": temporary}
                    download_artifacts(run_id=run.name, tracking_uri=self.uri, **place)
            yield Path(temporary)

    def summary(self, comparison: Found) -> dict[str, Any]:
        with self.folder(comparison, SUMMARY) as folder:
            return read_json(folder / SUMMARY)

    def _of(self, run: "Run") -> Found:
        """Return a run that MLflow knows, from its folder if that is here."""
        run_id, tags = run.info.run_id, run.data.tags
        told = Path(tags.get(FOLDER_TAG, ""))
        for folder, state in [*self._states, (told, read_state(told))]:
            if state.get("mlflow_run_id") == run_id:
                return _at(folder)
        seed = run.data.params.get("seed", "")
        return Found(run_id, None, run.info.status, tags, run.info.start_time or 0, seed)

    @contextmanager
    def _asking(self) -> "Iterator[MlflowClient]":
        """Yield the client; a store that does not answer is asked once only."""
        with in_one_line(f"MLflow at {self.uri}"):
            if self._client is None:
                try:
                    self._client = client_of_existing(self.uri)
                except TrackingError as error:
                    self._client = error
            if isinstance(self._client, TrackingError):
                raise self._client
            yield self._client


def _at(folder: Path) -> Found:
    """Return what lies in a folder; one without state was copied here from MLflow."""
    state, tags, began_ms = read_state(folder), dict[str, str](), 0
    with suppress(CheckpointError, OSError):  # names and order are lost with its notes, no number is
        notes = Outbox(folder)
        tags, began_ms = notes.tags, notes.run.time_ms if notes.run else 0
    config = read_json(folder / "experiment_settings.json").get("config", {})
    name = state.get("mlflow_run_id") or str(folder)
    return Found(name, folder, state.get("status", FINISHED), tags, began_ms, str(config.get("seed", "")))
