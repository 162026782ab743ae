"""Processes die, stop and lose their database at every point of waiting and talking; others go on as if nothing had been.

The conversation has one right end: each message received once and in order, each row written once, nothing left over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edda_engine.runtime.probes import TALK_POINTS
from tests.faults.conversation import Kept
from tests.faults.talkers import DONE, KILLED, Talkers

UNITS = ("take", "wait", "send", "subscribe", "claim", "batch", "step", "end")
"""Of waits and of what bodies send; of deliveries; of all that the committer writes, of activities, of recurrences."""

STOPS = [
    ("take.before_commit", "take.after_commit", "wait.before_commit"),
    ("wait.after_commit", "send.before_commit", "send.after_commit"),
    ("subscribe.before_commit", "subscribe.after_commit", "claim.after_commit"),
    ("batch.after_commit", "end.before_commit", "end.after_commit"),
]
"""Where a process can stop without an open transaction that keeps the others out."""


@pytest.fixture
def talkers(database_url: str, tmp_path: Path) -> Iterator[Talkers]:
    found = Talkers(database_url, tmp_path)
    yield found
    found.clean_up()


@pytest.fixture
def kept(database_url: str) -> Kept:
    return Kept(database_url)


@pytest.mark.parametrize("unit", UNITS)
def test_nothing_is_lost_or_done_twice_when_one_process_after_the_other_is_killed_around_the_commit_of(
    unit: str, talkers: Talkers, kept: Kept
) -> None:
    before, after = f"{unit}.before_commit", f"{unit}.after_commit"
    for point, passing in ((before, 1), (after, 2), (before, 7)):
        ended = talkers.end_of(talkers.start(point, passings=(passing,)))
        assert ended == KILLED or (ended == DONE and passing > 2)

    assert talkers.end_of(talkers.start()) == DONE

    kept.assert_exactly_once()


@pytest.mark.parametrize("points", STOPS, ids=lambda points: points[0])
def test_processes_that_wake_after_another_has_done_their_work_change_nothing_and_go_on(
    points: tuple[str, ...], talkers: Talkers, kept: Kept
) -> None:
    short: dict[str, Any] = {"lock_timeout_seconds": 1.0}
    sleepers = []
    for passing, point in enumerate(points, 2):
        sleepers.append(talkers.start(point, passings=(passing,), action="stop", **short))
        talkers.wait_until_stopped(sleepers[-1])
    assert talkers.end_of(talkers.start(**short)) == DONE
    kept.assert_exactly_once()

    talkers.wake_all()

    assert [talkers.end_of(sleeper) for sleeper in sleepers] == [DONE] * len(sleepers)
    kept.assert_exactly_once()


@pytest.mark.parametrize(
    "points", [TALK_POINTS, *([f"{unit}.before_commit", f"{unit}.after_commit"] for unit in UNITS[4:])]
)
def test_a_process_whose_connections_are_cut_again_and_again_goes_on_by_itself(
    points: Sequence[str], postgres_url: str, tmp_path: Path
) -> None:
    kept, talkers = Kept(postgres_url), Talkers(postgres_url, tmp_path)
    try:
        assert talkers.end_of(talkers.start(*points, passings=(2, 5, 9, 14, 20), action="cut")) == DONE
    finally:
        talkers.clean_up()
    kept.assert_exactly_once()


@pytest.mark.parametrize("unit", ["claim", "batch", "step"])
def test_commits_that_fail_and_commits_whose_answer_is_lost_are_made_again_and_do_nothing_twice(
    unit: str, talkers: Talkers, kept: Kept
) -> None:
    points = (f"{unit}.before_commit", f"{unit}.after_commit")
    worker = talkers.start(*points, passings=(1, 3, 4, 6, 9, 11, 14, 18), action="lose")

    assert talkers.end_of(worker) == DONE

    kept.assert_exactly_once()
