"""The one table of legal moves."""

from __future__ import annotations

import pytest

from edda_engine.core.status import FINISHED, TRANSITIONS, WAITING, Status, may_become, sources_of

MOVES = {
    "pending": {"running", "cancelled"},
    "running": {
        "running", "waiting_for_event", "waiting_for_timer", "waiting_for_message",
        "compensating", "completed", "failed", "cancelled", "recurred",
    },
    "waiting_for_event": {"running", "cancelled", "compensating"},
    "waiting_for_timer": {"running", "cancelled", "compensating"},
    "waiting_for_message": {"running", "cancelled", "compensating"},
    "compensating": {"compensating", "failed", "cancelled"},
    "completed": set(),
    "failed": {"running"},
    "cancelled": set(),
    "recurred": set(),
}  # fmt: skip


def test_the_table_has_a_row_for_every_status() -> None:
    assert set(TRANSITIONS) == set(Status) == set(MOVES)


@pytest.mark.parametrize("current", list(Status))
def test_a_status_may_become_exactly_what_the_design_says(current: Status) -> None:
    assert {following.value for following in Status if may_become(current, following)} == MOVES[current.value]


@pytest.mark.parametrize("following", list(Status))
def test_the_sources_of_a_status_are_the_table_read_backwards(following: Status) -> None:
    assert sources_of(following) == {current for current in Status if following.value in MOVES[current.value]}


def test_finished_instances_are_the_four_ends() -> None:
    assert {status.value for status in FINISHED} == {"completed", "failed", "cancelled", "recurred"}
    assert [status for status in Status if status.is_finished] == [
        Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.RECURRED,
    ]  # fmt: skip


def test_only_a_failed_instance_comes_back_from_its_end() -> None:
    assert [status for status in FINISHED if TRANSITIONS[status]] == [Status.FAILED]


def test_nothing_waits_without_having_run() -> None:
    assert all(sources_of(waiting) == {Status.RUNNING} for waiting in WAITING)


def test_every_status_can_be_reached_from_pending_and_every_unfinished_one_can_end() -> None:
    def reached(start: Status) -> set[Status]:
        seen, todo = {start}, [start]
        while todo:
            for following in TRANSITIONS[todo.pop()] - seen:
                seen.add(following)
                todo.append(following)
        return seen

    assert reached(Status.PENDING) == set(Status)
    assert all(reached(status) & FINISHED for status in Status)


def test_a_status_is_its_stored_word() -> None:
    assert f"{Status.WAITING_FOR_TIMER}" == "waiting_for_timer"
    assert Status("completed") is Status.COMPLETED
