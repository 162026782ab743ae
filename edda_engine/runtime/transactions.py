"""One attempt's transaction: begun at its first SQL, committed with its history row, refusable from outside.

How it thinks. The transaction belongs to the thread (or greenlet) that runs the activity. Sessions borrow its
connection and work in savepoints, so whatever user code commits or rolls back stays inside. Only
:meth:`AttemptTransaction.commit` makes anything durable, and only together with the step's row. An attempt that
is late is refused by another thread: from then on no statement of it is executed, and what it wrote is undone.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from edda_engine.errors import LeaseLostError, PayloadError, UsageError
from edda_engine.runtime.probes import Probe
from edda_engine.runtime.savepoints import FirstSavepoint
from edda_engine.storage.commit import Outcome, Saved, Step, commit_step
from edda_engine.storage.database import WRITE_OPTION, Database, is_outage, may_be_repeated, no_turn_to_give_back
from edda_engine.storage.guards import GUARD_OPTION

_log = logging.getLogger(__name__)


_ENDS_TRANSACTION = re.compile(r"\s*(commit|rollback(?!\s+to)|end|abort)\b", re.IGNORECASE)
_COMMITS_BY_ITSELF = (
    "An activity's transaction is committed with its history row, not by itself: use the session's commit() and"
    " rollback(), which end savepoints, or begin_nested(); leave the connection's own transaction alone."
)

_IS_OVER = "This attempt of the activity is over; it cannot use the database any more."

_TELL_THEIR_STATE = ("psycopg", "psycopg2")
"""Drivers of PostgreSQL that tell, without asking the server, whether anything was sent in a transaction."""


class _State(Enum):
    OPEN = auto()
    COMMITTING = auto()
    REFUSED = auto()
    OVER = auto()


class AttemptTransaction:
    """The database side of one attempt of one activity."""

    def __init__(
        self,
        database: Database,
        find_engine: Callable[[], Engine],
        *,
        probe: Probe,
        takes_turn: bool,
        may_be_late: bool,
    ) -> None:
        self._database, self._find_engine, self._probe = database, find_engine, probe
        self._takes_turn, self._may_be_late = takes_turn, may_be_late
        self._connection: Connection | None = None
        self._first_savepoint: FirstSavepoint | None = None
        self._give_back: Callable[[], None] = no_turn_to_give_back
        self._state = _State.OPEN
        self._is_spoilt = False
        self._lock = threading.Lock()
        self._backend_pid: int | None = None
        self.saw_outage = False

    @property
    def is_begun(self) -> bool:
        """True once the activity has executed SQL."""
        return self._connection is not None

    @property
    def is_refused(self) -> bool:
        """True once the loop has called :meth:`refuse`."""
        return self._state is _State.REFUSED

    def serves(self, engine: Any) -> bool:
        """Whether *engine* is the one whose work belongs to this transaction."""
        return engine is self._database.engine

    def connection(self) -> Connection:
        """The connection of this attempt; the first call opens it and begins.

        :raises LeaseLostError: the attempt was refused; passes through ``except Exception``.
        """
        self._refuse_if_over()
        if self._connection is None:
            if self._takes_turn:
                self._give_back = self._database.take_turn()
            try:
                options = {WRITE_OPTION: True, GUARD_OPTION: self}
                self._connection = conn = self._find_engine().connect().execution_options(**options)
                if self._takes_turn and conn.dialect.driver in _TELL_THEIR_STATE:
                    self._first_savepoint = FirstSavepoint()
                self._need_fresh_reads(conn)
                conn.begin()
                self._remember_backend(conn)
            except BaseException as error:
                self.saw_outage = self.saw_outage or is_outage(error)
                self._let_go()
                raise
        return self._connection

    def hand_over(self) -> bool:
        """The step, which has no transaction, goes to the committer. False if the attempt was refused before."""
        with self._lock:
            if self._state is not _State.OPEN:
                return False
            self._state = _State.COMMITTING
            return True

    def commit(self, step: Step) -> Outcome:
        """Write the history row and commit; on any other outcome than :class:`Saved` all is rolled back.

        :raises sqlalchemy.exc.DBAPIError: the database refuses; whether it is an outage tells :attr:`saw_outage`.
        """
        if self._is_spoilt:
            raise UsageError(_COMMITS_BY_ITSELF)
        with self._lock:
            self._refuse_if_over()
            self._state = _State.COMMITTING
        conn = self._connection
        assert conn is not None
        try:
            outcome = self._write(conn, step)
            if isinstance(outcome, Saved):
                self._probe("activity.before_commit")
                conn.get_transaction().commit()  # type: ignore[union-attr]
                self._probe("activity.after_commit")
            return outcome
        except DBAPIError as error:
            self.saw_outage = self.saw_outage or is_outage(error)
            raise
        finally:
            self._close()

    def _write(self, conn: Connection, step: Step) -> Outcome:
        """The row itself being refused is the fault of its values: to run the activity again could not help."""
        try:
            return commit_step(conn, step)
        except Exception as error:
            if may_be_repeated(error):
                raise
            raise refused_by_database(f"step {step.key.activity_id!r}", error) from None

    def abandon(self) -> None:
        """Roll back and return the connection."""
        if self._connection is not None:
            self.saw_outage = self.saw_outage or self._connection.invalidated
        self._close()

    def refuse(self) -> bool:
        """Called by the loop: the attempt is late. False if it is committing already.

        The database's locks are freed as soon as can be; the activity's thread may still run.
        """
        with self._lock:
            if self._state is not _State.OPEN:
                return self._state is _State.REFUSED
            self._state = _State.REFUSED
            conn = self._connection
        if conn is not None and self._database.is_sqlite:
            self._undo_sqlite(conn)
        return True

    def terminate_backend(self) -> None:
        """PostgreSQL: end the refused transaction from outside; runs SQL, so not on the loop."""
        if self._backend_pid is None or self._database.is_sqlite:
            return
        try:
            with self._database.service.connect() as conn:
                conn.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": self._backend_pid})
        except SQLAlchemyError as error:
            _log.warning("A late activity's transaction could not be ended from outside: %s", error)

    def _refuse_if_over(self) -> None:
        if self._state in (_State.REFUSED, _State.OVER):
            raise LeaseLostError(_IS_OVER)

    def before_commit(self, conn: Connection) -> None:
        """Only :meth:`commit` may; whoever else tries has spoilt the attempt (see ``storage.guards``)."""
        if self._state is not _State.COMMITTING:
            # SQLAlchemy takes its transaction for ended from here on; the database must as well, and the attempt.
            self._is_spoilt = True
            raw: Any = conn.connection.dbapi_connection
            raw.rollback()
            raise UsageError(_COMMITS_BY_ITSELF)

    def before_statement(self, statement: str) -> None:
        """Nothing that ends the transaction, and nothing once the attempt is over."""
        if _ENDS_TRANSACTION.match(statement) is not None:
            raise UsageError(_COMMITS_BY_ITSELF)
        self._refuse_if_unusable()

    def _refuse_if_unusable(self) -> None:
        if self._is_spoilt:
            raise UsageError(_COMMITS_BY_ITSELF)
        if self._state is _State.REFUSED:
            raise LeaseLostError(_IS_OVER)

    def begins_savepoint(self, conn: Connection, name: str) -> bool:
        """Whether the savepoint *name* need not be sent."""
        self._refuse_if_unusable()
        first = self._first_savepoint
        return first is not None and first.begins(conn.connection.dbapi_connection, name)

    def ends_savepoint(self, conn: Connection, name: str) -> bool:
        """Whether its release need not be sent."""
        self._refuse_if_unusable()
        first = self._first_savepoint
        return first is not None and first.ends(conn.connection.dbapi_connection, name)

    def instead_of(self, cursor: Any, statement: str) -> bool:
        """Whether nothing need be sent for *statement*."""
        return self._first_savepoint is not None and self._first_savepoint.stands_for(cursor, statement)

    def _need_fresh_reads(self, conn: Connection) -> None:
        # In an older snapshot the lease, which is renewed meanwhile, could not be checked at the end.
        if self._database.reads_a_snapshot(conn):
            conn.execution_options(isolation_level="READ COMMITTED")

    def _remember_backend(self, conn: Connection) -> None:
        # Asked of the server: behind a pooler the driver knows the pooler's number.
        if self._may_be_late and not self._database.is_sqlite:
            self._backend_pid = conn.execute(text("SELECT pg_backend_pid()")).scalar()

    def _undo_sqlite(self, conn: Connection) -> None:
        raw: Any = conn.connection.dbapi_connection
        if not isinstance(raw, sqlite3.Connection):
            return
        with suppress(sqlite3.Error):
            # First deny everything but ROLLBACK: a statement that slipped in after it would commit by itself.
            raw.set_authorizer(_only_rollback)
            raw.interrupt()
            raw.rollback()
        self._give_back()

    def _close(self) -> None:
        with self._lock:
            was_refused = self._state is _State.REFUSED
            self._state = _State.REFUSED if was_refused else _State.OVER
        self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            was_refused = self._state is _State.REFUSED
            conn, self._connection = self._connection, None
        try:
            if conn is not None:
                if was_refused or self._is_spoilt:
                    # Its transaction was ended behind its back; nobody else may get this connection.
                    with suppress(SQLAlchemyError):
                        conn.invalidate()
                with suppress(SQLAlchemyError):
                    conn.close()
        finally:
            self._give_back()


def refused_by_database(owner: str, refused: Exception) -> PayloadError:
    """What to say of a row that cannot be stored, without the statement: that holds what was refused."""
    said = str(getattr(refused, "orig", None) or refused).strip() or type(refused).__name__
    return PayloadError(owner, "$", f"was refused by the database: {said.splitlines()[0]}")


def outage_in_words(error: BaseException) -> str:
    """Why the database did not do it, for a log: never what a user's exception says."""
    said = str(getattr(error, "orig", None) or "").strip()
    return said.splitlines()[0] if said else type(error).__name__


def _only_rollback(action: int, first: str | None, *_: Any) -> int:
    allowed = action == sqlite3.SQLITE_TRANSACTION and first == "ROLLBACK"
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY
