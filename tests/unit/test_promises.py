"""The places of a worker: who gets one, and when there are enough for those that only sleep."""

from __future__ import annotations

import pytest

from edda_engine.runtime.promises import Promises


def test_no_more_places_are_given_than_there_are() -> None:
    held = ["a", "b"]
    promises = Promises(held, max_running=5)
    assert [promises.give(2), promises.give(2), promises.give(2)] == [2, 1, 0]
    promises.end(2)
    held.append("c")
    assert promises.give(9) == 1
    held[:] = []
    promises.end(2)
    assert promises.give(9) == 5


def test_a_worker_that_stops_gives_none() -> None:
    promises = Promises([], max_running=5)
    promises.close()
    assert promises.give() == 0
    assert promises.are_over


def test_a_worker_that_stops_takes_what_is_on_its_way() -> None:
    promises = Promises([], max_running=5)
    promises.give(2)
    promises.close()
    assert not promises.are_over
    promises.end(2)
    assert promises.are_over


@pytest.mark.parametrize(
    ("held", "promised", "enough"), [(0, 0, True), (2, 0, True), (1, 1, True), (3, 0, False), (2, 1, False)]
)
def test_half_of_the_places_are_free_if_no_more_than_half_are_held_or_promised(
    held: int, promised: int, enough: bool
) -> None:
    promises = Promises(range(held), max_running=4)
    promises.give(promised)
    assert promises.are_half_free is enough
