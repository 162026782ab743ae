"""What wakes a worker: a clock for what is due next, and on SQLite the file itself.

On PostgreSQL other processes are heard on the connection that shows life (see ``runtime.liveness``), and told by
:mod:`edda_engine.runtime.notifier`. A wake-up only says "look": it may come for nothing, and it may be lost, because
the claimer looks now and then without one.
"""

from __future__ import annotations

import asyncio
import bisect
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
REMEMBERED = 1000
"""So many times an alarm remembers."""

_MOMENT_SECONDS = 0.0005
_AFTER_ERROR_SECONDS = 0.5


class Alarm:
    """Rings at the times that it was asked for. Lives on the loop.

    Of very many it remembers the nearest: whoever hears it asks what is next, and sets it for that.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._call = ring
        self._times: list[float] = []
        self._handle: asyncio.TimerHandle | None = None

    def ring_in(self, seconds: float) -> None:
        """Ring after so many seconds."""
        when = asyncio.get_running_loop().time() + max(0.0, seconds)
        bisect.insort(self._times, when)
        del self._times[REMEMBERED:]
        if self._handle is None or when < self._handle.when():
            self._set()

    def cancel(self) -> None:
        """Do not ring."""
        self._times.clear()
        self._set()

    def _set(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._times:
            self._handle = asyncio.get_running_loop().call_at(self._times[0], self._ring)

    def _ring(self) -> None:
        # What is due in the same moment is one reason to ring.
        del self._times[: bisect.bisect_right(self._times, asyncio.get_running_loop().time() + _MOMENT_SECONDS)]
        self._set()
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
