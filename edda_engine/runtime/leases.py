"""Leases: renewed every third of their length while their worker lives."""

from __future__ import annotations

import asyncio
import logging

from edda_engine.runtime.executor import Executor
from edda_engine.runtime.service import ServiceThread
from edda_engine.storage import instances
from edda_engine.storage.database import is_outage

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 20.0
_SHORTEST_PAUSE_SECONDS = 0.05


class Leases:
    """Keeps the leases of one worker."""

    def __init__(self, *, worker_id: str, service: ServiceThread) -> None:
        self._worker_id, self._service = worker_id, service

    async def work(self, executor: Executor) -> None:
        """Renew until cancelled."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            # A run with a short lease may come at any time, so look often and renew only when it is time.
            await asyncio.sleep(min(_LOOK_SECONDS, self._pause(executor)))
            began = loop.time()
            # Until all are extended: a step that is being written has locked its instance, and there may be one each time.
            if began - last >= self._pause(executor) - 0.01 and await self._renew(executor):
                last = began

    def _pause(self, executor: Executor) -> float:
        shortest = min((run.lease.lock_timeout_seconds for run in executor.held.values()), default=None)
        if shortest is None:
            return _LONGEST_PAUSE_SECONDS
        return max(_SHORTEST_PAUSE_SECONDS, min(_LONGEST_PAUSE_SECONDS, shortest / 3))

    async def _renew(self, executor: Executor) -> bool:
        """Extend all leases; False if one is left that should be extended soon."""
        before = {instance_id: run.holder.epoch for instance_id, run in executor.held.items()}
        if not before:
            return True
        try:
            renewed = await self._service.write(
                "renew", lambda conn: instances.renew(conn, worker_id=self._worker_id, instance_ids=list(before))
            )
        except Exception as error:
            if not is_outage(error):
                _log.exception("Leases could not be renewed; tried again")
            return True
        for instance_id, epoch in before.items():
            run = executor.held.get(instance_id)
            if run is None or run.holder.epoch != epoch or run.is_ending:
                continue
            if instance_id not in renewed:
                executor.lose(instance_id)
            elif renewed[instance_id]:
                executor.ask_to_stop(instance_id)
        return None not in renewed.values()
