"""Where a study lies: a SQLite file or a PostgreSQL database, opened by one process at a time."""

import contextlib
import logging
import os
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from dinomaly_hd.errors import ConfigError, TrackingError
from dinomaly_hd.files import locked

logger = logging.getLogger(__name__)

AUTO, VARIABLE, FILE = "auto", "DINOMALY_HD_STORAGE", "optuna.db"
SQLITE, POSTGRESQL = "sqlite", "postgresql"
DRIVER = "postgresql+psycopg2"
HEARTBEAT_S, GRACE_HEARTBEATS = 60, 3
LOCK_TIMEOUT_S = 300
CONNECT_TIMEOUT_S = 10
BUSY_TIMEOUT_S = 60
ADVISORY_LOCK = 0x64696E6F6D616C79
"""One number for all studies of a database: who makes tables must not race either."""
OURS_TO_MEND = ("authentication failed", "does not exist", "no password supplied", "not a database")


class Address(NamedTuple):
    """A database: the address with its password, and as it may be shown."""

    url: URL
    shown: str

    @property
    def file(self) -> Path | None:
        """The database file of SQLite, else None."""
        return Path(str(self.url.database)) if self.url.get_backend_name() == SQLITE else None

    @property
    def text(self) -> str:
        """The whole address, password included: never to be printed or logged."""
        return self.url.render_as_string(hide_password=False)

    @property
    def has_password(self) -> bool:
        """Whether the address itself holds a password."""
        return self.url.password is not None or any("pass" in name.lower() for name in self.url.query)


class Storage(RDBStorage):
    """Optuna's database, whose heartbeats survive a short outage of the server."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Note that a trial is alive; one beat may be lost."""
        try:
            super().record_heartbeat(trial_id)
        except StorageInternalError as error:
            logger.warning("a heartbeat was lost, the next one follows: %s", _reason(error))


def address_of(text: str, *, root: Path) -> Address:
    """Return the database that ``storage=TEXT`` names.

    ``auto`` is what DINOMALY_HD_STORAGE holds, else ``optuna.db`` in the project's folder ``root``.

    Raises:
        ConfigError: No address, or of a database that studies cannot lie in.
    """
    if text == AUTO:
        text = os.environ.get(VARIABLE) or f"sqlite:///{root.resolve() / FILE}"
    expected = "expected auto, sqlite:///FILE, or postgresql://USER@HOST:PORT/DATABASE"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ConfigError(f"storage: this is no address; {expected}") from None
    hidden = {name: "***" for name in url.query if "pass" in name.lower()}
    shown = url.update_query_dict(hidden).render_as_string(hide_password=True)
    kind = url.get_backend_name()
    if kind not in (SQLITE, POSTGRESQL) or not url.database or url.database == ":memory:":
        raise ConfigError(f"storage={shown}: {expected}")
    if kind == SQLITE:
        url = url.set(database=str(Path(url.database).absolute()))
        shown = url.render_as_string()
    elif url.drivername == POSTGRESQL:  # SQLAlchemy's own choice is another driver in every major version
        url = url.set(drivername=DRIVER)
    return Address(url, shown)


def connect(address: Address, *, heartbeat_s: int = HEARTBEAT_S) -> Storage:
    """Open a database and make its tables where there are none; call it inside ``exclusive``.

    A trial whose last heartbeat is three intervals old counts as left behind.

    Raises:
        ConfigError: A wrong password, no such database, no driver, or something else lies there.
        TrackingError: It does not answer.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it prints a traceback for every failed trial
    file = address.file
    options: dict[str, object] = {"pool_pre_ping": True}
    options["connect_args"] = (
        {"connect_timeout": CONNECT_TIMEOUT_S} if file is None else {"timeout": BUSY_TIMEOUT_S}
    )
    with _clear_errors(address), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if file is not None:
            _write_ahead(file)
        return Storage(
            address.text,
            engine_kwargs=options,
            heartbeat_interval=heartbeat_s,
            grace_period=GRACE_HEARTBEATS * heartbeat_s,
        )


@contextlib.contextmanager
def exclusive(address: Address) -> Iterator[None]:
    """Hold a study's database against all other processes, on whatever machine; freed when a holder dies.

    Raises:
        ConfigError: As ``connect``.
        TrackingError: The database does not answer, or another process holds it for minutes.
        OutputError: The folder of a SQLite file cannot be written.
    """
    file = address.file
    if file is not None:
        with locked(file.with_name(f".{file.name}.lock"), timeout_s=LOCK_TIMEOUT_S):
            yield
        return
    with contextlib.ExitStack() as stack:
        with _clear_errors(address):
            engine = sqlalchemy.create_engine(
                address.url, poolclass=NullPool, connect_args={"connect_timeout": CONNECT_TIMEOUT_S}
            )
            connection = stack.enter_context(engine.connect().execution_options(isolation_level="AUTOCOMMIT"))
            connection.execute(sqlalchemy.text(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'"))
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({ADVISORY_LOCK})"))
        yield  # closing the connection frees the lock


@contextlib.contextmanager
def clear_outage(address: Address) -> Iterator[None]:
    """Turn an outage of the database while a study is at work into one line.

    Raises:
        TrackingError: The database failed.
    """
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        raise TrackingError(f"storage {address.shown}: {_reason(error)}") from error


@contextlib.contextmanager
def _clear_errors(address: Address) -> Iterator[None]:
    try:
        yield
    except (ImportError, NoSuchModuleError):
        raise ConfigError(
            f"storage={address.shown}: its driver is not installed; pip install 'dinomaly-hd[postgresql]'"
        ) from None
    except (DatabaseError, StorageInternalError, sqlite3.Error) as error:
        reason = _reason(error)
        kind = ConfigError if any(text in reason for text in OURS_TO_MEND) else TrackingError
        raise kind(f"storage {address.shown}: {reason}") from error
    except RuntimeError as error:  # tables of another version of Optuna
        raise ConfigError(f"storage {address.shown}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Return the driver's own first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _write_ahead(file: Path) -> None:
    """Let readers and a writer of a SQLite file work at once."""
    with contextlib.closing(sqlite3.connect(file, timeout=BUSY_TIMEOUT_S)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
