"""The relay: publishes the events of the outbox, at least once, in the order of their ordering keys.

How it thinks. Claimed rows become *lanes*: the rows of one ordering key, one after the other, or one row alone.
Lanes run side by side, so many publications at a time as the setting allows; the outcome of each is recorded
before the next one begins. Locks are renewed while a lane lives, however slow the broker is. A row
whose lock is lost, or may have been while this process was stopped, is not touched any more.

A crash between a publication and its record publishes that event again: nobody can know. Nothing else does, as
long as relays live and see the database; after an outage they leave each other time to record what they know.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection

from edda_engine.hooks import WorkflowHooks
from edda_engine.outbox.outgoing import Publisher
from edda_engine.runtime.probes import Probe, no_probe
from edda_engine.runtime.publication import publish
from edda_engine.runtime.recorder import Outage, Recorder
from edda_engine.runtime.service import ServiceThread
from edda_engine.storage import outbox, outbox_upkeep
from edda_engine.storage.database import Database, may_be_repeated
from edda_engine.storage.outbox import ClaimedEvent, Dead, Delayed, HandedBack, Outcome, Published

_log = logging.getLogger(__name__)

LOCK_SECONDS = 60.0
PRUNE_SECONDS = 300.0

_LANES_PER_SLOT = 2
_CLAIMED_ROWS = 64
_PRUNED_ROWS = 500
_GRACE_SECONDS = 3.0
_NOTICED_FAILURES = 3
_NEVER = float("-inf")


class Relay:
    """One relay; several on one database share the rows. Lives on one event loop."""

    def __init__(
        self,
        *,
        relay_id: str,
        database: Database,
        publisher: Publisher,
        hooks: WorkflowHooks,
        poll_interval: Callable[[], float],
        concurrency: int,
        retention_days: float,
        lock_seconds: float = LOCK_SECONDS,
        probe: Probe = no_probe,
    ) -> None:
        self._relay_id, self._publisher, self._hooks = relay_id, publisher, hooks
        self._service = ServiceThread(database, probe=probe)
        self._poll_interval, self._retention_seconds = poll_interval, retention_days * 86_400
        self._lock_seconds, self._probe = lock_seconds, probe
        self._outage = Outage()
        self._recorder = Recorder(relay_id=relay_id, service=self._service, outage=self._outage)
        self._most_lanes = concurrency * _LANES_PER_SLOT
        self._most_rows = concurrency * outbox.ROWS_OF_A_KEY
        self._slots = asyncio.Semaphore(concurrency)
        self._ours_until: dict[int, float] = {}
        self._lanes: set[asyncio.Task[None]] = set()
        self._services: list[asyncio.Task[None]] = []
        self._finding: list[asyncio.Task[None]] = []
        self._woken = asyncio.Event()
        self._is_full = self._is_stopping = False
        self._failures = 0
        self.published = 0
        """So many publications were recorded."""

    # Its life.

    def open(self) -> None:
        """Be ready to publish; nothing is looked for yet."""
        self._services = [_task("recorder", self._recorder.work()), _task("renewal", self._renew_for_ever())]

    def start(self) -> None:
        """Publish what is due from now on."""
        if not self._services:
            self.open()
        self._finding = [_task("relay", self._claim_for_ever()), _task("pruning", self._prune_for_ever())]

    async def rest(self) -> None:
        """Look for nothing any more; what is claimed is still published."""
        await _ended(self._finding)

    def wake(self) -> None:
        """Look for due events now; call on the loop."""
        self._woken.set()

    @property
    def is_publishing(self) -> bool:
        """Whether publications are under way."""
        return bool(self._lanes)

    async def stop(self, timeout: float) -> None:
        """Claim no more; let publications under way end for *timeout* seconds; hand back the rest.

        What cannot be handed back, because the database is away, is due again when its lock expires.
        """
        self._is_stopping = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        await self.rest()
        if self._lanes:
            await asyncio.wait(self._lanes, timeout=timeout)
        await _ended(self._lanes)
        await _ended(self._services)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(1.0, deadline - loop.time())):
                await self._hand_back()
        try:
            await self._publisher.close()
        except Exception:  # the edge of user code
            _log.exception("The publisher could not be closed")
        self._service.close()

    def bury(self) -> None:
        """Its event loop has died: end its thread. What it held is handed back by whoever buries the worker."""
        self._service.close()

    async def publish_due(self) -> int:
        """Publish what is due, and what becomes due by that; returns how many events were taken.

        :raises sqlalchemy.exc.SQLAlchemyError: the database does not answer.
        """
        before = self.published
        try:
            while await self._claim() or self._lanes:
                if self._lanes:
                    await asyncio.wait(self._lanes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if self._lanes:
                await asyncio.wait(self._lanes)
        return self.published - before

    # Finding rows.

    async def _claim_for_ever(self) -> None:
        look_first = False
        while True:
            self._woken.clear()
            try:
                if await self._claim(look_first=look_first):
                    look_first = False
                    continue
            except Exception as error:
                await self._after_failure("Events could not be claimed", error)
            look_first = True  # waking and polling are mostly in vain
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_interval()):
                    await self._woken.wait()

    async def _claim(self, *, look_first: bool = False) -> int:
        """Begin lanes for due rows; returns how many rows were claimed or put off."""
        lanes, rows = self._most_lanes - len(self._lanes), self._most_rows - len(self._ours_until)
        if self._recorder.is_stuck:
            return 0  # what is published meanwhile could not be recorded either
        self._is_full = lanes < max(1, self._most_lanes // 4) or rows < outbox.ROWS_OF_A_KEY
        if self._is_full:
            return 0
        room = min(rows, _CLAIMED_ROWS)
        now = asyncio.get_running_loop().time()
        was_away = self._outage.is_on
        takes_over = not was_away and now >= self._outage.ended_at + _GRACE_SECONDS

        def take(conn: Connection) -> outbox.Claim:
            under_way = list(self._ours_until)
            if was_away:  # a claim whose answer was lost may have taken rows
                outbox.release_relay(conn, self._relay_id, except_for=under_way)
            return outbox.claim_due(
                conn, relay_id=self._relay_id, limit=room, lock_seconds=self._lock_seconds,
                under_way=under_way, takes_over=takes_over,
            )  # fmt: skip

        # On SQLite a claim takes the place of the one writer, so an idle relay only reads.
        if look_first and not was_away and not await self._service.read(outbox.has_due):
            return 0
        claim = await self._service.write("relay.claim", take)
        self._outage.end()
        self._begin_lanes(claim.events, ours_until=now + self._lock_seconds)
        return len(claim.events) + claim.postponed

    def _begin_lanes(self, events: Sequence[ClaimedEvent], *, ours_until: float) -> None:
        lanes: dict[str | int, list[ClaimedEvent]] = {}
        for event in events:
            self._ours_until[event.seq] = ours_until
            lanes.setdefault(event.event.ordering_key or event.seq, []).append(event)
        for lane in lanes.values():
            task = asyncio.create_task(self._work_through(lane), name="edda:lane")
            self._lanes.add(task)
            task.add_done_callback(partial(self._has_ended, is_keyed=lane[0].event.ordering_key is not None))

    def _has_ended(self, lane: asyncio.Task[None], *, is_keyed: bool) -> None:
        self._lanes.discard(lane)
        if not lane.cancelled() and (error := lane.exception()) is not None:
            _log.error("Publishing broke; the events are tried again when their lock has expired", exc_info=error)
        if self._is_full or is_keyed:  # the next rows of a key are due now
            self._woken.set()

    # Publishing.

    async def _work_through(self, lane: Sequence[ClaimedEvent]) -> None:
        """Publish the rows of a lane, one after the other, until one has to be tried again."""
        rest = list(lane)
        try:
            while rest:
                waiting: list[Outcome] = []
                async with self._slots:  # until it is recorded: so many events a crash can publish again
                    if not self._is_ours(rest[0]):
                        await self._recorder.record([HandedBack(event.seq) for event in rest])
                        return
                    outcome = await publish(self._publisher, rest[0], probe=self._probe)
                    event = rest.pop(0)
                    if isinstance(outcome, Delayed):
                        waiting = [HandedBack(each.seq, waits=True) for each in rest]
                    is_recorded = await self._recorder.record([outcome, *waiting])
                self._let_go(event)
                self._tell(event, outcome, is_recorded=is_recorded)
                if waiting or not is_recorded:
                    return
        finally:
            for event in lane:
                self._let_go(event)

    def _let_go(self, event: ClaimedEvent) -> None:
        self._ours_until.pop(event.seq, None)
        if self._is_full:
            self._woken.set()

    def _is_ours(self, event: ClaimedEvent) -> bool:
        now = asyncio.get_running_loop().time()
        return not self._is_stopping and now < self._ours_until.get(event.seq, _NEVER)

    def _tell(self, claimed: ClaimedEvent, outcome: Outcome, *, is_recorded: bool) -> None:
        event, ids = claimed.event, {"event_id": claimed.event.event_id, "event_type": claimed.event.type}
        if not is_recorded:
            _log.warning(
                "Event %s was taken over by another relay while it was being published; it may be published twice",
                event.event_id, extra=ids,
            )  # fmt: skip
            return
        match outcome:
            case Published():
                self.published += 1
                if self._failures >= _NOTICED_FAILURES:
                    _log.warning("Events are published again")
                self._failures = 0
                try:
                    self._hooks.on_event_sent(event.event_id, event.type, event.source)
                except Exception:  # the edge of user code: the event is sent already
                    _log.exception("The hook on_event_sent failed")
            case Dead():
                _log.error(
                    "Event %s was refused for good and is dead; `flask edda outbox list --status dead` tells why, and"
                    " `flask edda outbox retry %s` sends it again", event.event_id, event.event_id, extra=ids,
                )  # fmt: skip
            case Delayed(delay_seconds=delay):
                asyncio.get_running_loop().call_later(delay + 0.01, self.wake)
                self._failures += 1
                if self._failures == _NOTICED_FAILURES:
                    _log.warning(
                        "%s publications failed one after the other; the events are kept and tried again. `flask edda"
                        " outbox list` tells why", self._failures, extra=ids,
                    )  # fmt: skip

    # Keeping locks, giving them back, tidying up.

    async def _renew_for_ever(self) -> None:
        pause = self._lock_seconds / 3
        while True:
            await asyncio.sleep(pause)
            held = list(self._ours_until)
            ours_until = asyncio.get_running_loop().time() + self._lock_seconds
            try:
                renewed = await self._renew(held) if held else set()
            except Exception as error:
                await self._after_failure("Locks of events could not be renewed", error)
                pause = min(1.0, self._lock_seconds / 3)
                continue
            pause = self._lock_seconds / 3
            for seq in held:
                if seq in self._ours_until:
                    self._ours_until[seq] = ours_until if seq in renewed else _NEVER

    async def _renew(self, seqs: Sequence[int]) -> set[int]:
        return await self._service.write(
            "relay.renew",
            lambda conn: outbox.renew(conn, relay_id=self._relay_id, seqs=seqs, lock_seconds=self._lock_seconds),
        )

    async def _hand_back(self) -> None:
        try:
            await self._service.write("relay.release", lambda conn: outbox.release_relay(conn, self._relay_id))
        except Exception as error:
            _log.warning("Events could not be handed back; they are due when their locks expire: %r", error)

    async def _prune_for_ever(self) -> None:
        while True:
            try:
                await self.prune()
            except Exception as error:
                await self._after_failure("Published events could not be pruned", error)
            await asyncio.sleep(PRUNE_SECONDS * (0.5 + random.random()))

    async def prune(self) -> None:
        """Delete what was published longer ago than the retention."""

        def delete_some(conn: Connection) -> int:
            return outbox_upkeep.prune(conn, older_than_seconds=self._retention_seconds, limit=_PRUNED_ROWS)

        deleted = _PRUNED_ROWS
        while deleted == _PRUNED_ROWS:
            deleted = await self._service.write("relay.prune", delete_some)

    async def _after_failure(self, what: str, error: Exception) -> None:
        if may_be_repeated(error):
            self._outage.begin(error)
        else:
            _log.error("%s; tried again", what, exc_info=error)
        await asyncio.sleep(min(0.5, self._poll_interval()))


def _task(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.create_task(work, name=f"edda:{name}")


async def _ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    found = list(tasks)
    for task in found:
        task.cancel()
    await asyncio.gather(*found, return_exceptions=True)
