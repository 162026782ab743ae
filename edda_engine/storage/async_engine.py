"""The same database for coroutines, made only when an async activity first asks for its session."""

from __future__ import annotations

import threading

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from edda_engine.errors import ConfigurationError
from edda_engine.storage.connecting import connect_like
from edda_engine.storage.database import configure_sqlite
from edda_engine.storage.guards import let_guards_be_asked

_DRIVERS = {"postgresql": "postgresql+psycopg", "sqlite": "sqlite+aiosqlite"}


class AsyncEngines:
    """Holds one asyncio engine on the URL of the shared one."""

    def __init__(self, engine: Engine) -> None:
        self._shared = engine
        self._lock = threading.Lock()
        self._made: AsyncEngine | None = None

    def sync_face(self) -> Engine:
        """The engine to connect with inside a greenlet; opens no connection by itself.

        :raises ConfigurationError: the driver is not installed.
        """
        with self._lock:
            if self._made is None:
                url = self._shared.url.set(drivername=_DRIVERS[self._shared.dialect.name])
                try:
                    self._made = create_async_engine(url)
                except ImportError as error:
                    raise ConfigurationError(
                        f"Async activities need the driver of {url.drivername!r}, which is not installed ({error})."
                        " Install edda-wsgi[async]."
                    ) from error
                let_guards_be_asked(self._made.sync_engine)
                if url.get_backend_name() == "sqlite":
                    configure_sqlite(self._made.sync_engine)
                else:
                    connect_like(self._shared, self._made.sync_engine)
            return self._made.sync_engine

    async def close(self) -> None:
        """Close its connections."""
        if self._made is not None:
            await self._made.dispose()
            self._made = None
