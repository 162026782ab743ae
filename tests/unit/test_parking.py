"""When a body is parked: as it stands then, and not a moment earlier or later."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from edda_engine.runtime.parking import Parking
from edda_engine.runtime.pauses import Pauses
from edda_engine.storage.units import Holder, Saved, Wait


class _Committer:
    def __init__(self) -> None:
        self.written: list[Wait] = []

    async def commit(self, unit: Wait) -> Saved:
        self.written.append(unit)
        return Saved()


class _Run:
    """One whose values take a while to be saved, and whose body may be gone meanwhile."""

    instance_id = "i"
    is_parked = False
    fate = None

    def __init__(self, seconds: float) -> None:
        self.holder, self.pauses, self._seconds = Holder("i", "w", 1), Pauses(), seconds

    async def save_values(self) -> None:
        await asyncio.sleep(self._seconds)

    def seal(self, _fate: Any) -> None:
        self.pauses.wake_all()


def parked(run: _Run, *, pause: float | None, is_thrown_away: bool = False) -> Wait:
    """What is written for a run that is parked."""

    async def main() -> Wait:
        committer, tasks = _Committer(), list[asyncio.Task[None]]()
        parking = Parking(
            most=10,
            committer=cast(Any, committer),
            service=cast(Any, None),
            probe=lambda _: None,
            spawn=lambda work: tasks.append(asyncio.create_task(work)),
            wake_claimer=lambda: None,
            wake_claimer_in=lambda _seconds, _id: None,
        )
        waiting = asyncio.create_task(run.pauses.long(pause, is_parked=lambda: True, asks="sleep:1"))
        await asyncio.sleep(0)
        parking.park(cast(Any, run))
        if is_thrown_away:
            parking.throw_all_away()
        await asyncio.gather(*tasks)
        waiting.cancel()
        (written,) = committer.written
        return written

    return asyncio.run(main())


def test_a_pause_does_not_become_longer_by_what_is_saved_before_it() -> None:
    written = parked(_Run(0.2), pause=100.0)
    assert written.delay_seconds is not None
    assert 0 < written.delay_seconds <= 99.8


def test_a_body_that_is_thrown_away_meanwhile_pauses_all_the_same() -> None:
    written = parked(_Run(0.05), pause=100.0, is_thrown_away=True)
    assert written.delay_seconds is not None
    assert written.delay_seconds > 50
    assert written.asks == {"sleep:1"}


def test_one_that_waits_without_end_does_so() -> None:
    assert parked(_Run(0.0), pause=None).delay_seconds is None


def test_a_body_whose_pause_has_just_ended_is_about_to_go_on() -> None:
    async def main() -> list[tuple[bool, bool]]:
        pauses, seen = Pauses(), list[tuple[bool, bool]]()
        first, second = (
            asyncio.create_task(pauses.long(None, is_parked=lambda: False, asks=name)) for name in ("a", "b")
        )
        await asyncio.sleep(0)
        seen.append((pauses.has_long, pauses.are_long))
        pauses.wake_awaiting(["a"])
        seen.append((pauses.has_long, pauses.are_long))
        await first
        seen.append((pauses.has_long, pauses.are_long))
        pauses.wake_all()
        await second
        seen.append((pauses.has_long, pauses.are_long))
        return seen

    assert asyncio.run(main()) == [(True, True), (True, False), (True, True), (False, False)]
