"""A sign of life that ends with the process, and the watch over the siblings' signs.

On PostgreSQL the sign is a session advisory lock on a connection of its own: the server drops it when the process
dies, however it dies. On SQLite all workers share a host, and the process table tells. Without either (behind a
transaction pooler) only the expiry of leases tells.

The same connection hears what other processes tell this one (see :mod:`edda_engine.storage.notifications`). After it
was opened anew it is not known what was missed, so that counts as news of everything.

Siblings of this host are watched without asking the database: only when the process table says that one has gone, is
its lock looked up. Those of other hosts are looked up each time.

A judgement costs a living worker only repeated attempts, never a double commit: the epoch sees to that. Still,
after this worker itself has lost its connection it waits a little before it judges others, because a restarted
server has dropped everybody's lock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import selectors
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from edda_engine.runtime.processes import host_name, start_time
from edda_engine.storage import notifications, workers
from edda_engine.storage.database import Database
from edda_engine.storage.notifications import CHANNELS, WORKERS_CHANNEL, Hear
from edda_engine.storage.workers import WorkerRecord

_log = logging.getLogger(__name__)

GRACE_SECONDS = 3.0
_AFTER_ERROR_SECONDS = 0.2
_CHECK_SECONDS = 30.0
_STOP_SECONDS = 5.0


class AdvisoryLock:
    """Holds a PostgreSQL advisory lock from a thread of its own, and takes it again after a broken connection.

    :param hear: Told, on that thread, what is notified on the connection; with empty payloads after each connecting.
    """

    def __init__(self, database: Database, hear: Hear) -> None:
        self._database, self._hear = database, hear
        self.key = random.getrandbits(62) + 1
        self.held_since: float | None = None
        self.is_listening = False
        self.was_broken = False
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._interrupt_read, self._interrupt_write = os.pipe()
        self._thread = threading.Thread(target=self._work, name="edda-liveness", daemon=True)

    async def start(self) -> None:
        """Return once the lock is held for the first time."""
        self._thread.start()
        await asyncio.to_thread(self._ready.wait)

    async def stop(self) -> None:
        """Close the connection, which drops the lock."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._ready.set()
        os.write(self._interrupt_write, b"x")
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, _STOP_SECONDS)
        if not self._thread.is_alive():  # it may be waiting for a network that has gone
            os.close(self._interrupt_read)
            os.close(self._interrupt_write)

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                self._hold()
            except (SQLAlchemyError, OSError) as error:
                self.is_listening = False
                if self.held_since is not None:
                    _log.warning(
                        "The connection that shows this worker to be alive broke; it is opened again: %s", error
                    )
                self.was_broken = self.was_broken or self.held_since is not None
                self.held_since = None
                self._stopping.wait(_AFTER_ERROR_SECONDS)

    def _hold(self) -> None:
        with self._database.autocommitting() as conn:
            try:
                conn.execute(text("SELECT pg_advisory_lock(:key)"), {"key": self.key})
                self._listen(conn)
                self.held_since = time.monotonic()
                self._ready.set()
                self._watch(conn)
            finally:
                conn.invalidate()  # closes it: nobody else may get its lock, nor its notifications

    def _listen(self, conn: Connection) -> None:
        if notifications.can_listen(conn):
            notifications.listen(conn, self._hear)
            self.is_listening = True
        for channel in CHANNELS:
            self._hear(channel, "")

    def _watch(self, conn: Connection) -> None:
        """Sleep until there is news on the connection, or until stopped."""
        raw: Any = conn.connection.dbapi_connection
        with selectors.DefaultSelector() as selector:
            connection = selector.register(raw.fileno(), selectors.EVENT_READ)
            selector.register(self._interrupt_read, selectors.EVENT_READ)
            while not self._stopping.is_set():
                readable = [key for key, _ in selector.select(_CHECK_SECONDS)]
                if connection in readable and self.is_listening:
                    notifications.read(conn, self._hear)
                elif connection in readable or not readable:
                    # Nothing for long: a router may have forgotten the connection without a word.
                    conn.execute(text("SELECT 1"))
                    if self.is_listening:
                        notifications.read(conn, self._hear)  # what came with the answer


class Liveness:
    """This worker's sign, and what the others' signs say."""

    def __init__(
        self,
        database: Database,
        *,
        worker_id: str,
        service_name: str,
        listen: bool,
        version: str,
        hear: Callable[[str], None],
    ) -> None:
        self._database, self._service_name, self._version = database, service_name, version
        self.worker_id = worker_id
        self._pass_on = hear
        self._lock = AdvisoryLock(database, self._hear) if listen and not database.is_sqlite else None
        self._watched: list[WorkerRecord] = []
        self._may_have_new_siblings = threading.Event()
        self._may_have_new_siblings.set()

    @property
    def is_listening(self) -> bool:
        """Whether other processes can tell this one that there is something to do."""
        return self._lock is not None and self._lock.is_listening

    @property
    def may_have_siblings(self) -> bool:
        """Whether somebody else may be there to do what this worker cannot."""
        return self._lock is None or self._may_have_new_siblings.is_set() or bool(self._watched)

    async def start(self) -> None:
        """Give the sign."""
        if self._lock is not None:
            await self._lock.start()

    async def stop(self) -> None:
        """End the sign."""
        if self._lock is not None:
            await self._lock.stop()

    def record(self, workflow_names: Sequence[str]) -> WorkerRecord:
        """What the others need to know to judge this worker."""
        return WorkerRecord(
            worker_id=self.worker_id,
            service=self._service_name,
            host=host_name(),
            pid=os.getpid(),
            process_started=start_time(os.getpid()) or "",
            advisory_key=self._lock.key if self._lock is not None else None,
            workflows=tuple(workflow_names),
            version=self._version,
        )

    def look_for_new_siblings(self) -> None:
        """Ask the database again who is there."""
        self._may_have_new_siblings.set()

    def dead_siblings(self) -> list[str]:
        """Workers of the service that are gone for certain, as far as this host can tell; may ask the database."""
        if self._database.is_sqlite:
            return self._dead_by_pid()
        if self._lock is None or self._lock.held_since is None:
            return []
        if self._lock.was_broken and time.monotonic() - self._lock.held_since < GRACE_SECONDS:
            return []
        if not self._may_have_new_siblings.is_set() and all(_is_alive_here(found) for found in self._watched):
            return []
        return self._dead_by_lock()

    def _hear(self, channel: str, payload: str) -> None:
        if payload not in ("", self._service_name):
            return
        if channel == WORKERS_CHANNEL:
            self._may_have_new_siblings.set()
        self._pass_on(channel)

    def _dead_by_lock(self) -> list[str]:
        self._may_have_new_siblings.clear()
        try:
            with self._database.autocommitting() as conn:
                found = workers.siblings_with_sign_of_life(conn, service=self._service_name, worker_id=self.worker_id)
        except BaseException:
            self._may_have_new_siblings.set()
            raise
        self._watched = [sibling for sibling, _ in found]
        # A process that is there has only lost its connection, and is opening another one.
        return [sibling.worker_id for sibling, has_lock in found if not has_lock and not _is_alive_here(sibling)]

    def _dead_by_pid(self) -> list[str]:
        with self._database.autocommitting() as conn:
            others = workers.siblings(conn, service=self._service_name, worker_id=self.worker_id)
        here = host_name()
        return [other.worker_id for other in others if other.host == here and not _is_alive_here(other)]


def _is_alive_here(worker: WorkerRecord) -> bool:
    return worker.host == host_name() and start_time(worker.pid) == worker.process_started
