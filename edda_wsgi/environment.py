"""User code of a workflow runs inside the application: an app context around each body and each attempt."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

from flask import Flask
from flask.ctx import AppContext
from sqlalchemy import Connection

from edda_engine.runtime.attempts import Attempt
from edda_engine.runtime.environment import PlainSessions
from edda_engine.runtime.transactions import AttemptTransaction
from edda_wsgi.session import SessionSource

T = TypeVar("T")

_written_at_the_end: ContextVar[list[Callable[[Connection], Any]]] = ContextVar("edda_written_at_the_end")


def write_in_step(attempt: Attempt, write: Callable[[Connection], T]) -> T | None:
    """Write as part of an activity's step: at once, or in an async one when it has returned, and then ``None``.

    A plain call in an async activity cannot wait for SQL without blocking the loop.
    """
    if attempt.is_async:
        _written_at_the_end.get().append(write)
        return None
    return write(attempt.transaction.connection())


class _AsyncSessions(PlainSessions):
    """The session of an async activity, and what is written beside it."""

    def __init__(self, transaction: AttemptTransaction, writes: list[Callable[[Connection], Any]]) -> None:
        super().__init__(transaction, is_async=True)
        self._attempt, self._writes = transaction, writes

    def settle(self) -> None:
        """Flush what is pending, then write the rest in the order of the calls."""
        super().settle()
        for write in self._writes:
            write(self._attempt.connection())


class _AroundBody:
    variable: ContextVar[AppContext] | None = None
    """Where Flask keeps the app context, which it tells nobody; found once."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def __enter__(self) -> None:
        self._context = self._app.app_context()
        self._context.push()
        if _AroundBody.variable is None:
            _AroundBody.variable = _variable_of(self._context)

    def __exit__(self, *_: object) -> None:
        # A body that is thrown away ends where the garbage collector runs, perhaps in the midst of a request.
        if self.variable is not None and self.variable.get(None) is self._context:
            self.variable.set(self._app.app_context())


def _variable_of(pushed: AppContext) -> ContextVar[AppContext] | None:
    found = (variable for variable, value in copy_context().items() if value is pushed)
    return next((variable for variable in found if variable.name.startswith("flask.")), None)


class _AroundActivity:
    def __init__(self, app: Flask, source: SessionSource | None, transaction: AttemptTransaction) -> None:
        self._app, self._source, self._transaction = app, source, transaction

    def __enter__(self) -> Any:
        self._context = self._app.app_context()
        self._context.push()
        try:
            return PlainSessions(self._transaction, is_async=False) if self._source is None else self._source.sessions()
        except BaseException as error:
            self._context.pop(error)
            raise

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._context.pop(error)


class FlaskEnvironment:
    """See ``edda_engine.runtime.environment.Environment``."""

    def __init__(self, app: Flask, source: SessionSource | None) -> None:
        self._app, self._source = app, source

    def around_body(self) -> AbstractContextManager[None]:
        """A fresh app context, for ``current_app`` and ``g``.

        Its teardown functions are not called: they are made for threads and would block the loop, and a body has
        nothing to tear down, being refused every session. What comes after the body, in a finalizer perhaps, meets an
        empty one: that which was pushed is not kept, and needs no garbage collector to go.
        """
        return _AroundBody(self._app)

    @contextmanager
    def around_callback(self) -> Iterator[None]:
        """A fresh app context."""
        with self._app.app_context():
            yield

    def around_activity(self, transaction: AttemptTransaction) -> AbstractContextManager[Any]:
        """A fresh app context with a ``db.session`` of its own, in the attempt's transaction."""
        return _AroundActivity(self._app, self._source, transaction)

    @asynccontextmanager
    async def around_async_activity(self, transaction: AttemptTransaction) -> AsyncIterator[Any]:
        """A fresh app context; its teardown functions, which may block, are called on another thread."""
        context = self._app.app_context()
        context.push()
        writes: list[Callable[[Connection], Any]] = []
        _written_at_the_end.set(writes)
        try:
            yield _AsyncSessions(transaction, writes)
        finally:
            await asyncio.to_thread(self._tear_down, context)

    def _tear_down(self, context: AppContext) -> None:
        takes_context = "ctx" in inspect.signature(self._app.do_teardown_appcontext).parameters
        arguments: tuple[Any, ...] = (context,) if takes_context else ()
        self._app.do_teardown_appcontext(*arguments)
