"""Recovery: takes over from siblings that died, keeps this worker's entry, and reports what nobody can run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from sqlalchemy import Connection

from edda_engine.runtime.liveness import Liveness
from edda_engine.runtime.service import ServiceThread
from edda_engine.storage import instances, notifications, outbox, workers
from edda_engine.storage.database import is_outage
from edda_engine.workflow import workflows

_log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10.0
FORGET_AFTER_SECONDS = 86_400.0
_SWEEP_SECONDS = 600.0


class Recovery:
    """Looks after the other workers of the service."""

    def __init__(
        self,
        *,
        service_name: str,
        liveness: Liveness,
        service: ServiceThread,
        interval: float,
        wake_claimer: Callable[[], None],
    ) -> None:
        self._service_name, self._liveness, self._service = service_name, liveness, service
        self._interval, self._wake_claimer = interval, wake_claimer
        self._reported: set[str] = set()
        self._entered: list[str] = []

    async def register(self) -> None:
        """Enter this worker, and the source of the workflows it knows; while the database is away this waits for it."""
        declared = [(found.name, found.source_hash, found.source) for found in workflows]
        names = workflows.names()

        def enter(conn: Connection) -> None:
            workers.unregister(conn, self._liveness.worker_id)  # the answer of another try may have been lost
            workers.register(conn, self._liveness.record(names))
            instances.save_definitions(conn, declared)
            notifications.notify(conn, notifications.WORKERS_CHANNEL, self._service_name)

        await self._service.write_until_answered("register", enter)
        self._entered = names

    async def unregister(self) -> None:
        """Remove this worker, and hand back what it could not while it drained: nobody would look for that any more."""
        await self._service.write("unregister", lambda conn: take_over(conn, self._liveness.worker_id))

    async def work(self) -> None:
        """Look and beat until cancelled."""
        loop = asyncio.get_running_loop()
        next_beat = loop.time() + HEARTBEAT_SECONDS / 2
        next_sweep = next_beat
        while True:
            try:
                await self._look()
                if loop.time() >= next_beat or workflows.names() != self._entered:
                    next_beat = loop.time() + HEARTBEAT_SECONDS
                    await self._beat()
                if loop.time() >= next_sweep:
                    next_sweep = loop.time() + _SWEEP_SECONDS
                    await self._service.write("sweep", self._sweep)
            except Exception as error:
                if not is_outage(error):
                    _log.exception("Looking after the other workers failed; tried again")
            await asyncio.sleep(self._interval)

    async def _look(self) -> None:
        dead = await self._service.call(self._liveness.dead_siblings)
        for worker_id in dead:
            released = await self._service.write("take_over", lambda conn, found=worker_id: take_over(conn, found))  # type: ignore[misc]
            if released is not None:
                _log.warning(
                    "Worker %s died; what it was running goes on here or elsewhere (instances: %s)",
                    worker_id,
                    len(released),
                )
                self._wake_claimer()

    async def _beat(self) -> None:
        names = workflows.names()
        is_known, stranded = await self._service.write(
            "beat",
            lambda conn: (
                workers.beat(conn, self._liveness.worker_id, names),
                instances.unclaimable(conn, self._service_name),
            ),
        )
        if names != self._entered:
            self._entered = names
            self._wake_claimer()
        if not is_known:
            _log.warning("A sibling took this worker for dead; it enters itself again")
            await self.register()
        for name, count in stranded:
            if name not in self._reported:
                self._reported.add(name)
                _log.warning(
                    "%s instances of workflow %r are due, but no worker of service %r knows it. Deploy its code, or name"
                    " its module in WORKFLOWS; they wait and block nobody.",
                    count, name, self._service_name,
                )  # fmt: skip
        self._liveness.look_for_new_siblings()

    def _sweep(self, conn: Connection) -> None:
        for worker_id in workers.silent(conn, service=self._service_name, seconds=FORGET_AFTER_SECONDS):
            take_over(conn, worker_id)


def take_over(conn: Connection, worker_id: str) -> list[str] | None:
    """Release what a dead worker held, and remove its entry; ``None`` if another sibling has done all of that.

    What somebody has locked just now, such as a request that cancels an instance, is left, and with it the entry: by
    that the next look finds it. Whoever looks is the one who claims, and must not wait.
    """
    is_relay_free = outbox.release_relay(conn, worker_id)
    released = instances.release_worker(conn, worker_id)
    if not is_relay_free or instances.is_holding(conn, worker_id):
        return released or None
    is_first = workers.unregister(conn, worker_id)
    return released if released or is_first else None
