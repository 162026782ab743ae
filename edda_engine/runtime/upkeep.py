"""Upkeep: keeps the tables small, a bounded batch at a time."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from sqlalchemy import Connection

from edda_engine.runtime.service import ServiceThread
from edda_engine.storage import pruning, received, retention
from edda_engine.storage.database import is_outage

_log = logging.getLogger(__name__)

INTERVAL_SECONDS = 300.0
"""Between two prunings of a worker, on average."""

_DAY_SECONDS = 86_400.0
_RECEIVED = 1000
_BETWEEN_BATCHES_SECONDS = 0.05
"""The thread also claims: work that is due must not wait for all that is to be deleted."""


class Upkeep:
    """Prunes for one worker; several do no harm to each other."""

    def __init__(
        self, *, service: ServiceThread, message_retention_days: float, instance_retention_days: float | None
    ) -> None:
        self._service = service
        self._retention_seconds = message_retention_days * _DAY_SECONDS
        self._instance_seconds = None if instance_retention_days is None else instance_retention_days * _DAY_SECONDS

    async def work(self) -> None:
        """Prune until cancelled."""
        while True:
            # At another time in each worker, and as often where servers replace their processes every few minutes.
            await asyncio.sleep(random.expovariate(1 / INTERVAL_SECONDS))
            try:
                await self.prune()
            except Exception as error:
                if not is_outage(error):
                    _log.exception("Pruning failed; it is tried again")

    async def prune(self) -> int:
        """Delete everything that is due for it; returns how many rows."""
        old = self._retention_seconds
        total = await self._prune_all(
            "prune", lambda conn: retention.prune_messages(conn, retention_seconds=old), batch=retention.BATCH
        )
        # Events that come forget as many; this is for those after which none has come.
        total += await self._prune_all(
            "prune", lambda conn: received.forget_expired(conn, at_most=_RECEIVED), batch=_RECEIVED
        )
        if (ended := self._instance_seconds) is not None:
            total += await self._prune_all(
                "prune_instances",
                lambda conn: pruning.prune_instances(conn, older_than_seconds=ended),
                batch=1,
            )
        return total

    async def _prune_all(self, name: str, prune_some: Callable[[Connection], int], *, batch: int) -> int:
        """Until less than a full *batch* is found."""
        total = count = await self._service.write(name, prune_some)
        while count >= batch:
            await asyncio.sleep(_BETWEEN_BATCHES_SECONDS)
            count = await self._service.write(name, prune_some)
            total += count
        return total
