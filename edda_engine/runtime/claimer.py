"""The claimer: takes due instances whenever there is room, woken early when there is a reason.

Polling is the safety net: whatever a wake-up misses is found a second later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from sqlalchemy import Connection

from edda_engine.runtime.executor import Executor
from edda_engine.runtime.probes import Probe
from edda_engine.runtime.run import Past
from edda_engine.runtime.service import ServiceThread
from edda_engine.storage import history, instances, retries
from edda_engine.storage.database import is_outage
from edda_engine.storage.instances import Lease
from edda_engine.workflow import workflows

_log = logging.getLogger(__name__)

BATCH = 64


class Claimer:
    """Claims for one worker."""

    def __init__(
        self,
        *,
        worker_id: str,
        service_name: str,
        service: ServiceThread,
        max_running: int,
        poll_interval: float,
        probe: Probe,
    ) -> None:
        self._worker_id, self._service_name, self._service = worker_id, service_name, service
        self._max_running, self._poll_interval, self._probe = max_running, poll_interval, probe
        self._woken = asyncio.Event()
        self._has_outage = False
        self._is_full = False

    def wake(self) -> None:
        """Look for due instances now; call on the loop."""
        self._woken.set()

    def has_room(self) -> None:
        """A run has ended: go on claiming if that was what it waited for."""
        if self._is_full:
            self._woken.set()

    async def work(self, executor: Executor) -> None:
        """Claim until cancelled."""
        while True:
            self._woken.clear()
            room = min(BATCH, self._max_running - len(executor.held))
            self._is_full = room <= 0
            if not self._is_full and await self._claim(executor, room) == room:
                continue
            # Not wait_for(): before Python 3.12 it may swallow a cancellation.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_interval):
                    await self._woken.wait()

    async def _claim(self, executor: Executor, limit: int) -> int:
        names = workflows.names()
        if not names:
            return 0
        try:
            leases = await self._service.write(lambda conn: self._take(conn, names, limit))
            self._probe("claim.after_commit")
            known = [lease for lease in leases if lease.has_history and not executor.has_parked(lease)]
            pasts = await self._service.read(lambda conn: load_pasts(conn, known)) if known else {}
        except Exception as error:
            if not is_outage(error):
                _log.exception("Claiming failed; it is tried again")
            elif not self._has_outage:
                _log.warning("The database does not answer; no work is claimed until it does: %s", error)
            self._has_outage = True
            await asyncio.sleep(min(0.5, self._poll_interval))
            return 0
        if self._has_outage:
            await self._after_outage(executor, [lease.instance_id for lease in leases])
        for lease in leases:
            executor.take(lease, pasts.get(lease.instance_id, Past()))
        return len(leases)

    async def _after_outage(self, executor: Executor, claimed: list[str]) -> None:
        """Hand back what a claim whose answer was lost may have taken."""
        mine = [*executor.held, *claimed]
        try:
            await self._service.write(lambda conn: instances.release_strays(conn, worker_id=self._worker_id, held=mine))
        except Exception as error:
            if not is_outage(error):
                raise
            return
        _log.warning("The database answers again; work is claimed")
        self._has_outage = False

    def _take(self, conn: Connection, names: list[str], limit: int) -> list[Lease]:
        leases = instances.claim_due(
            conn, worker_id=self._worker_id, service=self._service_name, names=names, limit=limit
        )
        self._probe("claim.before_commit")
        return leases


def load_pasts(conn: Connection, leases: list[Lease]) -> dict[str, Past]:
    """What is recorded of the instances of these leases."""
    ids = [lease.instance_id for lease in leases]
    steps, states = history.load(conn, ids), retries.load(conn, ids)
    found = {}
    for instance_id in ids:
        recorded, last = steps.get(instance_id, ([], 0))
        found[instance_id] = Past(tuple(recorded), last, states.get(instance_id))
    return found
