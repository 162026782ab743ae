"""One thread with one connection for what a worker asks now and then: claims, renewals, recovery.

Never behind the committer, never on the application's pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection

from edda_engine.runtime.probes import Probe, no_probe
from edda_engine.storage.alone import Kept
from edda_engine.storage.database import Database, is_outage
from edda_engine.threads import DaemonThreads

T = TypeVar("T")

_PAUSES = (0.1, 0.2, 0.5, 1.0)


class ServiceThread:
    """Runs short transactions off the loop, one at a time."""

    def __init__(self, database: Database, *, probe: Probe = no_probe) -> None:
        self._database, self._probe = database, probe
        self._executor = DaemonThreads(1, name="edda-service")

    async def write(self, name: str, work: Callable[[Connection], T]) -> T:
        """Run *work* in a transaction of its own; *name* is that of the points before and after its commit."""

        def in_transaction() -> T:
            with self._database.write() as conn:
                found = work(conn)
                self._probe(f"{name}.before_commit")
            self._probe(f"{name}.after_commit")
            return found

        return await asyncio.get_running_loop().run_in_executor(self._executor, in_transaction)

    async def write_until_answered(self, name: str, work: Callable[[Connection], T]) -> T:
        """The same, again and again while the database is away; it may have been done already, and only the answer lost."""
        while True:
            try:
                return await self.write(name, work)
            except Exception as error:
                if not is_outage(error):
                    raise
            await asyncio.sleep(_PAUSES[0])
            await self.wait_until_reachable()

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run *work* on a connection, reading; each of its statements by itself."""

        def on_connection() -> T:
            with self._database.autocommitting() as conn:
                return work(conn)

        return await asyncio.get_running_loop().run_in_executor(self._executor, on_connection)

    async def call(self, work: Callable[[], T]) -> T:
        """Run *work* on the thread; it makes its own transactions."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def alone(self, work: Callable[[Kept], T]) -> T:
        """Run *work*, which executes statements alone, on the thread; it closes what it has before it does anything else."""
        kept = self._database.kept()
        working = asyncio.get_running_loop().run_in_executor(self._executor, work, kept)
        self._executor.put(kept.close)  # when that is done, and nobody waits for it any more
        return await working

    async def wait_until_reachable(self) -> None:
        """Return once the database answers a query."""
        attempt = 0
        while True:
            try:
                await self.read(lambda conn: conn.exec_driver_sql("SELECT 1").scalar())
                return
            except Exception as error:
                if not is_outage(error):
                    raise
                await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
                attempt += 1

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown(cancel_futures=True)
