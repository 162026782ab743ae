"""User code of a workflow runs inside the application: an app context around each body and each attempt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask

from edda_engine.runtime.environment import PlainSessions
from edda_engine.runtime.transactions import AttemptTransaction
from edda_wsgi.session import SessionSource


class FlaskEnvironment:
    """See ``edda_engine.runtime.environment.Environment``."""

    def __init__(self, app: Flask, source: SessionSource | None) -> None:
        self._app, self._source = app, source

    @contextmanager
    def around_body(self) -> Iterator[None]:
        """A fresh app context."""
        with self._app.app_context():
            yield

    @contextmanager
    def around_activity(self, transaction: AttemptTransaction, *, is_async: bool) -> Iterator[Any]:
        """A fresh app context with a ``db.session`` of its own, in the attempt's transaction."""
        with self._app.app_context():
            if is_async or self._source is None:
                yield PlainSessions(transaction, is_async=is_async)
            else:
                yield self._source.sessions(transaction)
