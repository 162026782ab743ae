"""What a handler of events does belongs to the transaction that remembers its event.

How it thinks. The endpoint has begun a transaction of its own. A handler is called in an app context of its own, whose
``db.session`` works in savepoints on that transaction's connection, as it does in an activity: the handler's
``commit()`` and ``rollback()`` end savepoints, and only the endpoint commits. A handler of an application without a
shared session has no ``db.session`` to join with, but what it starts and sends is written there all the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session

from edda_engine.core.ports import current_place
from edda_engine.errors import UsageError
from edda_engine.runtime.attempts import Attempt
from edda_wsgi.writers import Writers

_ENDS_TRANSACTION = re.compile(r"\s*(commit|rollback(?!\s+to)|end|abort)\b", re.IGNORECASE)
_COMMITS_BY_ITSELF = (
    "What a handler of events writes is committed with the event, not by itself: use the session's commit() and"
    " rollback(), which end savepoints, or begin_nested(); leave the connection's own transaction alone."
)


class HandlerSessions(Protocol):
    """The sessions of one call of a handler."""

    def session(self) -> Any:
        """The session on the joined connection."""
        ...

    def settle(self) -> None:
        """The handler has returned: flush what is pending."""
        ...

    def discard(self) -> None:
        """The handler has failed: drop what is pending."""
        ...


@dataclass
class Joining:
    """A transaction that the code under way belongs to."""

    connection: Connection
    after_commit: list[Callable[[], None]] = field(default_factory=list)
    """To be called once the transaction has committed."""
    sessions: HandlerSessions | None = None
    is_complete: bool = False
    """The endpoint itself commits now; before, nobody may."""
    is_spoilt: bool = False

    def session(self) -> Any:
        """The session whose writes belong to the transaction."""
        assert self.sessions is not None
        return self.sessions.session()

    def serves(self, engine: Any) -> bool:
        """Whether *engine* is the one that the transaction is on."""
        return engine is self.connection.engine


joining: ContextVar[Joining | None] = ContextVar("edda_joining", default=None)
"""What the calling code joins, if it is a handler of events."""


def connection_for(bind: Engine | Connection) -> Engine | Connection:
    """What a session that would use *bind* is to use here: in a handler, the connection of its event's transaction."""
    joined = joining.get()
    return joined.connection if joined is not None and joined.serves(bind) else bind


def refuse_to_wait_for_itself(
    call: str, writers: Writers | None, *, is_sqlite: bool, conn: Connection | None = None
) -> None:
    """SQLite admits one writer: beside a transaction that is open here, a second one would wait for ever.

    :param conn: The connection of the transaction that is joined, ``None`` if it is to be one of its own.
    :raises UsageError: called in an activity that has begun, in a handler of events, or after a session has written.
    """
    place = current_place.get()
    if not is_sqlite:
        return
    if conn is not None:
        if writers is not None and writers.is_waiting_for_itself(beside=conn):
            raise UsageError(
                f"{call} would join a session while this thread has written in another one, and SQLite admits one writer:"
                " it would wait for itself. Commit or roll back that one first, or use one session for both."
            )
        return
    if isinstance(place, Attempt) and place.transaction.is_begun:
        raise UsageError(
            f"{call} in activity {place.activity_id!r} needs a second transaction while the activity's own one is open,"
            " and SQLite admits one writer. Leave session= out: the change is then part of the activity's step."
        )
    if joining.get() is not None:
        raise UsageError(
            f"{call} in a handler of events needs a second transaction while the event's own one is open, and SQLite"
            " admits one writer. Leave session= out: the change is then committed with the event."
        )
    if writers is not None and writers.is_waiting_for_itself():
        raise UsageError(
            f"{call} is committed at once, in a transaction of its own, but this thread has written in a session that is not"
            " committed, and SQLite admits one writer: it would wait for itself. Commit first, or pass that session as"
            " session=... to make both one transaction."
        )


@contextmanager
def guarded(conn: Connection) -> Iterator[Joining]:
    """Offer the transaction of *conn* for joining; nothing but leaving this block well lets it be committed."""
    joined = Joining(conn)

    def refuse_commit(_conn: Connection) -> None:
        if not joined.is_complete:
            # SQLAlchemy takes its transaction for ended from here on; the database must as well.
            joined.is_spoilt = True
            raw: Any = conn.connection.dbapi_connection
            raw.rollback()
            raise UsageError(_COMMITS_BY_ITSELF)

    def refuse_statement(_conn: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if joined.is_spoilt or _ENDS_TRANSACTION.match(statement) is not None:
            raise UsageError(_COMMITS_BY_ITSELF)

    event.listen(conn, "commit", refuse_commit)
    event.listen(conn, "before_cursor_execute", refuse_statement)
    yield joined
    if joined.is_spoilt:
        raise UsageError(_COMMITS_BY_ITSELF)
    joined.is_complete = True


@contextmanager
def joined_by(joined: Joining, sessions: HandlerSessions) -> Iterator[None]:
    """Let the code inside join: what it leaves uncommitted in its session is kept, or dropped if it raises."""
    joined.sessions = sessions
    token = joining.set(joined)
    try:
        yield
        sessions.settle()
    except BaseException:
        with suppress(Exception):  # a broken connection may fail again; what the handler raised says more
            sessions.session().rollback()
            sessions.discard()
        raise
    finally:
        joining.reset(token)
        joined.sessions = None


class OwnSessions:
    """A session for handlers of an application that shares none."""

    def __init__(self, joined: Joining) -> None:
        self._joined = joined
        self._session: Session | None = None

    def session(self) -> Session:
        """Made on first use."""
        if self._session is None:
            self._session = Session(self._joined.connection, join_transaction_mode="create_savepoint")
        return self._session

    def settle(self) -> None:
        """Release the savepoint."""
        if self._session is not None:
            if self._session.in_transaction():
                self._session.commit()
            self._session.close()

    def discard(self) -> None:
        """Drop what is pending."""
        if self._session is not None:
            self._session.close()
