"""The claimer: takes due instances whenever there is room, woken early when there is a reason.

How it thinks. It sleeps until somebody wakes it, or what is due next becomes due: it asks for that whenever it has
taken all there was. Polling is the safety net: whatever a wake-up misses is found a little later, and looking in vain
costs one statement that takes no lock. While other processes can tell this one what they have done, it looks less
often.

Before it claims it delivers messages, also when it has no room for more instances. Only if all was calm, and then
something was started in this process, it claims that first, on PostgreSQL, by a statement that is over sooner: what
nobody has worked on waits for no message.

Who is woken because something was done in this very process, and has no room for it, tells the other workers. Who has
heard it from another process tells nobody: all have heard it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from edda_engine.runtime.executor import Executor
from edda_engine.runtime.past import Past, load_pasts
from edda_engine.runtime.probes import Probe
from edda_engine.runtime.service import ServiceThread
from edda_engine.runtime.wakeups import Alarm
from edda_engine.storage import claim_at_once, claiming, instances, outlook
from edda_engine.storage.alone import Kept
from edda_engine.storage.claim_at_once import Claimed
from edda_engine.storage.claiming import Lease
from edda_engine.storage.database import Database, is_outage, may_be_repeated
from edda_engine.storage.delivery import deliver
from edda_engine.storage.outlook import Outlook
from edda_engine.storage.waking import Delivered
from edda_engine.workflow import workflows

_log = logging.getLogger(__name__)

BATCH = 64
CALM = 5
"""So many times longer than POLL_INTERVAL_SECONDS it sleeps while nothing is due and notifications work."""

PARKED_ELSEWHERE_SECONDS = 0.02
"""How long the worker that may have the suspended body is let go first; it goes on without replay."""

_FOR_ONE_STATEMENT = 2
"""With less room than this who is due and who has got something would not both have their turn."""

_MARGIN_SECONDS = 0.001
_FULL_PAUSE_SECONDS = 0.02
_CLAIM_AGAIN_SECONDS = 0.005
_DELIVER_AGAIN_SECONDS = (0.005, 0.1)
_AFTER_OUTAGE_SECONDS = 0.5
_BEGIN_SECONDS = 0.003
"""So long what was claimed has the processor to itself."""

_NOTHING = Delivered()


@dataclass(frozen=True, slots=True)
class _Found:
    """What one search of the database has brought."""

    left: Outlook | None
    """What is to be done, if that was looked at."""
    leases: tuple[Lease, ...] = ()
    delivered: Delivered = _NOTHING
    is_full: bool = False
    """It brought as much as was asked for: there may be more."""
    is_only_new: bool = False
    """It searched only for what nobody has worked on."""
    problem: Exception | None = None
    """Why it brought no more."""


_NOT_LOOKED = _Found(None)


class Claimer:
    """Claims for one worker."""

    def __init__(
        self,
        *,
        worker_id: str,
        service_name: str,
        database: Database,
        service: ServiceThread,
        poll_interval: float,
        is_listening: Callable[[], bool],
        notify: Callable[[str], None],
        probe: Probe,
    ) -> None:
        self._worker_id, self._service_name = worker_id, service_name
        self._database, self._service = database, service
        self._poll_interval, self._probe = poll_interval, probe
        self._is_listening, self._notify = is_listening, notify
        self._woken = asyncio.Event()
        self._is_woken_from_here = self._is_only_for_start = False
        self._alarm, self._again = Alarm(self.wake), Alarm(self.hear)
        self._executor: Executor | None = None
        self._is_calm = False
        self._has_outage = False
        self._is_full = False
        self._full_until = 0.0
        self._deliver_again_seconds = _DELIVER_AGAIN_SECONDS[0]
        self._claim_again_seconds = _CLAIM_AGAIN_SECONDS
        self._takes_one_statement, self._is_prepared = not database.is_sqlite, False
        self._offered_to: list[str] | None = None
        """For which workflows all queues were looked into: before, nobody may have been there to run them."""

    def wake(self, *, for_start: bool = False) -> None:
        """Look for due instances now: something was done in this process. Call on the loop.

        :param for_start: It was a start, and nothing else.
        """
        self._is_woken_from_here = True
        self._is_only_for_start = for_start and (self._is_only_for_start or not self._woken.is_set())
        self._woken.set()

    def hear(self) -> None:
        """Look for due instances now: another process has told all workers. Call on the loop."""
        self._is_only_for_start = False
        self._woken.set()

    def doubt(self) -> None:
        """This worker may hold instances that it does not know of: they are handed back. Call on the loop."""
        self._has_outage = True
        self.hear()

    def wake_in(self, seconds: float, instance_id: str = "") -> None:
        """Look after so many seconds: something, or this instance, will be due then. Call on the loop."""
        self._alarm.ring_in(seconds + _MARGIN_SECONDS, instance_id)

    def expect(self, seen: Outlook) -> None:
        """Be woken by what somebody has seen: now, or when the next instance becomes due. Call on the loop."""
        if seen.has_work:
            self.hear()
        if self._executor is not None and self._executor.has_listeners:
            self._executor.mail_has_come()
        self._set_alarm(seen)

    def has_room(self) -> None:
        """A place is free again, perhaps: go on claiming if that was what it waited for."""
        if self._is_full:
            self.hear()

    def look(self, conn: Connection) -> Outlook:
        """What there is to do for this worker; on any thread."""
        return outlook.look(conn, service=self._service_name, names=workflows.names())

    async def work(self, executor: Executor) -> None:
        """Claim until cancelled."""
        self._executor = executor
        is_told = True
        try:
            while True:
                self._woken.clear()
                is_from_here, self._is_woken_from_here = self._is_woken_from_here, False
                is_only_new, self._is_only_for_start = self._is_only_for_start and self._is_calm, False
                # Kept until what is claimed is held: starts that begin here meanwhile must not take the same places.
                kept = executor.promises.give(BATCH)
                found: _Found | None = _NOT_LOOKED
                try:
                    self._is_full = kept == 0
                    if self._is_full and is_from_here:
                        self._notify(self._service_name)
                    if self._may_search():
                        found = await self._claim(executor, kept, is_told=is_told, is_only_new=is_only_new)
                finally:
                    executor.promises.end(kept)
                if found is None or found.is_full:
                    self._is_woken_from_here |= is_from_here  # if there is no room for the rest, others are told
                    continue
                if found is _NOT_LOOKED or await self._look_ahead(found):
                    is_told = await self._rest()
                else:
                    self._is_woken_from_here |= is_from_here and found.is_only_new
                    is_told = is_told or self._woken.is_set()
        finally:
            self._alarm.cancel()
            self._again.cancel()

    def _may_search(self) -> bool:
        """A full worker has only messages to look for, and not because of each start that it has no room for."""
        now = asyncio.get_running_loop().time()
        if self._is_full and now < self._full_until:
            self._again.ring_in(self._full_until - now, "full")
            return False
        self._full_until = now + _FULL_PAUSE_SECONDS
        return True

    async def _rest(self) -> bool:
        """Sleep until woken, or until it is time to look; True if woken."""
        is_calm = self._is_calm and not self._is_full and self._is_listening()
        return await self._is_woken_in(self._poll_interval * (CALM if is_calm else 1))

    async def _is_woken_in(self, seconds: float) -> bool:
        # Not wait_for(): before Python 3.12 it may swallow a cancellation.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        return self._woken.is_set()

    async def _claim(self, executor: Executor, limit: int, *, is_told: bool, is_only_new: bool) -> _Found | None:
        """Deliver messages and take what is due; ``None`` if the database did not say.

        :param is_only_new: Only take what nobody has worked on, if that can be.
        """
        self._is_calm = False
        names = workflows.names()
        limit = limit if names else 0
        try:
            found = await self._service.alone(
                lambda kept: self._search(kept, names, limit, is_told=is_told, is_only_new=is_only_new)
            )
            self._probe("claim.after_commit")
            known = [lease for lease in found.leases if lease.has_history and not executor.has_parked(lease)]
            pasts = await self._service.read(lambda conn: load_pasts(conn, known)) if known else {}
        except Exception as error:
            await self._pause_after(error)
            return None
        if self._has_outage:
            await self._after_outage(executor, [lease.instance_id for lease in found.leases])
        late = []
        for lease in found.leases:
            self._alarm.forget(lease.instance_id)
            if not lease.has_history or lease.instance_id in pasts or executor.has_parked(lease):
                executor.take(lease, pasts.get(lease.instance_id, Past()))
            else:
                late.append(lease)  # its suspended body was evicted since it was looked for
        if late:
            await self._take_late(executor, late)
        self._follow_up(executor, found.delivered, claimed=names if limit else [])
        if found.problem is not None:
            await self._pause_after(found.problem)
            return None
        return found

    async def _look_ahead(self, found: _Found) -> bool:
        """See what is next, once what was found is on its way; False if there is more to claim before."""
        if found.leases and await self._is_woken_in(_BEGIN_SECONDS):
            return False
        try:
            left = found.left if found.left is not None else await self._service.alone(self._look_alone)
        except Exception as error:
            await self._pause_after(error)
            return False
        self._is_calm = not left.has_work
        self._set_alarm(left)
        if found.is_only_new and left.has_work:
            return False
        if self._takes_one_statement and not self._is_prepared:
            self._is_prepared = True
            await self._service.call(lambda: claim_at_once.prepare(self._database.service.dialect))
        if left.has_due and not self._is_full:
            # It became due after the claim, or its row is locked: that may last, so it is asked for ever more seldom.
            self.wake_in(self._claim_again_seconds)
            self._claim_again_seconds = min(2 * self._claim_again_seconds, self._poll_interval)
        else:
            self._claim_again_seconds = _CLAIM_AGAIN_SECONDS
        return True

    def _look_alone(self, kept: Kept) -> Outlook:
        if not self._database.is_sqlite:
            return outlook.look_alone(kept.execute, service=self._service_name, names=workflows.names())
        with self._database.autocommitting() as conn:
            return self.look(conn)

    async def _take_late(self, executor: Executor, leases: list[Lease]) -> None:
        try:
            pasts = await self._service.read(lambda conn: load_pasts(conn, leases))
        except Exception as error:
            await self._pause_after(error)  # what is held and not known is handed back after the outage
            return
        for lease in leases:
            executor.take(lease, pasts[lease.instance_id])

    def _set_alarm(self, seen: Outlook) -> None:
        if seen.next is None or self._executor is None:
            return
        is_parked_elsewhere = seen.next.is_waiting and not self._executor.has_body(seen.next.instance_id)
        self.wake_in(seen.next.seconds + (PARKED_ELSEWHERE_SECONDS if is_parked_elsewhere else 0.0))

    async def _pause_after(self, error: Exception) -> None:
        pause = min(_AFTER_OUTAGE_SECONDS, self._poll_interval)
        if not is_outage(error):
            _log.exception("Claiming failed; it is tried again", exc_info=error)
            pause = self._poll_interval
        elif not self._has_outage:
            _log.warning("The database does not answer; no work is claimed until it does: %s", error)
        self._has_outage = True
        await asyncio.sleep(pause)

    def _follow_up(self, executor: Executor, delivered: Delivered, *, claimed: Collection[str]) -> None:
        """Tell those whom a delivery concerns and who are not due by it, or of workflows that are not claimed here."""
        if self._worker_id in delivered.held_by or executor.has_listeners:
            executor.mail_has_come()
        if delivered.held_by - {self._worker_id}:
            self._notify("")  # of which service they are is not known
        elsewhere = {
            service for service, name in delivered.woken if service != self._service_name or name not in claimed
        }
        for service in elsewhere:
            self._notify(service)
        shortest, longest = _DELIVER_AGAIN_SECONDS
        if delivered.is_unfinished:
            self._again.ring_in(self._deliver_again_seconds, "deliver")
            self._deliver_again_seconds = min(2 * self._deliver_again_seconds, longest)
        else:
            self._deliver_again_seconds = shortest

    async def _after_outage(self, executor: Executor, claimed: list[str]) -> None:
        """Hand back what a claim whose answer was lost may have taken."""
        mine = [*executor.held, *claimed]
        try:
            is_complete = await self._service.write(
                "strays", lambda conn: instances.release_strays(conn, worker_id=self._worker_id, held=mine)
            )
        except Exception as error:
            if not is_outage(error):
                raise
            return
        if not is_complete:  # somebody has locked one of them: it is looked for again with the next claim
            return
        _log.warning("The database answers again; work is claimed")
        self._has_outage = False

    def _search(self, kept: Kept, names: list[str], limit: int, *, is_told: bool, is_only_new: bool) -> _Found:
        """On the service thread: deliver, and claim up to *limit* instances."""
        offers_again = names != self._offered_to
        if not offers_again and (self._database.is_sqlite or not is_told or limit == 0):
            # Nothing is locked in order to find nothing: SQLite admits one writer.
            seen = self._look_alone(kept)
            if not (seen.has_messages or (seen.has_due and limit)):
                return _Found(seen)
        at_once: tuple[Lease, ...] = ()
        if not offers_again and limit >= _FOR_ONE_STATEMENT and self._takes_one_statement:
            # Half of the places are left to whoever is due unknown to this worker, has waited longer or is more urgent.
            most = limit // 2 if is_only_new else limit
            claimed = self._claim_at_once(kept, names, most, is_only_new=is_only_new)
            at_once = claimed.leases
            if not claimed.has_mail:
                return _Found(None, at_once, is_full=most == len(at_once), is_only_new=is_only_new)
        kept.close()
        try:
            with self._database.write() as conn:
                delivered, leases = self._take(conn, names, limit - len(at_once), offers_again=offers_again)
        except Exception as error:
            if not at_once:
                raise
            return _Found(None, at_once, problem=error)  # what was claimed is committed, and must be known
        if not delivered.is_unfinished:
            self._offered_to = names
        leases = [*at_once, *leases]
        return _Found(None, tuple(leases), delivered, is_full=0 < limit == len(leases))

    def _claim_at_once(self, kept: Kept, names: list[str], limit: int, *, is_only_new: bool) -> Claimed:
        self._probe("claim.before_commit")
        about: dict[str, Any] = {
            "worker_id": self._worker_id, "service": self._service_name, "names": names, "limit": limit,
        }  # fmt: skip
        try:
            if is_only_new:
                found = claiming.claim_new(kept.execute, **about)
                return Claimed(tuple(found), has_mail=False)  # it has not looked: the look that follows will
            claimed = claim_at_once.claim_at_once(kept.execute, **about)
        except DBAPIError as refused:
            if may_be_repeated(refused):
                raise
            self._takes_one_statement = False
            _log.warning(
                "The database refuses to claim instances by one statement, and is asked by several from now on: %s",
                refused.orig,
            )
            return Claimed((), has_mail=True)
        if claimed.has_mail:
            self._probe("claim.after_commit")
        return claimed

    def _take(
        self, conn: Connection, names: list[str], limit: int, *, offers_again: bool
    ) -> tuple[Delivered, list[Lease]]:
        delivered = deliver(conn, service=self._service_name, names=names, offers_again=offers_again)
        leases = (
            claiming.claim_due(conn, worker_id=self._worker_id, service=self._service_name, names=names, limit=limit)
            if limit
            else []
        )
        self._probe("claim.before_commit")
        return delivered, leases
