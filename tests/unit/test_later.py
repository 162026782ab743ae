"""What is written later: once, in order, under the lease that the run has then."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from edda_engine.core.events import StepKey
from edda_engine.errors import LeaseLostError
from edda_engine.runtime.later import Later, giving_up
from edda_engine.storage.units import Holder, LeaseLost, Saved

FIRST, SECOND = Holder("i", "w", 1), Holder("i", "w", 2)


class _Database:
    """Knows who holds the instance; what comes under another lease is refused."""

    def __init__(self, valid: Holder) -> None:
        self.valid, self.written, self.tried = valid, list[str](), 0

    async def commit(self, unit: Any) -> Any:
        self.tried += 1
        await asyncio.sleep(0)
        if unit.holder != self.valid:
            return LeaseLost()
        self.written.append(unit.key.activity_id)
        return Saved()


def later_for(database: _Database, *names: str) -> Later:
    later = Later(cast(Any, database.commit))
    for seq, name in enumerate(names):
        later.add(giving_up(StepKey(name, "", seq), name, seq))
    return later


def test_what_was_refused_under_a_lease_that_ended_is_written_under_the_next_one() -> None:
    async def main() -> list[str]:
        database = _Database(SECOND)
        held = iter([FIRST, SECOND, SECOND])
        later = later_for(database, "a:1", "b:1")
        await later.save(lambda: next(held))
        assert not later.has_some
        return database.written

    assert asyncio.run(main()) == ["a:1", "b:1"]


def test_without_a_lease_nothing_is_written_and_the_run_is_told() -> None:
    async def main() -> list[str]:
        database = _Database(SECOND)
        with pytest.raises(LeaseLostError):
            await later_for(database, "a:1").save(lambda: FIRST)
        return database.written

    assert asyncio.run(main()) == []


def test_nothing_is_tried_when_there_is_nothing_and_who_comes_later_waits_for_who_writes() -> None:
    async def main() -> tuple[int, list[str]]:
        database = _Database(FIRST)
        assert await later_for(database).save(lambda: FIRST) is False
        before = database.tried
        later = later_for(database, "a:1")
        saving = asyncio.create_task(later.save(lambda: FIRST))
        await asyncio.sleep(0)
        assert later.has_some
        await later.save(lambda: FIRST)
        assert database.written == ["a:1"]
        await saving
        return before, database.written

    assert asyncio.run(main()) == (0, ["a:1"])
