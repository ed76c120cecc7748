"""Runs looked up where they were tracked: in MLflow by id, parent or filter string, and in a run folder."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dinomaly_hd.errors import CheckpointError, ConfigError, TrackingError, nearest, reason_of
from dinomaly_hd.runs.outbox import Outbox
from dinomaly_hd.runs.store import client_for, server_answers, sqlite_file

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

RUN_ID = re.compile(r"[0-9a-f]{32}")
ANSWER_S = 5.0
NOT_THERE, NOT_UNDERSTOOD = "RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"


class StoredRun(NamedTuple):
    """What MLflow says of a run; ``began_ms`` is UTC milliseconds."""

    run_id: str
    experiment_id: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    began_ms: int


class Recorded(NamedTuple):
    """How a run folder was tracked: its tags, and when it began in UTC milliseconds; empty and 0 if not."""

    tags: dict[str, str]
    began_ms: int


class RunStore:
    """MLflow to look runs up in; imported and asked only once something is looked up.

    Every method raises TrackingError where the store is not there or does not answer.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client: MlflowClient | None = None
        self._refusal: TrackingError | None = None

    def run(self, run_id: str) -> StoredRun | None:
        """Return a run, None where there is none of this id or it was deleted."""
        with self._asking() as client:
            try:
                run = client.get_run(run_id)
            except Exception as error:
                if getattr(error, "error_code", None) == NOT_THERE:
                    return None
                raise
        return _stored(run) if run.info.lifecycle_stage == "active" else None

    def children(self, parent: StoredRun) -> list[StoredRun]:
        """Return the members of a comparison, the first one begun first."""
        children = f"tags.`mlflow.parentRunId` = '{parent.run_id}'"
        with self._asking() as client:
            return _all_runs(client, parent.experiment_id, children)

    def search(self, query: str, *, experiment: str) -> list[StoredRun]:
        """Return the runs of an experiment that match MLflow's filter string, the first one begun first.

        Raises:
            ConfigError: There is no such experiment, or MLflow cannot read the filter string.
        """
        with self._asking() as client:
            found = client.get_experiment_by_name(experiment)
            if found is None:
                names = [one.name for one in client.search_experiments()]
                raise ConfigError(
                    f"experiment={experiment!r}: MLflow at {self.uri} has none of this name."
                    f"{nearest(experiment, names)}"
                )
            try:
                return _all_runs(client, found.experiment_id, query)
            except Exception as error:
                if getattr(error, "error_code", None) != NOT_UNDERSTOOD:
                    raise
                raise ConfigError(
                    f"query={query!r}: MLflow cannot read it: {reason_of(error)}; "
                    "write e.g. tags.variant = 'horizontal' and params.seed = '42'"
                ) from error

    def download(self, run_id: str, names: Sequence[str], *, target: Path) -> None:
        """Copy those of a run's artifacts (files or whole folders) that it has to ``target``."""
        with self._asking() as client:
            from mlflow.artifacts import download_artifacts

            for name in {item.path for item in client.list_artifacts(run_id)}.intersection(names):
                download_artifacts(
                    run_id=run_id, artifact_path=name, dst_path=str(target), tracking_uri=self.uri
                )

    @contextmanager
    def _asking(self) -> Iterator["MlflowClient"]:
        """Yield the client and turn what MLflow raises into one line."""
        if self._refusal is not None:
            raise self._refusal
        try:
            if self._client is None:
                self._client = self._open()
            yield self._client
        except (ConfigError, TrackingError):
            raise
        except Exception as error:
            raise TrackingError(f"MLflow at {self.uri}: {reason_of(error)}") from error

    def _open(self) -> "MlflowClient":
        try:
            return client_of_existing(self.uri)
        except TrackingError as error:
            self._refusal = error
            raise


def client_of_existing(uri: str) -> "MlflowClient":
    """Return a client of a store that is there already; none is made.

    Raises:
        TrackingError: There is none, or it does not answer.
    """
    database = sqlite_file(uri)
    if database is not None and not database.is_file():
        raise TrackingError(f"MLflow's database {database} does not exist")
    if not server_answers(uri, timeout_s=ANSWER_S):
        raise TrackingError(f"MLflow at {uri} does not answer")
    return client_for(uri)


def recorded(folder: Path) -> Recorded:
    """Return how a run folder was tracked, without asking MLflow."""
    try:
        outbox = Outbox(folder)
    except (CheckpointError, OSError):  # names and order are lost with it, no number is
        return Recorded({}, 0)
    return Recorded(outbox.tags, outbox.run.time_ms if outbox.run else 0)


def _all_runs(client: "MlflowClient", experiment_id: str, query: str) -> list[StoredRun]:
    found: list[StoredRun] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id], query, order_by=["attributes.start_time ASC"], page_token=token
        )
        found += [_stored(run) for run in page]
        token = page.token
        if not token:
            return found


def _stored(run: "Run") -> StoredRun:
    info = run.info
    return StoredRun(
        info.run_id, info.experiment_id, info.status, run.data.tags, run.data.params, info.start_time or 0
    )
