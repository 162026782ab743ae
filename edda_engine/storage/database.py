"""The database: engine set-up per dialect, and the only place that begins and commits.

How it thinks. There are two pools on one database. The *shared* engine is the application's own; activities,
views and questions use it. The *service* engine has the same settings and a pool of its own, so that the
committer never waits behind the application's connections; it opens at most three: one that the sign of life keeps, and
two that the others use in turn.

SQLite admits one writer. Connections that write for us begin with ``BEGIN IMMEDIATE`` (an execution option
tells), so that a lock is waited for at the start and never lost in the middle; all others are left as the
application set them up. Threads of one process queue on a lock of ours, which is fairer than SQLite's polling.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import Pool, QueuePool

from edda_engine.errors import ConfigurationError
from edda_engine.storage.alone import Alone, Kept
from edda_engine.storage.connecting import name_connections, note_parameters, without_driver_options
from edda_engine.storage.guards import let_guards_be_asked
from edda_engine.storage.libpq import BEGUN, state_of
from edda_engine.storage.urls import check_backend, missing_driver, normalized_url

T = TypeVar("T")

WRITE_OPTION = "edda_write"
MOST_CONNECTIONS = 3
"""Of the service engine, in each process."""
_BUSY_TIMEOUT_MS = 60_000
_PYTHON_DEFAULT_BUSY_MS = 5_000

_OUTAGE_SQLSTATES = ("08", "57P", "53", "25P03", "25006")
_CONFLICT_SQLSTATES = ("40001", "40P01", "55P03")
_TRANSIENT_SQLITE = ("locked", "busy", "unable to open", "disk i/o", "is full", "closed")


class WriteTurn:
    """Whose turn it is to write, among the threads of one process; only SQLite needs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def take(self) -> Callable[[], None]:
        """Wait for the turn; call the result to pass it on, once or more often."""
        acquired = self._lock.acquire(timeout=_BUSY_TIMEOUT_MS / 1000)
        pending = [acquired]

        def give_back() -> None:
            if pending and pending.pop():
                self._lock.release()

        return give_back


class Database:
    """One database, as this process uses it."""

    def __init__(self, engine: Engine, *, owns_engine: bool = False) -> None:
        self.dialect = engine.dialect.name
        check_backend(self.dialect)
        if self.dialect == "sqlite" and engine.url.database in (None, "", ":memory:"):
            raise ConfigurationError(
                "edda cannot use an in-memory SQLite database: each connection would see another one, and a restart"
                " would lose everything. Use a file, for example sqlite:///app.db."
            )
        self.engine = engine
        self._owns_engine = owns_engine
        self._pid = os.getpid()
        self._turn = WriteTurn()
        self._making = threading.Lock()
        self._reads_a_snapshot: bool | None = None
        self._service: Engine | None = None
        let_guards_be_asked(engine)
        if self.dialect == "sqlite":
            configure_sqlite(engine)
        else:
            note_parameters(engine)

    @classmethod
    def from_url(cls, url: str | URL) -> Database:
        """A database by URL: ``sqlite:///app.db``, ``postgresql://...``, ``postgresql+psycopg://...``."""
        found, parameters = without_driver_options(normalized_url(url))
        try:
            return cls(create_engine(found, connect_args=parameters), owns_engine=True)
        except ImportError as error:
            raise ConfigurationError(missing_driver(found, error)) from error
        except SQLAlchemyError as error:
            raise ConfigurationError(
                f"The database URL cannot be used ({type(error).__name__} from driver {found.drivername!r})."
                " Check its parameters."
            ) from None  # the cause may repeat the URL, with its password

    @property
    def is_sqlite(self) -> bool:
        """One host, one writer."""
        return self.dialect == "sqlite"

    def shared_engine(self) -> Engine:
        """The application's own engine."""
        return self.engine

    @property
    def service(self) -> Engine:
        """The engine's own small pool; made on first use in this process."""
        if self._pid != os.getpid():
            self.after_fork()
        with self._making:
            if self._service is None:
                pool = _of_three(self.engine.pool.recreate())
                self._service = create_engine(self.engine.url, pool=pool, hide_parameters=True)
                if self.is_sqlite:
                    configure_sqlite(self._service)
                else:
                    name_connections(self._service)
            return self._service

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A short look at what is committed, on the application's pool; what is changed in it may stay."""
        with _without_parameters(), self.engine.connect() as conn:
            try:
                yield conn
            finally:
                _keep_prepared(conn)

    @contextmanager
    def write(self, *, service: bool = True) -> Iterator[Connection]:
        """A transaction: committed at the end, rolled back on any exception."""
        give_back = self.take_turn()
        try:
            engine = self.service if service else self.engine
            with (
                _without_parameters(),
                engine.connect().execution_options(**{WRITE_OPTION: True}) as conn,
                conn.begin(),
            ):
                yield conn
        finally:
            give_back()

    def autocommitting(self) -> Connection:
        """A connection of the service pool on which each statement is a transaction: it saves BEGIN and its end."""
        return self.service.connect().execution_options(isolation_level="AUTOCOMMIT")

    def execute_alone(self, statement: Alone, given: Mapping[str, Any]) -> Sequence[Any]:
        """The rows of a statement alone, on the service pool."""
        with closing(self.kept()) as kept:
            return kept.execute(statement, given)

    def kept(self) -> Kept:
        """A connection of the service pool for statements alone; borrowed when it is used."""
        return Kept(lambda: self.service)

    def reads_a_snapshot(self, conn: Connection) -> bool:
        """Whether the application's engine runs its transactions above READ COMMITTED; asked once."""
        if self.is_sqlite:
            return False
        if self._reads_a_snapshot is None:
            self._reads_a_snapshot = conn.get_isolation_level() in ("REPEATABLE READ", "SERIALIZABLE")
        return self._reads_a_snapshot

    def take_turn(self) -> Callable[[], None]:
        """Wait until this thread may write; the result passes the turn on."""
        return self._turn.take() if self.is_sqlite else no_turn_to_give_back

    def after_fork(self) -> None:
        """Forget connections and locks of the parent process without touching them."""
        self._pid = os.getpid()
        self._turn = WriteTurn()
        self._making = threading.Lock()
        if self._service is not None:
            self._service.dispose(close=False)
            self._service = None
        self.engine.dispose(close=False)

    def close_service(self) -> None:
        """Close the engine's own connections; they are opened again when needed. One in use is closed after its use."""
        with self._making:
            found, self._service = self._service, None
        if found is not None:
            # A pool closes what lies in it, and would keep what comes back to it later.
            event.listen(found.pool, "checkin", _close_late)
            found.dispose()

    def close(self) -> None:
        """Close the connections that are ours."""
        self.close_service()
        if self._owns_engine:
            self.engine.dispose()


def refuse_autocommit(engine: Engine) -> None:
    """Where each statement is a transaction of its own, nothing can be saved together with anything.

    :raises ConfigurationError: the application made its engine so.
    """
    of_driver = getattr(engine.dialect, "_on_connect_isolation_level", None)
    level = engine.get_execution_options().get("isolation_level") or of_driver
    if str(level).upper() == "AUTOCOMMIT":
        raise ConfigurationError(
            "The application's engine has isolation_level='AUTOCOMMIT', so its sessions have no transactions that starts and"
            " activities could share. Make the engine without it, and where it is needed use"
            " db.engine.execution_options(isolation_level='AUTOCOMMIT')."
        )


def is_outage(error: BaseException) -> bool:
    """Whether *error* says that the database could not be reached or used, rather than that a statement was wrong.

    What failed this way may be tried again as it is, once the database answers.
    """
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return isinstance(error, PendingRollbackError) and "invalid" in str(error)
    if error.connection_invalidated:
        return True
    if not isinstance(error, (OperationalError, InterfaceError)):
        return False
    sqlstate = _sqlstate(error)
    if sqlstate is not None:
        return sqlstate.startswith(_OUTAGE_SQLSTATES)
    if type(error.orig).__module__.startswith("psycopg"):
        return True
    return any(word in str(error.orig).lower() for word in _TRANSIENT_SQLITE)


def may_be_repeated(error: BaseException) -> bool:
    """Whether a transaction of ours that failed so can simply be tried again: an outage, or a lost race."""
    sqlstate = _sqlstate(error)
    return is_outage(error) or (sqlstate is not None and sqlstate.startswith(_CONFLICT_SQLSTATES))


def _sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's code of an error: psycopg 3 and psycopg2 have different names for it."""
    of_driver = getattr(error, "orig", None)
    return getattr(of_driver, "sqlstate", None) or getattr(of_driver, "pgcode", None)


def _of_three(pool: Pool) -> Pool:
    """Whatever sizes the application has chosen for its own: too few would let the engine wait for itself."""
    if isinstance(pool, QueuePool):
        pool._overflow, pool._max_overflow = -MOST_CONNECTIONS, 0
    return pool


@contextmanager
def _without_parameters() -> Iterator[None]:
    """What the database refuses here is told without the values of the statement: they are payloads of others."""
    try:
        yield
    except StatementError as error:
        error.hide_parameters = True
        raise


def _keep_prepared(conn: Connection) -> None:
    """End what has only read, so that psycopg keeps what it has prepared: a rollback makes it forget.

    By the driver: who listens to commits has nothing to learn from it. If it fails, SQLAlchemy's own end of it says so;
    and if what was asked has failed, it may be because of what is prepared.
    """
    # Other pools keep nothing, or give one connection to all.
    if (
        conn.dialect.driver != "psycopg"
        or not isinstance(conn.engine.pool, QueuePool)
        or conn.closed
        or conn.invalidated
    ):
        return
    raw: Any = conn.connection.dbapi_connection
    if raw is not None and state_of(raw) == BEGUN:
        with suppress(conn.dialect.loaded_dbapi.Error):
            raw.commit()


def no_turn_to_give_back() -> None:
    """No turn to give back."""


def _close_late(_connection: Any, record: Any) -> None:
    """A thread has ended what it was doing when its pool was closed."""
    record.invalidate()


def begin_if_needed(conn: Connection, statement: str = "BEGIN") -> None:
    """Begin on SQLite, where the driver would only do so before the first change of a row."""
    if not in_transaction(conn):
        conn.exec_driver_sql(statement)


def in_transaction(conn: Connection) -> bool:
    """Whether SQLite is in a transaction, whatever SQLAlchemy calls one."""
    raw: Any = conn.connection.driver_connection  # of aiosqlite too
    return bool(raw.in_transaction)


def configure_sqlite(engine: Engine) -> None:
    """Make savepoints and immediate transactions work; safe to call again for the same engine."""
    if getattr(engine, "_edda_configured", False):
        return
    engine._edda_configured = True  # type: ignore[attr-defined]

    was_open = False

    @event.listens_for(engine, "do_connect")
    def _look_for_the_folder(_dialect: Any, _record: Any, cargs: list[Any], _cparams: Any) -> None:
        # SQLite would say that it cannot open the file, which is also what it says when things will be better in a moment.
        folder = os.path.dirname(str(cargs[0])) if cargs else ""
        if folder and not was_open and not str(cargs[0]).startswith("file:") and not os.path.isdir(folder):
            raise ConfigurationError(
                f"The SQLite database {cargs[0]} cannot be made: the folder {folder} does not exist. Make it, or correct the"
                " URL; sqlite:///app.db is relative to where the process was started, sqlite:////srv/app.db is not."
            )

    @event.listens_for(engine, "connect")
    def _wait_longer(dbapi_connection: Any, _record: Any) -> None:
        nonlocal was_open
        was_open = True
        cursor = dbapi_connection.cursor()
        cursor.execute("PRAGMA busy_timeout")
        (milliseconds,) = cursor.fetchone()
        cursor.execute("PRAGMA busy_timeout = 100")
        with suppress(sqlite3.OperationalError):
            # Kept in the file; cannot be changed while somebody writes, and then a later connection does it.
            cursor.execute("PRAGMA journal_mode = WAL")
        patience = _BUSY_TIMEOUT_MS if milliseconds <= _PYTHON_DEFAULT_BUSY_MS else milliseconds
        cursor.execute(f"PRAGMA busy_timeout = {patience}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin_immediate(conn: Connection) -> None:
        if conn.get_execution_options().get(WRITE_OPTION):
            adapted: Any = conn.connection.dbapi_connection
            adapted.isolation_level = None
            begin_if_needed(conn, "BEGIN IMMEDIATE")

    @event.listens_for(engine, "savepoint")
    def _begin_before_savepoint(conn: Connection, _name: str) -> None:
        # sqlite3 begins before INSERT and its kin, but not before SAVEPOINT; the outermost RELEASE would commit.
        begin_if_needed(conn)

    @event.listens_for(engine, "checkin")
    def _restore(dbapi_connection: Any, _record: Any) -> None:
        if dbapi_connection is not None and dbapi_connection.isolation_level is None:
            dbapi_connection.isolation_level = ""
