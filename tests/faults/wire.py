"""The way between an application and its database, as something that breaks where a test wants.

It looks at every SQLAlchemy engine of this process that is on the database, whoever made it: before each commit, after
each commit, and before each statement. What the library does is never replaced.

*Cutting* ends all connections: on PostgreSQL the server ends them, on SQLite each is closed by its own thread before it
is used the next time. *Losing* lets the next commit succeed and then breaks its connection, so that nobody is told.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, event, make_url

from edda_engine.storage.urls import normalized_url

IS_JUDGE = "is_judge"
"""The execution option of engines that belong to the test, and on PostgreSQL the name of their connections."""

_CUT = "cut_before"
_WRITES = re.compile(r"\b(INSERT INTO|DELETE FROM|UPDATE edda)")
_OTHERS = (
    "datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    f" AND application_name <> '{IS_JUDGE}'"
)


class Wire:
    """The connections of one database, until it is closed."""

    def __init__(self, url: str, *, committing: Callable[[str], None] | None = None) -> None:
        """*committing* is called with ``"before"`` and ``"after"`` by the thread that commits."""
        self._url = normalized_url(url).render_as_string(False)
        self._committing = committing
        self._cuts = 0
        self._loser: int | None = None
        self._is_losing = False
        self._lock = threading.Lock()
        self.lost = 0
        """So many answers of commits were lost."""

    def __enter__(self) -> Wire:
        event.listen(Engine, "engine_connect", self._watch)
        event.listen(Engine, "before_cursor_execute", self._before_statement)
        event.listen(Engine, "after_cursor_execute", self._after_statement)
        event.listen(Engine, "commit", self._before_commit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        event.remove(Engine, "engine_connect", self._watch)
        event.remove(Engine, "before_cursor_execute", self._before_statement)
        event.remove(Engine, "after_cursor_execute", self._after_statement)
        event.remove(Engine, "commit", self._before_commit)

    def cut(self) -> None:
        """End all connections."""
        if self._url.startswith("sqlite"):
            self._cuts += 1
        else:
            assert end_connections(self._url) > 0

    def lose_next(self, *, thread: int | None = None) -> None:
        """Lose the answer of the next commit, or of the next one of a thread."""
        with self._lock:
            self._loser, self._is_losing = thread, True

    def _is_ours(self, conn: Connection) -> bool:
        is_here = conn.engine.url.render_as_string(False).replace("+aiosqlite", "") == self._url
        return is_here and not conn.get_execution_options().get(IS_JUDGE)

    def _watch(self, conn: Connection) -> None:
        if not self._is_ours(conn):
            return
        conn.info.setdefault(_CUT, self._cuts)
        dialect: Any = conn.dialect
        if vars(dialect).get("do_commit") is None:
            commit = dialect.do_commit
            dialect.do_commit = lambda connection: self._commit(commit, connection)

    def _commit(self, commit: Callable[[Any], None], connection: Any) -> None:
        commit(connection)
        self._has_committed(connection.dbapi_connection)

    def _has_committed(self, raw: Any) -> None:
        if self._committing is not None:
            self._committing("after")
        with self._lock:
            is_now = self._is_losing and self._loser in (None, threading.get_ident())
            self._is_losing = self._is_losing and not is_now
            self.lost += is_now
        if is_now:
            if isinstance(raw, sqlite3.Connection) or "sqlite" in self._url:
                raise sqlite3.OperationalError("disk I/O error")
            raw.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    def _before_statement(self, conn: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        self._close_if_cut(conn)
        if self._committing is not None and self._commits_itself(conn, statement):
            self._committing("before")

    def _after_statement(self, conn: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if self._commits_itself(conn, statement):
            self._has_committed(conn.connection.dbapi_connection)

    def _commits_itself(self, conn: Connection, statement: str) -> bool:
        """Whether it is a transaction of its own, and writes."""
        is_one = conn.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
        return is_one and self._is_ours(conn) and _WRITES.search(statement) is not None

    def _before_commit(self, conn: Connection) -> None:
        if self._is_ours(conn):
            if self._committing is not None:
                self._committing("before")
            self._close_if_cut(conn)

    def _close_if_cut(self, conn: Connection) -> None:
        if self._is_ours(conn) and conn.info.get(_CUT, self._cuts) < self._cuts:
            raw: Any = conn.connection.dbapi_connection
            raw.close()


def end_connections(url: str) -> int:
    """Let PostgreSQL end every connection to this database but ours; how many there were."""
    with _outside(url) as conn:
        found = conn.execute(
            f"SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE {_OTHERS}"
        ).fetchone()
    assert found is not None
    return int(found[0])


def open_transactions(url: str) -> int:
    """How many connections to this PostgreSQL database, other than ours, are in a transaction that waits for no lock.

    One that does waits for another of these.
    """
    is_open = "state <> 'idle' AND wait_event_type IS DISTINCT FROM 'Lock'"
    with _outside(url) as conn:
        found = conn.execute(f"SELECT count(*) FROM pg_stat_activity WHERE {_OTHERS} AND {is_open}").fetchone()
    assert found is not None
    return int(found[0])


def _outside(url: str) -> psycopg.Connection[Any]:
    """A connection that others who cut at the same time spare, and that no worker may be taken for."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(False)
    return psycopg.connect(plain, autocommit=True, application_name=IS_JUDGE)
