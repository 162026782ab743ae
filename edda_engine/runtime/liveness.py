"""A sign of life that ends with the process, and the watch over the siblings' signs.

On PostgreSQL the sign is a session advisory lock on a connection of its own: the server drops it when the process
dies, however it dies. On SQLite all workers share a host, and the process table tells. Without either (behind a
transaction pooler) only the expiry of leases tells.

A judgement costs a living worker only repeated attempts, never a double commit: the epoch sees to that. Still,
after this worker itself has lost its connection it waits a little before it judges others, because a restarted
server has dropped everybody's lock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import select
import threading
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from edda_engine.runtime.processes import host_name, start_time
from edda_engine.storage import workers
from edda_engine.storage.database import Database
from edda_engine.storage.workers import WorkerRecord

_log = logging.getLogger(__name__)

GRACE_SECONDS = 3.0
_CHECK_SECONDS = 1.0


class AdvisoryLock:
    """Holds a PostgreSQL advisory lock from a thread of its own, and takes it again after a broken connection."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.key = random.getrandbits(62) + 1
        self.held_since: float | None = None
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
        self._stopping.set()
        self._ready.set()
        os.write(self._interrupt_write, b"x")
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)
        os.close(self._interrupt_read)
        os.close(self._interrupt_write)

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                self._hold()
            except (SQLAlchemyError, OSError) as error:
                if self.held_since is not None:
                    _log.warning(
                        "The connection that shows this worker to be alive broke; it is opened again: %s", error
                    )
                self.was_broken = self.was_broken or self.held_since is not None
                self.held_since = None
                self._stopping.wait(0.2)

    def _hold(self) -> None:
        with self._database.service.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.execute(text("SELECT pg_advisory_lock(:key)"), {"key": self.key})
            self.held_since = time.monotonic()
            self._ready.set()
            try:
                self._watch(conn)
            except SQLAlchemyError:
                conn.invalidate()
                raise
            conn.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": self.key})

    def _watch(self, conn: Connection) -> None:
        """Sleep until there is news on the connection, which can only be its end, or until stopped."""
        raw: Any = conn.connection.dbapi_connection
        while not self._stopping.is_set():
            readable, _, _ = select.select([raw.fileno(), self._interrupt_read], [], [], 30.0)
            if raw.fileno() in readable:
                conn.execute(text("SELECT 1"))
                self._stopping.wait(_CHECK_SECONDS)  # a notice may be readable without end


class Liveness:
    """This worker's sign, and what the others' signs say."""

    def __init__(self, database: Database, *, worker_id: str, service_name: str, listen: bool, version: str) -> None:
        self._database, self._service_name, self._version = database, service_name, version
        self.worker_id = worker_id
        self._lock = AdvisoryLock(database) if listen and not database.is_sqlite else None

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

    def dead_siblings(self, conn: Connection) -> list[str]:
        """Workers of the service that are gone for certain, as far as this host can tell."""
        if self._database.is_sqlite:
            return self._dead_by_pid(conn)
        if self._lock is None or self._lock.held_since is None:
            return []
        if self._lock.was_broken and time.monotonic() - self._lock.held_since < GRACE_SECONDS:
            return []
        return workers.without_advisory_lock(conn, service=self._service_name, worker_id=self.worker_id)

    def _dead_by_pid(self, conn: Connection) -> list[str]:
        here = host_name()
        others = workers.siblings(conn, service=self._service_name, worker_id=self.worker_id)
        return [
            other.worker_id for other in others if other.host == here and start_time(other.pid) != other.process_started
        ]
