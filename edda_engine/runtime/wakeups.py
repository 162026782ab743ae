"""What wakes a worker: a clock for what is due next, and on SQLite the file itself.

On PostgreSQL other processes are heard on the connection that shows life (see ``runtime.liveness``), and told by
:mod:`edda_engine.runtime.notifier`. A wake-up only says "look": it may come for nothing, and it may be lost, because
the claimer looks now and then without one.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from edda_engine.storage.database import Database

_log = logging.getLogger(__name__)

TICK_SECONDS = 0.02
_AFTER_ERROR_SECONDS = 0.5


class Alarm:
    """Rings once, at the earliest of the times that it was asked for. Lives on the loop.

    Whoever hears it asks what is next and sets it again, so the later times need not be remembered.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._call = ring
        self._handle: asyncio.TimerHandle | None = None

    def ring_in(self, seconds: float) -> None:
        """Ring after so many seconds, or earlier."""
        loop = asyncio.get_running_loop()
        when = loop.time() + max(0.0, seconds)
        if self._handle is not None:
            if self._handle.when() <= when:
                return
            self._handle.cancel()
        self._handle = loop.call_at(when, self._ring)

    def cancel(self) -> None:
        """Do not ring."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _ring(self) -> None:
        self._handle = None
        self._call()


class FileWatch:
    """Notices on SQLite that a transaction was committed, by whatever process, without asking more than the file.

    ``PRAGMA data_version`` changes on a connection when another one has committed. It is asked often, on a thread of
    its own, because the file may be locked for a moment. Then *changed* is called there with the connection: what it
    reads tells commits that matter from the many of this very process that do not.
    """

    def __init__(self, database: Database, *, changed: Callable[[Connection], None]) -> None:
        self._database, self._changed = database, changed
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="edda-filewatch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    async def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                self._watch()
            except (SQLAlchemyError, sqlite3.Error) as error:
                _log.debug("The database file cannot be watched for a moment: %s", error)
                self._stopping.wait(_AFTER_ERROR_SECONDS)

    def _watch(self) -> None:
        with self._database.autocommitting() as conn:
            # The driver itself: this is asked too often to pay for more.
            raw: Any = conn.connection.dbapi_connection
            seen = None
            while not self._stopping.is_set():
                version = raw.execute("PRAGMA data_version").fetchall()
                if version != seen:
                    seen = version
                    self._changed(conn)
                time.sleep(TICK_SECONDS)  # cheaper than to wait for the end as well
