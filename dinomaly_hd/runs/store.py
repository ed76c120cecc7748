"""Where runs are kept: the MLflow database or server, its one-time preparation, and runs looked up in it."""

import contextlib
import functools
import importlib
import logging
import os
import posixpath
import re
import sqlite3
import sys
import threading
import warnings
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dinomaly_hd.errors import LONGEST_REASON, ConfigError, TrackingError, reason_of
from dinomaly_hd.files import locked

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

STORE_LOCK_TIMEOUT_S, ANSWER_S = 120.0, 5.0
KEYS_PER_CALL, METRICS_PER_CALL = 100, 1000
MOST_METRICS = 60  # of a run: each is a chart
KEY_LENGTH, PARAM_LENGTH, TAG_LENGTH, NOTE_LENGTH = 250, 6000, 8000, 7800
NOTE_TAG = "mlflow.note.content"
RUN_ID = re.compile(r"[0-9a-f]{32}")
_TOO_WIDE = re.compile(r"[^\s`]{64}(?=[^\s`])")  # for a description in a window of 1280
NOT_THERE, NOT_UNDERSTOOD = "RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"
MODULES = (
    "mlflow.system_metrics.system_metrics_monitor",
    "mlflow.utils.autologging_utils",
    "mlflow.store.tracking.sqlalchemy_store",
)
"""What is imported of MLflow; the last one where a database is its store."""
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
    needed = MODULES if is_database(uri) else MODULES[:-1]
    if missing := [name for name in needed if name not in sys.modules]:
        with warnings.catch_warnings():  # only where needed: it makes Python forget which warnings it showed
            warnings.simplefilter("ignore")
            for name in missing:
                importlib.import_module(name)
    from mlflow.environment_variables import MLFLOW_TRACKING_INSECURE_TLS

    if MLFLOW_TRACKING_INSECURE_TLS.get():  # type: ignore[no-untyped-call]
        _say_once_that_nothing_is_verified()
        warnings.filterwarnings("ignore", "Unverified HTTPS request")  # urllib3's, twice a request
    logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)


@functools.cache
def _say_once_that_nothing_is_verified() -> None:
    logger.warning(
        "MLFLOW_TRACKING_INSECURE_TLS is set: nobody checks that the MLflow server is the right one"
    )


def is_database(uri: str) -> bool:
    """Tell whether this process opens a database itself, instead of asking a server."""
    return uri.startswith(("sqlite", "postgresql", "mysql", "mssql"))


def sqlite_file(uri: str) -> Path | None:
    """Return the database file of a SQLite address, else None."""
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


def why(error: BaseException) -> str:
    """Return an error's reason on one line, of a request that failed the cause at the end of its text."""
    _, _, cause = str(error).partition("(Caused by ")
    return cause[:-1].splitlines()[0][:LONGEST_REASON] if cause else reason_of(error)


@contextlib.contextmanager
def in_one_line(what: str, *, hint: str = "") -> Iterator[None]:
    """Turn whatever MLflow raises into a TrackingError that begins with ``what``."""
    try:
        yield
    except (ConfigError, TrackingError):
        raise
    except Exception as error:
        raise TrackingError(f"{what}: {why(error)}{hint}") from error


def prepare_store(uri: str, *, experiment: str, root: Path) -> str:
    """Make the database schema and the experiment once, however many processes ask, and return its id.

    A SQLite file is switched to write-ahead logging. The lock lies beside it (for another database in
    ``root``), since processes that share a database must share the lock. A new experiment of a database keeps
    its artifacts in ``root/mlartifacts``. A server needs no lock and decides about artifacts for itself.
    """
    database, what = sqlite_file(uri), f"MLflow at {uri}, experiment {experiment!r}"
    artifacts = (root.resolve() / "mlartifacts").as_uri() if is_database(uri) else None
    beside = (database.parent if database else root.resolve()) / ".mlflow-store.lock"
    lock = locked(beside, timeout_s=STORE_LOCK_TIMEOUT_S) if artifacts else contextlib.nullcontext()
    load_mlflow(uri)
    with in_one_line(what), lock:
        write_ahead(uri)
        client = client_for(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            try:
                return str(client.create_experiment(experiment, artifact_location=artifacts))
            except Exception:  # a process on another machine may have been first
                found = client.get_experiment_by_name(experiment)
                if found is None:
                    raise
    if found.lifecycle_stage != "active":
        restore = "restore it with `mlflow experiments restore` or take another name"
        raise TrackingError(f"{what}: it was deleted; {restore}")
    return str(found.experiment_id)


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


def server_answers(uri: str, *, timeout_s: float) -> bool:
    """Tell whether MLflow's client gets an answer within ``timeout_s``, be it a refusal."""
    return not silence_of(uri, timeout_s=timeout_s)


def silence_of(uri: str, *, timeout_s: float) -> str:
    """Return why MLflow's client gets no answer within ``timeout_s``, "" where it gets one.

    Asked by that client, so that its certificates, credentials and paths decide. A database answers.
    """
    if is_database(uri):
        return ""
    client, reasons = client_for(uri), [f"nothing within {timeout_s:g} s"]

    def ask() -> None:
        try:
            client.search_experiments(max_results=1)
        except Exception as error:
            if is_outage(error):
                reasons.append(why(error))
                return
        reasons.append("")

    # A thread, since the timeout and the retries that a user set, or a name server, may take minutes.
    asking = threading.Thread(target=ask, name="asking MLflow", daemon=True)
    asking.start()
    asking.join(timeout_s)
    return reasons[-1]


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


def image_name(text: str) -> str:
    """Return a name that MLflow's image grid takes; a domain may have other letters."""
    return re.sub(r"[^a-zA-Z0-9_.\-/ ]", "_", text)


def send_tags(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags, cut to MLflow's limits."""
    from mlflow.entities import RunTag

    cut = [RunTag(entity_name(key), value[:TAG_LENGTH]) for key, value in tags.items()]
    for start in range(0, len(cut), KEYS_PER_CALL):
        client.log_batch(run_id, tags=cut[start : start + KEYS_PER_CALL])


def log_params(
    client: "MlflowClient", run_id: str, params: Mapping[str, str], *, known: Container[str]
) -> set[str]:
    """Log parameters whose names are not known, cut to MLflow's limits, and return the names of all."""
    from mlflow.entities import Param

    # `mlflow run` logs its own, as shell-quoted text, and the same name with another text is refused.
    named = {entity_name(key): value[:PARAM_LENGTH] for key, value in params.items()}
    new = [Param(name, value) for name, value in named.items() if name not in known]
    for start in range(0, len(new), KEYS_PER_CALL):
        client.log_batch(run_id, params=new[start : start + KEYS_PER_CALL])
    return set(named)


def run_of(client: "MlflowClient", run_id: str) -> "Run | None":
    """Return a run, None where the store has none of this id."""
    try:
        return client.get_run(run_id)
    except Exception as error:
        if getattr(error, "error_code", None) in (NOT_THERE, NOT_UNDERSTOOD):
            return None
        raise


def shortened(markdown: str) -> str:
    """Cut a description at a blank line, since MLflow cuts a longer one anywhere, mostly in a table.

    Blocks of code become text that wraps, and so do paths and the labels in tables: what is wide pushes half
    of MLflow's page out of the window.
    """
    markdown = re.sub(r"(?m)^    (\S.*)$", r"`\1`", markdown)
    markdown = re.sub(r"`[^`\n]+`", lambda span: _TOO_WIDE.sub(r"\g<0>`<br>`", span[0]), markdown)
    markdown = re.sub(r"(?m)^\| .*$", lambda row: re.sub(r"(?<=\w):(?=[a-z])", ":<br>", row[0]), markdown)
    if len(markdown) <= NOTE_LENGTH:
        return markdown
    rest = "\n\n*Cut here; the whole text is the artifact `report.html`.*\n"
    return markdown[: markdown.rfind("\n\n", 0, NOTE_LENGTH - len(rest))] + rest


def matching(client: "MlflowClient", experiment_id: str, query: str) -> "Iterator[Run]":
    """Yield all runs of an experiment that match MLflow's filter string, the first one begun first."""
    token: str | None = ""
    while token is not None:
        order = ["attributes.start_time ASC"]
        page = client.search_runs([experiment_id], query, order_by=order, page_token=token or None)
        yield from page
        token = page.token or None


def client_of_existing(uri: str) -> "MlflowClient":
    """Return a client of a store that is there and answers; else a TrackingError, and none is made."""
    database = sqlite_file(uri)
    if database is not None and not database.is_file():
        raise TrackingError(f"MLflow's database {database} does not exist")
    if reason := silence_of(uri, timeout_s=ANSWER_S):
        raise TrackingError(f"MLflow at {uri} does not answer: {reason}")
    return client_for(uri)
