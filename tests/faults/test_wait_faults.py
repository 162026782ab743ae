"""Processes die, stop and lose their database while many instances wait and talk; others go on as if nothing had been.

The conversation has one right end: each message received once and in order, each row written once, nothing left over.
What happens at each point by itself is in the fault table; here it happens again and again, in the middle of much else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edda_engine.runtime.probes import TALK_POINTS
from tests.faults.conversation import Kept
from tests.faults.forks import DONE, KILLED
from tests.faults.talkers import Talkers

KILLS = [
    ("take.before_commit", 3), ("claim.before_commit", 7), ("wait.after_commit", 2), ("activity.after_commit", 3),
    ("send.before_commit", 4), ("batch.before_commit", 9), ("subscribe.after_commit", 1), ("end.before_commit", 2),
]  # fmt: skip
"""One process after the other dies there, each further on in the conversation."""

COMMITS = ("claim", "batch", "activity")
"""Of waits and of what bodies send; of deliveries; of all that the committer writes, of activities, of recurrences."""


@pytest.fixture
def talkers(database_url: str, tmp_path: Path) -> Iterator[Talkers]:
    found = Talkers(database_url, tmp_path)
    yield found
    found.clean_up()


@pytest.fixture
def kept(database_url: str) -> Kept:
    return Kept(database_url)


def test_nothing_is_lost_or_done_twice_when_one_process_after_the_other_is_killed(talkers: Talkers, kept: Kept) -> None:
    ends = [talkers.end_of(talkers.talk(point, passings=(passing,))) for point, passing in KILLS]
    assert set(ends) <= {KILLED, DONE}
    assert ends.count(KILLED) >= 4

    assert talkers.end_of(talkers.talk()) == DONE

    kept.assert_exactly_once()


def test_processes_that_wake_after_another_has_done_their_work_change_nothing_and_go_on(
    talkers: Talkers, kept: Kept
) -> None:
    short: dict[str, Any] = {"lock_timeout_seconds": 1.0}
    sleepers = []
    for passing, point in enumerate(("take.before_commit", "wait.after_commit", "claim.after_commit"), 2):
        sleepers.append(talkers.talk(point, passings=(passing,), action="stop", **short))
        talkers.wait_until_it_stops(sleepers[-1])
    assert talkers.end_of(talkers.talk(**short)) == DONE
    kept.assert_exactly_once()

    talkers.wake_all()

    assert [talkers.end_of(sleeper) for sleeper in sleepers] == [DONE] * len(sleepers)
    kept.assert_exactly_once()


def test_a_process_whose_connections_are_cut_again_and_again_goes_on_by_itself(
    postgres_url: str, tmp_path: Path
) -> None:
    kept, talkers = Kept(postgres_url), Talkers(postgres_url, tmp_path)
    points = (*TALK_POINTS, *(f"{unit}.{when}_commit" for unit in COMMITS for when in ("before", "after")))
    try:
        assert talkers.end_of(talkers.talk(*points, passings=(2, 9, 20, 33, 51, 70, 90), action="cut")) == DONE
    finally:
        talkers.clean_up()
    kept.assert_exactly_once()


def test_commits_that_fail_and_commits_whose_answer_is_lost_are_made_again_and_do_nothing_twice(
    talkers: Talkers, kept: Kept
) -> None:
    points = [f"{unit}.{when}_commit" for unit in COMMITS for when in ("before", "after")]
    worker = talkers.talk(*points, passings=(1, 3, 4, 6, 9, 11, 14, 18, 23, 24, 31, 40, 52), action="lose")

    assert talkers.end_of(worker) == DONE

    kept.assert_exactly_once()
