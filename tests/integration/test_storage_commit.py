"""The atomic units: what each leaves in the database, and what is refused without a valid lease."""

from __future__ import annotations

from typing import Any

import pytest

from edda_engine.core.events import EventType, Recorded, StepKey
from edda_engine.core.ports import NewInstance, OutboxEvent
from edda_engine.core.status import Status
from edda_engine.storage import claiming, history, instances, retries
from edda_engine.storage.commit import (
    AlreadyRecorded,
    Attempt,
    BatchOutcome,
    Block,
    End,
    Holder,
    LeaseLost,
    Refused,
    Saved,
    Start,
    Started,
    Step,
    Unit,
    Wait,
    commit_units,
)
from edda_engine.storage.database import Database
from edda_engine.storage.retries import RetryState
from edda_engine.storage.starts import insert_instance
from tests.integration.engines import Tables, run


def started(database: Database, *ids: str, worker_id: str = "worker") -> dict[str, Holder]:
    """Instances that *worker_id* has claimed."""
    for instance_id in ids:
        new = NewInstance(instance_id, "wf", "tests", "{}", "hash", 60.0)
        run(database, lambda conn, new=new: insert_instance(conn, new))  # type: ignore[misc]
    leases = run(
        database,
        lambda conn: claiming.claim_due(conn, worker_id=worker_id, service="tests", names=["wf"], limit=100),
    )
    return {lease.instance_id: Holder(lease.instance_id, worker_id, lease.epoch) for lease in leases}


def step(holder: Holder, number: int = 1, result: str = "1", outbox: tuple[OutboxEvent, ...] = ()) -> Step:
    event = f'{{"activity_name":"act","result":{result}}}'
    return Step(holder, StepKey(f"act:{number}", "", number), number, EventType.ACTIVITY_COMPLETED, event, outbox)


def commit(database: Database, *units: Unit) -> list[BatchOutcome]:
    return run(database, lambda conn: commit_units(conn, units))


def steps_of(database: Database, instance_id: str) -> list[Recorded]:
    return run(database, lambda conn: history.load(conn, [instance_id])).get(instance_id, ([], 0))[0]


def test_a_step_of_the_holder_is_saved(database: Database) -> None:
    holder = started(database, "a")["a"]
    assert commit(database, step(holder)) == [Saved()]
    assert steps_of(database, "a") == [
        Recorded("act:1", "", 1, "ActivityCompleted", {"activity_name": "act", "result": 1})
    ]


def test_a_worker_that_outlived_its_lease_cannot_write(database: Database) -> None:
    old = started(database, "a")["a"]
    run(database, lambda conn: instances.release_worker(conn, "worker"))
    new = started(database, worker_id="other")["a"]
    assert new.epoch > old.epoch
    assert commit(database, step(old, 1, '"old"')) == [LeaseLost()]
    assert commit(database, step(new, 1, '"new"')) == [Saved()]
    assert [found.event_data["result"] for found in steps_of(database, "a")] == ["new"]


@pytest.mark.parametrize("what", ["worker", "epoch", "instance"])
def test_a_unit_is_refused_unless_worker_epoch_and_instance_fit(database: Database, what: str) -> None:
    holder = started(database, "a")["a"]
    wrong = {
        "worker": Holder("a", "somebody", holder.epoch),
        "epoch": Holder("a", "worker", holder.epoch + 1),
        "instance": Holder("b", "worker", holder.epoch),
    }[what]
    units = [
        step(wrong),
        Attempt(wrong, "act:1", RetryState(1, 0.0, 1.0)),
        Wait(wrong, Status.WAITING_FOR_TIMER, 1.0),
        End(wrong, Status.COMPLETED, "1"),
        Block(wrong, "{}"),
    ]
    assert commit(database, *units) == [LeaseLost()] * 5
    assert steps_of(database, "a") == []
    assert run(database, lambda conn: retries.load(conn, ["a", "b"])) == {}


def test_a_step_that_is_recorded_already_is_adopted_and_sends_nothing(database: Database, tables: Tables) -> None:
    holder = started(database, "a")["a"]
    event = OutboxEvent("event-1", "t", "s", "application/json", "{}")
    again = OutboxEvent("event-2", "t", "s", "application/json", "{}")
    assert commit(database, step(holder, 1, '"first"', (event,))) == [Saved()]
    (outcome,) = commit(database, step(holder, 1, '"second"', (again,)))
    assert isinstance(outcome, AlreadyRecorded)
    assert outcome.event.event_data["result"] == "first"
    assert [row["event_id"] for row in tables.rows("SELECT event_id FROM edda_outbox")] == ["event-1"]


def test_one_lost_lease_leaves_the_other_units_of_the_batch_alone(database: Database, tables: Tables) -> None:
    holders = started(database, "a", "b", "c")
    tables.take_away("b")
    commit(database, step(holders["c"], 1, '"before"'))
    outcomes = commit(database, step(holders["a"]), step(holders["b"]), step(holders["c"], 1), step(holders["a"], 2))
    assert [type(outcome) for outcome in outcomes] == [Saved, LeaseLost, AlreadyRecorded, Saved]
    assert [len(steps_of(database, each)) for each in "abc"] == [2, 0, 1]


def test_the_outcome_says_that_the_instance_was_asked_to_stop(database: Database) -> None:
    holders = started(database, "a", "b")
    run(database, lambda conn: instances.request_cancel(conn, "a", "why"))
    assert commit(database, step(holders["a"]), step(holders["b"])) == [Saved(is_cancelled=True), Saved()]


def test_of_two_starts_of_one_id_in_a_batch_one_is_new_and_another_input_is_a_conflict(database: Database) -> None:
    same, other = (NewInstance("a", "wf", "tests", input_json, "hash", 60.0) for input_json in ("{}", '{"n":1}'))
    first, again, conflict = commit(database, Start(same, "worker"), Start(same), Start(other))
    assert isinstance(first, Started)
    assert first.lease is not None
    assert again == Started(False)
    assert isinstance(conflict, Refused)


def test_a_start_whose_answer_was_lost_tells_its_worker_again_what_it_holds(database: Database) -> None:
    new = NewInstance("a", "wf", "tests", "{}", "hash", 60.0)
    (first,) = commit(database, Start(new, "worker"))

    assert commit(database, Start(new, "worker"), Start(new, "another")) == [first, Started(False)]
    run(database, lambda conn: instances.release_worker(conn, "worker"))
    started(database, worker_id="worker")
    assert commit(database, Start(new, "worker")) == [Started(False)], "it is held by a later claim"


def test_an_attempt_is_kept_until_its_step_is_recorded(database: Database) -> None:
    holder = started(database, "a")["a"]
    errors = ({"attempt": 1, "error_type": "ValueError", "message": "ö"},)
    commit(database, Attempt(holder, "act:1", RetryState(1, 2.0, 30.0, errors)))
    kept = run(database, lambda conn: retries.load(conn, ["a"]))["a"]["act:1"]
    assert (kept.attempts, kept.errors) == (1, errors)
    assert 2.0 <= kept.elapsed_seconds < 10
    assert 20 < kept.due_in_seconds <= 30.1
    done = step(holder)
    commit(database, Step(done.holder, done.key, 1, done.event_type, done.event_json, (), had_retries=True))
    assert run(database, lambda conn: retries.load(conn, ["a"])) == {}


def test_the_first_attempts_time_is_not_moved_by_later_ones(database: Database, tables: Tables) -> None:
    holder = started(database, "a")["a"]
    commit(database, Attempt(holder, "act:1", RetryState(1, 0.0, 1.0)))
    first = tables.value("SELECT first_attempt_at FROM edda_retries")
    commit(database, Attempt(holder, "act:1", RetryState(2, 500.0, 1.0)))
    row = tables.rows("SELECT attempts, first_attempt_at FROM edda_retries")[0]
    assert (row["attempts"], row["first_attempt_at"]) == (2, first)


def test_a_wait_gives_the_lease_back_until_it_is_due(database: Database) -> None:
    holder = started(database, "a")["a"]
    assert commit(database, Wait(holder, Status.WAITING_FOR_TIMER, 60.0)) == [Saved()]
    row: Any = run(database, lambda conn: instances.find(conn, "a"))
    assert (row["status"], row["locked_by"], row["lock_expires_at"]) == ("waiting_for_timer", None, None)
    assert (row["wake_at"] - row["updated_at"]).total_seconds() == pytest.approx(60, abs=0.5)
    assert commit(database, step(holder)) == [LeaseLost()]


def test_a_wait_of_an_instance_that_was_asked_to_stop_is_due_at_once(database: Database) -> None:
    holder = started(database, "a")["a"]
    run(database, lambda conn: instances.request_cancel(conn, "a", None))
    commit(database, Wait(holder, Status.WAITING_FOR_TIMER, 3600.0))
    (lease,) = run(
        database, lambda conn: claiming.claim_due(conn, worker_id="w", service="tests", names=["wf"], limit=1)
    )
    assert lease.is_cancelled is True


def test_an_end_is_final_and_forgets_attempts_under_way(database: Database) -> None:
    holder = started(database, "a")["a"]
    commit(database, Attempt(holder, "act:1", RetryState(1, 0.0, 1.0)))
    assert commit(database, End(holder, Status.COMPLETED, '{"a":1}', had_retries=True)) == [Saved()]
    row: Any = run(database, lambda conn: instances.find(conn, "a"))
    assert (row["status"], row["output"], row["wake_at"], row["locked_by"]) == ("completed", '{"a":1}', None, None)
    assert row["completed_at"] is not None
    assert run(database, lambda conn: retries.load(conn, ["a"])) == {}
    assert commit(database, End(holder, Status.FAILED, None, "{}")) == [LeaseLost()]


def test_a_block_keeps_the_instance_visible_and_unclaimed(database: Database) -> None:
    holder = started(database, "a")["a"]
    commit(database, Block(holder, '{"message":"why"}'))
    row: Any = run(database, lambda conn: instances.find(conn, "a"))
    assert (row["status"], row["error"], row["wake_at"], row["locked_by"]) == (
        "running",
        '{"message":"why"}',
        None,
        None,
    )
    assert started(database) == {}
    assert run(database, lambda conn: instances.take_up_again(conn, "a")) is True
    assert list(started(database)) == ["a"]


def test_renewing_tells_which_leases_are_still_held_and_which_are_to_stop(database: Database, tables: Tables) -> None:
    started(database, "a", "b", "c")
    tables.take_away("b")
    run(database, lambda conn: instances.request_cancel(conn, "c", None))
    renewed = run(database, lambda conn: instances.renew(conn, worker_id="worker", instance_ids=["a", "b", "c", "d"]))
    assert renewed == {"a": False, "c": True}


def test_a_transaction_that_raises_leaves_nothing(database: Database) -> None:
    holder = started(database, "a")["a"]

    def write_and_fail(conn: Any) -> None:
        commit_units(conn, [step(holder), End(holder, Status.COMPLETED, "1")])
        raise RuntimeError("before the commit")

    with pytest.raises(RuntimeError):
        run(database, write_and_fail)
    assert steps_of(database, "a") == []
    assert commit(database, step(holder)) == [Saved()]
