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
        self._times: list[tuple[float, str]] = []
        self._of: dict[str, float] = {}
        self._handle: asyncio.TimerHandle | None = None

    def ring_in(self, seconds: float, whose: str = "") -> None:
        """Ring after so many seconds; for one *whose* time it is, instead of an earlier wish of the same."""
        if whose:
            self.forget(whose)
        when = asyncio.get_running_loop().time() + max(0.0, seconds)
        bisect.insort(self._times, (when, whose))
        if whose:
            self._of[whose] = when
        for _, farthest in self._times[REMEMBERED:]:
            self._of.pop(farthest, None)
        del self._times[REMEMBERED:]
        self._set()

    def forget(self, whose: str) -> None:
        """Whose time this was has gone on already."""
        when = self._of.pop(whose, None)
        if when is not None:
            del self._times[bisect.bisect_left(self._times, (when, whose))]

    def cancel(self) -> None:
        """Do not ring."""
        self._times.clear()
        self._of.clear()
        self._set()

    def _set(self) -> None:
        first = self._times[0][0] if self._times else None
        if self._handle is not None:
            if self._handle.when() == first:
                return
            self._handle.cancel()
        self._handle = None if first is None else asyncio.get_running_loop().call_at(first, self._ring)

    def _ring(self) -> None:
        self._handle = None
        # What is due in the same moment is one reason to ring; that all of it has been forgotten is none.
        limit = asyncio.get_running_loop().time() + _MOMENT_SECONDS
        due = bisect.bisect_left(self._times, (limit, ""))
        for _, whose in self._times[:due]:
            self._of.pop(whose, None)
        del self._times[:due]
        self._set()
        if due:
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
