"""What surrounds user code: the application's context, and the session that shares the attempt's transaction.

The engine knows nothing of Flask; a front door gives it one of these. :class:`PlainEnvironment` is the one of
``EddaApp``: no application context, plain SQLAlchemy sessions.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, Protocol

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from edda_engine.runtime.transactions import AttemptTransaction


class Sessions(Protocol):
    """The sessions of one attempt."""

    def session(self) -> Any:
        """The session of the attempt's transaction."""
        ...

    def settle(self) -> None:
        """The activity has returned: flush what is pending into the transaction, and let go of it."""
        ...

    def discard(self) -> None:
        """The activity has failed: drop what is pending."""
        ...


class Environment(Protocol):
    """Entered around user code."""

    def around_body(self) -> AbstractContextManager[None]:
        """Entered once for each body, on the loop thread; may not block."""
        ...

    def around_callback(self) -> AbstractContextManager[None]:
        """Entered around a post-commit callback, on a pool thread."""
        ...

    def around_activity(self, transaction: AttemptTransaction) -> AbstractContextManager[Sessions]:
        """Entered once for each attempt of a sync activity, on a pool thread."""
        ...

    def around_async_activity(self, transaction: AttemptTransaction) -> AbstractAsyncContextManager[Sessions]:
        """Entered once for each attempt of an async activity, on the loop thread."""
        ...


class AttemptSession(Session):
    """A session whose every statement belongs to one attempt's transaction."""

    def __init__(self, *, transaction: AttemptTransaction, **options: Any) -> None:
        super().__init__(join_transaction_mode="create_savepoint", **options)
        self._attempt = transaction

    def get_bind(self, *_: Any, **__: Any) -> Engine | Connection:
        """The attempt's connection; the first call opens it."""
        return self._attempt.connection()


class PlainSessions:
    """Sessions made here, closed here."""

    def __init__(self, transaction: AttemptTransaction, *, is_async: bool) -> None:
        self._transaction, self._is_async = transaction, is_async
        self._sync: Session | None = None
        self._given: Any = None

    def session(self) -> Any:
        """The same session for the whole attempt; an ``AsyncSession`` in an async activity."""
        if self._given is None:
            if self._is_async:
                session = AsyncSession(
                    sync_session_class=AttemptSession, transaction=self._transaction, expire_on_commit=False
                )
                self._given, self._sync = session, session.sync_session
            else:
                self._given = self._sync = AttemptSession(transaction=self._transaction)
        return self._given

    def settle(self) -> None:
        """Flush and release the savepoint."""
        if self._sync is not None:
            if self._sync.in_transaction():
                self._sync.commit()
            self._sync.close()

    def discard(self) -> None:
        """Drop what is pending."""
        if self._sync is not None:
            self._sync.close()


class PlainEnvironment:
    """No application around user code."""

    @contextmanager
    def around_body(self) -> Iterator[None]:
        """Nothing surrounds a body."""
        yield

    @contextmanager
    def around_callback(self) -> Iterator[None]:
        """Nothing surrounds a callback."""
        yield

    @contextmanager
    def around_activity(self, transaction: AttemptTransaction) -> Iterator[PlainSessions]:
        """A session of our own for each attempt."""
        yield PlainSessions(transaction, is_async=False)

    @asynccontextmanager
    async def around_async_activity(self, transaction: AttemptTransaction) -> AsyncIterator[PlainSessions]:
        """An ``AsyncSession`` of our own for each attempt."""
        yield PlainSessions(transaction, is_async=True)
