"""The pauses of one body: short ones are slept through, long ones may outlive the lease.

A pause ends by its timer, by a new lease that finds it due, by a message, or because the body is to stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import inf
from typing import Any

from edda_engine.core.events import Recorded
from edda_engine.core.status import Status

IN_MEMORY_SECONDS = 1.0
"""Pauses before another attempt up to this long are slept through with the lease held; longer ones give it back."""

SHORT_TIMER_SECONDS = 1.0
"""Timers up to this long are, while the worker has places enough."""

NAP_SECONDS = 0.1
"""And up to this long in any case."""

CLOSE_ENOUGH_SECONDS = 0.02
"""A pause that ends this soon counts as over: the database's clock has said so already."""


_FEW = 4
_A_YEAR = 365 * 86400.0


@dataclass(frozen=True, slots=True)
class Pause:
    """One long pause: until when (by the loop's clock), for which wait, and what that is called."""

    due: float
    status: Status
    asks: str | None = None
    """The id of the wait that asks the database when it is woken; ``None`` for one that only lets time pass."""

    @property
    def may_get_mail(self) -> bool:
        """Whether a message may end it before its time."""
        return self.asks is not None and self.status is not Status.WAITING_FOR_TIMER


class Pauses:
    """Who waits in one body."""

    def __init__(self) -> None:
        self._short: set[asyncio.Future[Any]] = set()
        self._long: dict[asyncio.Future[Any], Pause] = {}

    @property
    def has_long(self) -> bool:
        """True while somebody waits for longer than a moment."""
        return bool(self._long)

    @property
    def are_long(self) -> bool:
        """The same, and none of them has just ended, so that the body is about to go on."""
        return bool(self._long) and not any(future.done() for future in self._long)

    @property
    def naps(self) -> int:
        """How many wait for a moment."""
        return len(self._short)

    @property
    def due_in_seconds(self) -> float | None:
        """Until the first of the long ones ends; ``None`` if none ends by itself."""
        first = min((pause.due for pause in self._long.values()), default=inf)
        return None if first == inf else max(0.0, first - _now())

    @property
    def may_get_mail(self) -> bool:
        """Whether a message may end one of them."""
        return any(pause.may_get_mail for pause in self._long.values())

    @property
    def asks(self) -> frozenset[str]:
        """For which waits."""
        return frozenset(pause.asks for pause in self._long.values() if pause.asks is not None)

    @property
    def has_more_than_a_few(self) -> bool:
        """Whether there are so many that a new lease does not wake all who ask."""
        return len(self._long) > _FEW

    @property
    def status(self) -> Status:
        """What the body waits for: a message or an event rather than a timer."""
        found = {pause.status for pause in self._long.values()}
        order = (Status.WAITING_FOR_MESSAGE, Status.WAITING_FOR_EVENT)
        return next((status for status in order if status in found), Status.WAITING_FOR_TIMER)

    async def short(self, seconds: float) -> None:
        """Wait for a moment."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        timer = loop.call_later(seconds, wake, future)
        self._short.add(future)
        try:
            await future
        finally:
            timer.cancel()
            self._short.discard(future)

    async def long(
        self,
        seconds: float | None,
        *,
        is_parked: Callable[[], bool],
        status: Status = Status.WAITING_FOR_TIMER,
        asks: str | None = None,
    ) -> Recorded | None:
        """Wait; while the body is parked its timer does nothing, because only a new lease may let it go on.

        :returns: What has ended the wait, if that is known without asking.
        """
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        timer = None
        if seconds is not None:
            timer = loop.call_later(min(seconds, _A_YEAR), lambda: None if is_parked() else wake(future))
        due = inf if seconds is None else _now() + seconds
        self._long[future] = Pause(due, status, asks)
        try:
            received: Recorded | None = await future
            return received
        finally:
            if timer is not None:
                timer.cancel()
            del self._long[future]

    def wake_due(self) -> None:
        """End the long pauses whose time has come."""
        limit = _now() + CLOSE_ENOUGH_SECONDS
        for future, pause in list(self._long.items()):
            if pause.due <= limit:
                wake(future)

    def wake_awaiting(self, waits: Collection[str]) -> None:
        """End the pauses of these waits: something has come for them."""
        for future, pause in list(self._long.items()):
            if pause.asks in waits:
                wake(future)

    def tell(self, received: Recorded) -> None:
        """End the pause of the wait that this has come for. Who waits there no more has it put back."""
        for future, pause in self._long.items():
            if pause.asks == received.activity_id and not future.done():
                future.set_result(received)

    def wake_for_lease(self, *, is_due: bool) -> None:
        """There is a new lease: end what may be over, whatever this process's clock says.

        Those who ask the database may be woken for nothing, so all of a few are, and of many the first. Who only lets
        time pass is woken if nobody asks and the database has found the instance due.
        """
        self.wake_due()
        asking = [future for future, pause in self._long.items() if pause.asks is not None]
        if len(asking) > _FEW:
            asking = [min(asking, key=lambda future: self._long[future].due)]
        elif not asking and is_due and self._long:
            asking = [min(self._long, key=lambda future: self._long[future].due)]
        for future in asking:
            wake(future)

    def wake_all(self) -> None:
        """End every pause."""
        for future in (*self._short, *self._long):
            wake(future)


def _now() -> float:
    return asyncio.get_running_loop().time()


def wake(future: asyncio.Future[Any]) -> None:
    """End one wait, unless it has ended."""
    if not future.done():
        future.set_result(None)


async def for_ever() -> None:
    """Wait until cancelled."""
    await asyncio.get_running_loop().create_future()
