"""Which threads write to the application's SQLite file, so that none of them waits for itself.

SQLite admits one writer. A thread whose session has written, and not committed, holds that place; a second transaction
begun by the same thread would wait for it for the whole busy timeout and then fail. The application's connections are
watched for statements that write; who is still in such a transaction is asked only when somebody wants a second one.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session

_WRITES = re.compile(
    r"\s*(insert|update|delete|replace|create|drop|alter|begin\s+(immediate|exclusive)|with\b.*\b(insert|update|delete))\b",
    re.IGNORECASE | re.DOTALL,
)


class Writers:
    """The connections of one engine that are writing, each with the thread that uses it."""

    def __init__(self, engine: Engine) -> None:
        self._threads: dict[Any, int] = {}
        event.listen(engine, "before_cursor_execute", self._note)
        event.listen(engine, "commit", self._end)
        event.listen(engine, "rollback", self._end)
        event.listen(engine, "checkin", self._forget)

    def note_session(self, session: Session) -> None:
        """Count a session of this thread that may have written before its connections were watched."""
        if not session.in_transaction() or not session.is_active:
            return
        raw: Any = session.connection().connection.dbapi_connection
        # An application that begins its transactions itself is in one that may only have read.
        if isinstance(raw, sqlite3.Connection) and raw.isolation_level is not None and raw.in_transaction:
            self._threads[raw] = threading.get_ident()

    def is_waiting_for_itself(self, beside: Connection | None = None) -> bool:
        """Whether this thread has written in a transaction that is still open, other than that of *beside*."""
        here = threading.get_ident()
        own = None if beside is None else beside.connection.dbapi_connection
        return any(
            thread == here and raw is not own and _is_in_transaction(raw) for raw, thread in list(self._threads.items())
        )

    def _note(self, conn: Connection, _cursor: Any, statement: str, _values: Any, context: Any, _many: bool) -> None:
        if context.isinsert or context.isupdate or context.isdelete or _WRITES.match(statement) is not None:
            self._threads[conn.connection.dbapi_connection] = threading.get_ident()

    def _end(self, conn: Connection) -> None:
        if not conn.invalidated:
            self._threads.pop(conn.connection.dbapi_connection, None)

    def _forget(self, dbapi_connection: Any, _record: Any) -> None:
        self._threads.pop(dbapi_connection, None)


def _is_in_transaction(raw: sqlite3.Connection) -> bool:
    try:
        return raw.in_transaction
    except sqlite3.ProgrammingError:  # it was closed
        return False
