"""Where runs are kept: the MLflow database or server, its one-time preparation, and runs left behind."""

import contextlib
import http.client
import importlib
import logging
import os
import posixpath
import re
import socket
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from dinomaly_hd.errors import OutputError, TrackingError, reason_of
from dinomaly_hd.files import locked

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

STORE_LOCK_TIMEOUT_S = 120.0
HEARTBEAT_LOST_S = 600.0
KEYS_PER_CALL = 100
KEY_LENGTH = 250
TAG_LENGTH = 8000
PROCESS_TAG = "process"
_MODULES = ("mlflow.system_metrics.system_metrics_monitor", "mlflow.utils.autologging_utils")
_DATABASE_MODULE = "mlflow.store.tracking.sqlalchemy_store"
_OUTAGE_CODES = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED"}


def default_uri(root: Path) -> str:
    """Return MLFLOW_TRACKING_URI, or the SQLite file of the project (never of the working directory)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def client_for(uri: str) -> "MlflowClient":
    """Return a client bound to ``uri``; MLflow's global state stays untouched. Raises what MLflow raises."""
    load_mlflow(uri)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def load_mlflow(uri: str) -> None:
    """Import mlflow (3 to 8 s) with all that ``uri`` needs, on the calling thread.

    Warnings that its import sets off are not the user's to mend; its own lines about an outage repeat ours.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in (*_MODULES, *([_DATABASE_MODULE] if is_database(uri) else [])):
            importlib.import_module(name)
    logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def is_database(uri: str) -> bool:
    """Tell whether this process opens a database itself, instead of asking a server."""
    return uri.startswith(("sqlite", "postgresql", "mysql", "mssql"))


def sqlite_file(uri: str) -> Path | None:
    """Return the database file of a SQLite address, else None."""
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


def prepare_store(uri: str, *, experiment: str, root: Path) -> str:
    """Make the database schema and the experiment once, however many processes ask, and return its id.

    A SQLite file is switched to write-ahead logging. The lock lies beside it (for another database in
    ``root``), since processes that share a database must share the lock. A new experiment of a database keeps
    its artifacts in ``root/mlartifacts``. A server needs no lock and decides about artifacts for itself.

    Raises:
        TrackingError: The store does not answer, is no MLflow store, or refuses the experiment's name.
    """
    database = sqlite_file(uri)
    folder = root.resolve() if database is None else database.parent
    artifacts: str | None = None
    lock: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if is_database(uri):
        artifacts = (root.resolve() / "mlartifacts").as_uri()
        lock = locked(folder / ".mlflow-store.lock", timeout_s=STORE_LOCK_TIMEOUT_S)
    load_mlflow(uri)
    try:
        with lock:
            write_ahead(uri)
            return _experiment_id(client_for(uri), experiment, artifacts)
    except OutputError as error:
        raise TrackingError(str(error)) from error
    except Exception as error:
        raise TrackingError(f"MLflow at {uri}, experiment {experiment!r}: {reason_of(error)}") from error


def server_answers(uri: str, *, timeout_s: float) -> bool:
    """Tell whether a tracking server says anything within ``timeout_s``; a database counts as answering."""
    if not uri.startswith("http"):
        return True
    address = urllib.parse.urlsplit(uri)
    host = address.netloc.rpartition("@")[2]  # without user and password
    try:
        urllib.request.urlopen(f"{address.scheme}://{host}/health", timeout=timeout_s).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True


def is_outage(error: BaseException) -> bool:
    """Tell a store that does not answer from one that answers with a refusal."""
    cause: BaseException | None = error.__cause__ if isinstance(error, TrackingError) else error
    code = getattr(cause, "error_code", None)
    if code is not None:
        return code in _OUTAGE_CODES
    if type(cause).__name__ == "OperationalError":  # of sqlite3, SQLAlchemy or any other database driver
        return True
    return isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)


def entity_name(name: str) -> str:
    """Return a metric, parameter or tag name that MLflow takes: one bad name fails a whole batch."""
    allowed = re.sub(r"[^\w.\-: /]", "_", name)
    return posixpath.normpath(allowed).lstrip("./")[:KEY_LENGTH] or "_"


def send_tags(client: "MlflowClient", run_id: str, tags: dict[str, str]) -> None:
    """Set tags, cut to MLflow's limits."""
    from mlflow.entities import RunTag

    cut = [RunTag(entity_name(key), value[:TAG_LENGTH]) for key, value in tags.items()]
    for start in range(0, len(cut), KEYS_PER_CALL):
        client.log_batch(run_id, tags=cut[start : start + KEYS_PER_CALL])


def process_tag() -> dict[str, str]:
    """Return the tag that lets a later start see whether this process still lives.

    It holds host, process id, start of the process, what makes ids comparable (this boot and this container;
    "-" where there is no /proc), and the time, UTC.
    """
    namespace = "-"
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    started = f"{psutil.Process().create_time():.2f}"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {PROCESS_TAG: " ".join([socket.gethostname(), str(os.getpid()), started, namespace, now])}


def close_stale_runs(client: "MlflowClient", experiment_id: str) -> list[str]:
    """Mark runs of this host KILLED whose process is gone, and return their ids.

    A process is known by its id and start time. Where ids cannot be compared (another container or boot
    under the same host name) a run counts as left behind once its heartbeat is ten minutes old.
    """
    query = f"attributes.status = 'RUNNING' and tags.{PROCESS_TAG} LIKE '{socket.gethostname()} %'"
    closed: list[str] = []
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], query, page_token=token)
        for run in page:
            # Asked again just before, since another process may have resumed it in the meantime.
            if _left_behind(run) and _left_behind(client.get_run(run.info.run_id)):
                client.set_terminated(run.info.run_id, "KILLED")
                closed.append(run.info.run_id)
        token = page.token
        if not token:
            return closed


def close_all_stale_runs(uri: str) -> list[str]:
    """Do so in every experiment of a store.

    Raises:
        TrackingError: The store does not answer.
    """
    try:
        client = client_for(uri)
        return [
            run_id
            for experiment in client.search_experiments()
            for run_id in close_stale_runs(client, experiment.experiment_id)
        ]
    except Exception as error:
        raise TrackingError(f"MLflow at {uri}: {reason_of(error)}") from error


def _left_behind(run: "Run") -> bool:
    try:
        _, pid, started, namespace, heartbeat = run.data.tags[PROCESS_TAG].split(" ")
        age = datetime.now(UTC) - datetime.fromisoformat(heartbeat)
    except (KeyError, ValueError, TypeError):  # not written by us
        return False
    if run.info.status != "RUNNING":
        return False
    if namespace != process_tag()[PROCESS_TAG].split(" ")[3]:
        return age.total_seconds() > HEARTBEAT_LOST_S
    return not _alive(pid, started)


def _alive(pid: str, started: str) -> bool:
    try:
        process = psutil.Process(int(pid))
        # The kernel's boot time, to which start times are relative, moves when the clock is set.
        same = abs(process.create_time() - float(started)) < 5.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except (psutil.Error, ValueError):
        return False


def write_ahead(uri: str) -> None:
    """Let readers and a writer of a SQLite file work at once; tells fast if it is no database at all."""
    database = sqlite_file(uri)
    if database is None:
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(database, timeout=20.0)) as connection:
        if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            with contextlib.suppress(sqlite3.OperationalError):  # somebody writes: the next start does it
                connection.execute("PRAGMA journal_mode = WAL")


def _experiment_id(client: "MlflowClient", name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except Exception:  # a process on another machine may have been first
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TrackingError(
            "it was deleted; restore it with `mlflow experiments restore` or take another name"
        )
    return str(found.experiment_id)
