"""What became of publications, written together: whatever is known when the last transaction ends is the next one.

While the database is away it keeps what it knows and tries again. Otherwise a short outage would publish
everything a second time that was just being published.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence

from edda_engine.runtime.service import ServiceThread
from edda_engine.storage import outbox
from edda_engine.storage.database import may_be_repeated
from edda_engine.storage.outbox import Outcome

_log = logging.getLogger(__name__)

_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)


class Outage:
    """Says once that the database is away, and once that it is back."""

    def __init__(self) -> None:
        self.is_on = False
        self.ended_at = float("-inf")

    def begin(self, error: BaseException) -> None:
        """The database did not answer."""
        if not self.is_on:
            _log.warning(
                "The database does not answer; no event is published until it does: %s",
                str(error).splitlines()[0] if str(error) else type(error).__name__,
            )
        self.is_on = True

    def end(self) -> None:
        """The database answered."""
        if self.is_on:
            self.is_on = False
            self.ended_at = asyncio.get_running_loop().time()
            _log.warning("The database answers again; events are published")


class Recorder:
    """Records outcomes for one relay."""

    def __init__(self, *, relay_id: str, service: ServiceThread, outage: Outage) -> None:
        self._relay_id, self._service, self._outage = relay_id, service, outage
        self._known: list[tuple[tuple[Outcome, ...], asyncio.Future[bool]]] = []
        self._has_known = asyncio.Event()
        self.is_stuck = False
        """The database does not take what is known."""

    async def record(self, outcomes: Sequence[Outcome]) -> bool:
        """Write outcomes in one transaction; False if the first one's row is somebody else's by now."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._known.append((tuple(outcomes), future))
        self._has_known.set()
        return await future

    async def work(self) -> None:
        """Write until cancelled."""
        while True:
            await self._has_known.wait()
            self._has_known.clear()
            batch, self._known = self._known, []
            ours = await self._write([outcome for outcomes, _ in batch for outcome in outcomes])
            for outcomes, future in batch:
                if not future.done():
                    future.set_result(outcomes[0].seq in ours)

    async def _write(self, outcomes: Sequence[Outcome]) -> set[int]:
        try:
            return await self._write_together(outcomes)
        except Exception as error:
            if len(outcomes) == 1:
                # It stays locked for a while and is then published again.
                _log.error("What became of an event of the outbox could not be recorded: %r", error)
                return set()
        return {seq for outcome in outcomes for seq in await self._write([outcome])}

    async def _write_together(self, outcomes: Sequence[Outcome]) -> set[int]:
        try:
            for pause in itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1])):
                try:
                    ours = await self._service.write(
                        "relay.record",
                        lambda conn: outbox.record(conn, relay_id=self._relay_id, outcomes=outcomes),
                    )
                except Exception as error:
                    if not may_be_repeated(error):
                        raise
                    self.is_stuck = True
                    self._outage.begin(error)
                    await asyncio.sleep(pause)
                else:
                    self._outage.end()
                    return ours
        finally:
            self.is_stuck = False
        raise AssertionError("unreachable")
