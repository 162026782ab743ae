"""Whoever guards a connection is asked before what is done on it.

One set of listeners for an engine, installed before anything is executed there: to listen on each connection costs more
than a statement, and to begin to listen while others execute disturbs them. About savepoints the engine's dialect asks,
because the events of savepoints cannot keep a statement from being made.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, event

GUARD_OPTION = "edda_guard"
"""An execution option of a connection: its :class:`Guard`."""


class Guard(Protocol):
    """What is asked. An exception keeps the statement, or the commit, from happening."""

    def before_statement(self, statement: str) -> None:
        """A statement is to be executed."""
        ...

    def begins_savepoint(self, conn: Connection, name: str) -> bool:
        """The savepoint begins: has it done so without a statement?"""
        ...

    def ends_savepoint(self, conn: Connection, name: str) -> bool:
        """It is released: has that been done without a statement?"""
        ...

    def instead_of(self, cursor: Any, statement: str) -> bool:
        """Whether the statement was done in another way, and is not to be sent."""
        ...

    def before_commit(self, conn: Connection) -> None:
        """The transaction is to be committed."""
        ...


def let_guards_be_asked(engine: Engine) -> None:
    """Safe to call again for the same engine."""
    if not event.contains(engine, "commit", _before_commit):
        event.listen(engine, "before_cursor_execute", _before_statement)
        event.listen(engine, "do_execute", _instead_of)
        event.listen(engine, "do_executemany", _instead_of)
        event.listen(engine, "do_execute_no_params", _instead_of_plain)
        event.listen(engine, "commit", _before_commit)
    dialect: Any = engine.dialect
    if "do_savepoint" not in vars(dialect):
        # It is the engine's own. If somebody else has replaced this, all savepoints are sent.
        dialect.do_savepoint = partial(_savepoint, dialect.do_savepoint)
        dialect.do_release_savepoint = partial(_release, dialect.do_release_savepoint)


def _guard_of(conn: Connection) -> Guard | None:
    return conn.get_execution_options().get(GUARD_OPTION)


def _before_statement(conn: Connection, _cursor: Any, statement: str, *_: Any) -> None:
    guard = _guard_of(conn)
    if guard is not None:
        guard.before_statement(statement)


def _instead_of(cursor: Any, statement: str, _parameters: Any, context: Any) -> bool:
    guard = _guard_of(context.root_connection)
    return guard is not None and guard.instead_of(cursor, statement)


def _instead_of_plain(cursor: Any, statement: str, context: Any) -> bool:
    return _instead_of(cursor, statement, None, context)


def _savepoint(send: Callable[[Connection, str], None], conn: Connection, name: str) -> None:
    guard = _guard_of(conn)
    if guard is None or not guard.begins_savepoint(conn, name):
        send(conn, name)


def _release(send: Callable[[Connection, str], None], conn: Connection, name: str) -> None:
    guard = _guard_of(conn)
    if guard is None or not guard.ends_savepoint(conn, name):
        send(conn, name)


def _before_commit(conn: Connection) -> None:
    guard = _guard_of(conn)
    if guard is not None:
        guard.before_commit(conn)
