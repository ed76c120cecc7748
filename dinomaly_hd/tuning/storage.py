"""Where a study lies: a SQLite file or a PostgreSQL database, opened by one process at a time."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
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
# One number for all studies of a database: who makes tables must not race either.
ADVISORY_LOCK = 0x64696E6F6D616C79
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
    """Optuna's database, whose heartbeats survive a short outage of the server: one may be lost."""

    def record_heartbeat(self, trial_id: int) -> None:
        try:
            super().record_heartbeat(trial_id)
        except StorageInternalError as error:
            logger.warning("a heartbeat was lost, the next one follows: %s", _reason(error))


def address_of(text: str, *, root: Path) -> Address:
    """Return the database that ``storage=TEXT`` names.

    ``auto`` is what DINOMALY_HD_STORAGE holds, else ``optuna.db`` in the project's folder ``root``.
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
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it prints a traceback for every failed trial
    sqlite = address.file is not None
    timeout = {"timeout": BUSY_TIMEOUT_S} if sqlite else {"connect_timeout": CONNECT_TIMEOUT_S}
    options: dict[str, Any] = {"pool_pre_ping": True, "connect_args": timeout}
    with clear_outage(address), quiet():
        try:
            storage = Storage(
                address.text,
                engine_kwargs=options,
                heartbeat_interval=heartbeat_s,
                grace_period=GRACE_HEARTBEATS * heartbeat_s,
            )
        except RuntimeError as error:  # tables of another version of Optuna
            raise ConfigError(f"storage {address.shown}: {_reason(error)}") from error
        if sqlite:  # readers and a writer work at once
            with storage.engine.connect() as connection:
                connection.execute(sqlalchemy.text("PRAGMA journal_mode = WAL"))
        return storage


@contextlib.contextmanager
def exclusive(address: Address) -> Iterator[None]:
    """Hold a study's database against all other processes, on whatever machine; freed when a holder dies."""
    file = address.file
    if file is not None:
        with locked(file.with_name(f".{file.name}.lock"), timeout_s=LOCK_TIMEOUT_S):
            yield
        return
    try:
        engine = sqlalchemy.create_engine(
            address.url, poolclass=NullPool, connect_args={"connect_timeout": CONNECT_TIMEOUT_S}
        )
    except (ImportError, NoSuchModuleError):
        driver = "its driver is not installed; pip install 'dinomaly-hd[postgresql]'"
        raise ConfigError(f"storage={address.shown}: {driver}") from None
    with contextlib.ExitStack() as stack:
        with clear_outage(address):
            connection = stack.enter_context(engine.connect().execution_options(isolation_level="AUTOCOMMIT"))
            connection.execute(sqlalchemy.text(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'"))
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({ADVISORY_LOCK})"))
        yield  # closing the connection frees the lock


@contextlib.contextmanager
def clear_outage(address: Address) -> Iterator[None]:
    """Turn a database's failure into one line: ConfigError for what a user can mend, else TrackingError."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        reason = _reason(error)
        kind = ConfigError if any(text in reason for text in OURS_TO_MEND) else TrackingError
        raise kind(f"storage {address.shown}: {reason}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna from remarking that heartbeats, retries, samplers or pictures are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _reason(error: BaseException) -> str:
    """Return the driver's own first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
