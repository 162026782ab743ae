"""The alarm of the claimer: it rings at each of the times that it was asked for, and once for those of one moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from edda_engine.runtime.wakeups import REMEMBERED, Alarm


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time a test sets."""

    now = 100.0

    def time(self) -> float:
        return self.now


def ring(script: Callable[[Clock, Alarm], Any]) -> list[float]:
    """At which seconds of the script's clock it rang; the script sets times, and yields to let them pass."""
    loop = Clock()
    rung: list[float] = []

    async def main() -> None:
        alarm = Alarm(lambda: rung.append(round(loop.now - 100, 3)))
        for seconds in script(loop, alarm):
            loop.now = 100.0 + seconds
            for _ in range(3):
                await asyncio.sleep(0)

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    return rung


def test_it_rings_at_each_time_that_it_was_asked_for_in_their_order() -> None:
    def script(_loop: Clock, alarm: Alarm) -> Any:
        for seconds in (3.0, 1.0, 2.0):
            alarm.ring_in(seconds)
        yield from (0.9, 1.0, 1.5, 2.0, 2.9, 3.0, 4.0)

    assert ring(script) == [1.0, 2.0, 3.0]


def test_it_rings_once_for_the_times_of_one_moment_and_for_those_that_have_passed() -> None:
    def script(_loop: Clock, alarm: Alarm) -> Any:
        for seconds in (1.0, 1.0, 1.0001, 1.3, 1.6):
            alarm.ring_in(seconds)
        yield from (1.0, 1.5, 2.0)

    assert ring(script) == [1.0, 1.5, 2.0]


def test_what_is_due_already_rings_at_once() -> None:
    def script(_loop: Clock, alarm: Alarm) -> Any:
        alarm.ring_in(-5.0)
        yield 0.0

    assert ring(script) == [0.0]


def test_of_very_many_it_remembers_the_nearest() -> None:
    def script(_loop: Clock, alarm: Alarm) -> Any:
        for number in range(REMEMBERED):
            alarm.ring_in(1000.0 + number)
        alarm.ring_in(1.0)
        alarm.ring_in(10_000.0)
        yield from (1.0, 999.0, 1000.0 + REMEMBERED, 20_000.0)

    assert ring(script) == [1.0, 1000.0 + REMEMBERED]


@pytest.mark.parametrize("again", [False, True])
def test_cancelled_it_is_silent_until_it_is_set_anew(again: bool) -> None:
    def script(_loop: Clock, alarm: Alarm) -> Any:
        alarm.ring_in(1.0)
        alarm.ring_in(2.0)
        alarm.cancel()
        if again:
            alarm.ring_in(3.0)
        yield from (1.0, 2.0, 3.0)

    assert ring(script) == ([3.0] if again else [])


def test_it_is_silent_for_those_who_have_gone_on_and_rings_for_the_others() -> None:
    def script(_loop: Clock, alarm: Alarm) -> Any:
        for whose, seconds in (("a", 1.0), ("b", 1.0), ("c", 2.0), ("d", 3.0)):
            alarm.ring_in(seconds, whose)
        for whose in ("a", "c", "unknown", "a"):
            alarm.forget(whose)
        yield from (1.0, 2.0, 3.0)

    assert ring(script) == [1.0, 3.0]


def test_a_later_wish_of_the_same_takes_the_place_of_the_earlier() -> None:
    def script(_loop: Clock, alarm: Alarm) -> Any:
        alarm.ring_in(1.0, "a")
        alarm.ring_in(3.0, "a")
        alarm.ring_in(2.0, "b")
        alarm.ring_in(1.5, "b")
        yield from (1.0, 1.5, 2.0, 3.0)
        alarm.forget("a")
        alarm.ring_in(1.0, "a")
        yield from (3.5, 4.0)

    assert ring(script) == [1.5, 3.0, 4.0]


def test_who_was_not_remembered_among_very_many_can_be_forgotten_and_asked_for_again() -> None:
    def script(_loop: Clock, alarm: Alarm) -> Any:
        alarm.ring_in(9_000.0, "far")
        for number in range(REMEMBERED):
            alarm.ring_in(1.0 + number / 1000, f"near-{number}")
        alarm.forget("far")
        for number in range(REMEMBERED):
            alarm.forget(f"near-{number}")
        yield 5.0
        alarm.ring_in(1.0, "far")
        yield 6.0

    assert ring(script) == [6.0]
