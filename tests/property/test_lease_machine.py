"""Leases, as a machine that hypothesis drives: claims, late writers, expiries, hand-backs, cancels, left open or undone.

Each rule does to the tables what an engine, a request or an operator would, by the functions of the storage, and asks
the model what must come of it. On PostgreSQL several transactions are open at a time and rules interleave them. Above
all: of all the leases that there ever were, one can write, and of a step one row is written, whoever comes late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import make_url, text

from edda_engine.core.events import EventType, StepKey, event_json
from edda_engine.core.status import Status
from edda_engine.storage import claiming, instances, migrate
from edda_engine.storage.commit import commit_units
from edda_engine.storage.database import Database
from edda_engine.storage.retries import RetryState
from edda_engine.storage.starts import insert_instance
from edda_engine.storage.units import (
    AlreadyRecorded,
    Attempt,
    Block,
    Busy,
    End,
    HeldUnit,
    Holder,
    LeaseLost,
    Saved,
    Step,
    Wait,
)
from edda_engine.storage.urls import normalized_url
from tests.property.leases import DUE, LATER, WORKERS, Leases, Run
from tests.property.mailboxes import ENGINES, FLOW, SERVICE, GaveUp

usually_closed = st.sampled_from([False, True, False])
engines = st.sampled_from(ENGINES)
workers = st.sampled_from([WORKERS[0], *WORKERS])

KINDS: dict[str, Callable[[Holder, int], HeldUnit]] = {
    "step": lambda holder, number: step_of(holder, number),
    "attempt": lambda holder, number: Attempt(holder, f"act:{number % 3}", RetryState(1 + number % 5, errors=())),
    "wait": lambda holder, number: Wait(holder, Status.WAITING_FOR_EVENT, [None, 0.0, 3600.0][number % 3]),
    "complete": lambda holder, number: End(holder, Status.COMPLETED, "1", had_retries=True),
    "fail": lambda holder, number: End(holder, Status.FAILED, error_json='{"message": "no"}', had_retries=True),
    "block": lambda holder, number: Block(holder, '{"message": "blocked"}'),
}


def step_of(holder: Holder, number: int) -> Step:
    """Few names, so that many a step is recorded already; the sequence tells who wrote it."""
    key = StepKey(f"act:{number % 2}", "", number % 2)
    return Step(holder, key, holder.epoch * 1000 + number, EventType.ACTIVITY_COMPLETED, event_json("act"))


class LeaseMachine(RuleBasedStateMachine):
    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.leases = Leases(self.database)
        self.world, self.runs = self.leases.world, self.leases.runs
        self.numbers = 0
        for _ in range(5):
            self.begin_a_run()
        # One worker had them all once before: its older leases are the hardest to tell from those that it has now.
        self.claim_some("worker", 10)
        self.give_back("worker", ENGINES[0], "release_worker")
        self.claim_some("worker", 3)
        self.claim_some("sibling", 1)

    def is_open(self, *slots: str) -> bool:
        return bool(self.world.open_slots(*slots))

    def close(self, slot: str, stays_open: bool) -> None:
        if not stays_open:
            self.world.finish(slot)

    def learn(self, slot: str, runs: list[Run], change: Callable[[Run], None], *, shares: bool = False) -> None:
        def learn_all() -> None:
            for run in runs:
                change(run)

        self.world.learn_with(slot, learn_all, *self.leases.locked(slot, runs, shares=shares))

    @precondition(lambda self: self.world.begun)
    @rule(data=st.data(), commits=st.sampled_from([True, True, True, False]))
    def end_a_transaction(self, data: st.DataObject, commits: bool) -> None:
        self.world.finish(data.draw(st.sampled_from(sorted(self.world.begun))), commits=commits)

    # Requests and operators.

    @precondition(lambda self: self.is_open("request") and any(run.status is None for run in self.runs.values()))
    @rule(stays_open=usually_closed)
    def start(self, stays_open: bool) -> None:
        self.begin_a_run(stays_open)

    def begin_a_run(self, stays_open: bool = False) -> None:
        run = next(run for run in self.runs.values() if run.status is None)
        if run.locks:
            return
        assert insert_instance(self.world.begin("request").conn, self.leases.new(run))

        def change(run: Run) -> None:
            run.status, run.wake = Status.PENDING, DUE

        self.learn("request", [run], change)
        self.close("request", stays_open)

    @precondition(lambda self: self.is_open("request"))
    @rule(data=st.data(), stays_open=usually_closed)
    def cancel(self, data: st.DataObject, stays_open: bool) -> None:
        run = data.draw(st.sampled_from(self.leases.untouched_by("request") or [self.runs["a"]]))
        if "request" in run.locks:
            return
        try:
            done = self.world.attempt("request", lambda conn: instances.request_cancel(conn, run.name, None))
        except GaveUp:
            assert not run.is_free_for("request")
            return
        assert done is (None if run.status is None else not run.is_finished)

        def change(run: Run) -> None:
            run.is_asked_to_stop = True
            if run.holder is None:
                run.status, run.has_error = Status.CANCELLED, False
                run.attempts.clear()
                run.let_go(None)

        if run.status is not None:
            self.learn("request", [run], change if done else lambda run: None)
        self.close("request", stays_open)

    @precondition(lambda self: self.is_open("request"))
    @rule(data=st.data(), stays_open=usually_closed)
    def take_up_again(self, data: st.DataObject, stays_open: bool) -> None:
        run = data.draw(st.sampled_from(list(self.runs.values())))
        if run.locks:
            return
        can = run.holder is None and (run.status is Status.FAILED or (run.status is not None and run.is_blocked))
        conn = self.world.begin("request").conn
        assert instances.take_up_again(conn, run.name) is can

        def change(run: Run) -> None:
            run.status, run.has_error, run.is_asked_to_stop = Status.RUNNING, False, False
            run.let_go(DUE)

        if can:
            self.learn("request", [run], change)
        self.close("request", stays_open)

    # Engines.

    @precondition(lambda self: self.is_open("claimer"))
    @rule(worker_id=workers, limit=st.sampled_from([1, 2, 10]), stays_open=usually_closed)
    def claim(self, worker_id: str, limit: int, stays_open: bool) -> None:
        self.claim_some(worker_id, limit, stays_open)

    def claim_some(self, worker_id: str, limit: int, stays_open: bool = False) -> None:
        found = self.world.attempt(
            "claimer",
            lambda conn: claiming.claim_due(conn, worker_id=worker_id, service=SERVICE, names=[FLOW], limit=limit),
        )
        found.sort(key=lambda lease: lease.instance_id)  # the database's order is not always the same
        can = [run for run in self.leases.untouched_by("claimer") if run.is_due and run.is_free_for("claimer")]
        claimed = [self.runs[lease.instance_id] for lease in found]
        first = sorted((run.name for run in can), reverse=True)[:limit]
        assert sorted(run.name for run in claimed) == sorted(first), "not those that come first"
        for lease, run in zip(found, claimed, strict=True):
            assert lease.epoch == run.epoch + 1
            assert lease.is_cancelled == run.is_asked_to_stop
            assert (run.name, lease.epoch) not in {(holder.instance_id, holder.epoch) for holder in self.leases.ever}

        def change(run: Run) -> None:
            run.epoch += 1
            run.status, run.wake, run.holder = Status.RUNNING, LATER, Holder(run.name, worker_id, run.epoch)
            self.leases.ever.append(run.holder)

        self.learn("claimer", claimed, change)
        self.close("claimer", stays_open)

    @property
    def current(self) -> list[Holder]:
        return [run.holder for run in self.runs.values() if run.holder is not None]

    @precondition(lambda self: self.current and self.is_open(*ENGINES))
    @rule(data=st.data(), slot=engines, stays_open=usually_closed)
    def record_steps(self, data: st.DataObject, slot: str, stays_open: bool) -> None:
        self.write_some(data, slot, stays_open, self.current, ["step", "step", "attempt"])

    @precondition(lambda self: self.current and self.is_open(*ENGINES))
    @rule(data=st.data(), slot=engines, stays_open=usually_closed)
    def pause_or_end(self, data: st.DataObject, slot: str, stays_open: bool) -> None:
        self.write_some(data, slot, stays_open, self.current, ["wait", "wait", "wait", "complete", "fail", "block"])

    @precondition(lambda self: self.leases.ever and self.is_open(*ENGINES))
    @rule(data=st.data(), slot=engines, stays_open=usually_closed)
    def write_late(self, data: st.DataObject, slot: str, stays_open: bool) -> None:
        """Whoever ever had a lease, and above all who has it again, at another epoch."""
        again = [
            holder
            for holder in self.leases.ever
            if self.runs[holder.instance_id].held_by(holder.worker_id) and holder not in self.current
        ]
        self.write_some(data, slot, stays_open, again * 3 + self.leases.ever + self.current, ["step", *KINDS])

    def write_some(
        self, data: st.DataObject, slot: str, stays_open: bool, holders: list[Holder], kinds: list[str]
    ) -> None:
        """One group commit."""
        if not self.is_open(slot):
            return
        drawn = data.draw(st.lists(st.sampled_from(holders), min_size=1, max_size=3))
        units: list[HeldUnit] = []
        for holder in {holder.instance_id: holder for holder in drawn}.values():
            if slot in self.runs[holder.instance_id].locks:
                continue
            self.numbers += 1
            units.append(KINDS[data.draw(st.sampled_from(kinds))](holder, self.numbers))
        if not units:
            return
        try:
            outcomes = self.world.attempt(slot, lambda conn: commit_units(conn, units))
        except GaveUp:
            assert any(self.runs[unit.holder.instance_id].locks for unit in units), "it waited for nobody"
            return
        reads = all(isinstance(unit, Step | Attempt) for unit in units)
        for unit, outcome in zip(units, outcomes, strict=True):
            self.judge(unit, outcome, slot, reads=reads)
        self.close(slot, stays_open)

    def judge(self, unit: HeldUnit, outcome: Any, slot: str, *, reads: bool) -> None:
        run = self.runs[unit.holder.instance_id]
        if not run.is_free_for(slot, reads=reads):
            assert outcome == Busy(), "it did not see who has the row"
            return
        if unit.holder != run.holder:
            assert outcome == LeaseLost(), "it wrote under a lease that is lost"
            self.learn(slot, [run], lambda run: None, shares=reads)
            return
        known = isinstance(unit, Step) and unit.key.activity_id in run.steps
        if known:
            assert isinstance(outcome, AlreadyRecorded)
        else:
            is_due = isinstance(unit, Wait) and run.is_asked_to_stop
            assert outcome == Saved(is_cancelled=run.is_asked_to_stop, is_due=is_due)
        self.learn(slot, [run], lambda run: self.leases.written(unit), shares=reads)

    @precondition(lambda self: self.is_open(*ENGINES))
    @rule(worker_id=workers, slot=engines, stays_open=usually_closed)
    def renew(self, worker_id: str, slot: str, stays_open: bool) -> None:
        if not self.is_open(slot):
            return
        asked = self.leases.untouched_by(slot)
        found = self.world.attempt(
            slot, lambda conn: instances.renew(conn, worker_id=worker_id, instance_ids=[run.name for run in asked])
        )
        held = [run for run in asked if run.held_by(worker_id)]
        free = [run for run in held if run.is_free_for(slot)]
        assert found == {run.name: run.is_asked_to_stop if run in free else None for run in held}
        self.learn(slot, free, lambda run: setattr(run, "wake", LATER))
        self.close(slot, stays_open)

    @precondition(lambda self: self.is_open(*ENGINES))
    @rule(
        worker_id=workers,
        slot=engines,
        how=st.sampled_from(["release", "release_worker", "release_strays"]),
        stays_open=usually_closed,
    )
    def hand_back(self, worker_id: str, slot: str, how: str, stays_open: bool) -> None:
        """A worker at its end, a sibling that takes over, a worker that has lost count: late writes are refused."""
        if self.is_open(slot):
            self.give_back(worker_id, slot, how, stays_open)

    def give_back(self, worker_id: str, slot: str, how: str, stays_open: bool = False) -> None:
        touched = [run.name for run in self.runs.values() if slot in run.locks]
        if touched and how == "release_worker":
            return
        untouched = self.leases.untouched_by(slot)
        held = [run for run in untouched if run.held_by(worker_id)]
        free = [run for run in held if run.is_free_for(slot)]

        def work(conn: Any) -> Any:
            match how:
                case "release":
                    ids = [run.name for run in untouched]
                    return instances.release(conn, worker_id=worker_id, instance_ids=ids, delay_seconds=0.0)
                case "release_worker":
                    return sorted(instances.release_worker(conn, worker_id))
                case _:
                    return instances.release_strays(conn, worker_id=worker_id, held=touched)

        done = self.world.attempt(slot, work)
        expected: Any = sorted(run.name for run in free) if how == "release_worker" else free == held
        assert done == expected

        def change(run: Run) -> None:
            run.epoch += 1
            run.let_go(DUE)

        self.learn(slot, free, change)
        self.close(slot, stays_open)

    @precondition(lambda self: self.leases.ever and self.is_open(*ENGINES))
    @rule(data=st.data(), slot=engines, stays_open=usually_closed)
    def recall(self, data: st.DataObject, slot: str, stays_open: bool) -> None:
        """Who has a body in memory that can go on makes it due, unless another worker has had it since."""
        if not self.is_open(slot):
            return
        holder = data.draw(st.sampled_from(self.leases.ever))
        run = self.runs[holder.instance_id]
        if slot in run.locks:
            return
        waits = run.holder is None and run.epoch == holder.epoch and not run.is_finished and not run.has_error
        done = self.world.attempt(slot, lambda conn: instances.make_due(conn, instance_id=run.name, epoch=holder.epoch))
        is_free = run.is_free_for(slot)
        assert done is (is_free or not waits)
        if waits and is_free:
            self.learn(slot, [run], lambda run: setattr(run, "wake", DUE))
        self.close(slot, stays_open)

    # Time.

    @precondition(lambda self: not self.world.begun)
    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        """A lease expires, or a wait is over."""
        if not (later := [run for run in self.runs.values() if run.wake == LATER]):
            return
        run = data.draw(st.sampled_from(later))
        with self.database.write() as conn:
            statement = "UPDATE edda_instances SET wake_at = created_at{} WHERE instance_id = :id"
            expired = ", lock_expires_at = created_at" if run.holder is not None else ""
            conn.execute(text(statement.format(expired)), {"id": run.name})
        run.wake = DUE

    @invariant()
    def tables_say_what_the_model_says_when_nobody_is_in_the_middle_of_something(self) -> None:
        if not self.world.begun:
            self.leases.compare()

    def teardown(self) -> None:
        try:
            for slot in sorted(self.world.begun):
                self.world.finish(slot)
            self.leases.compare()
            self.run_to_the_end()
            self.leases.compare()
        finally:
            for slot in list(self.world.begun):
                self.world.finish(slot, commits=False)

    def run_to_the_end(self) -> None:
        """Leases expire, and one worker does what is left: nothing is stuck but what waits for somebody."""
        with self.database.write() as conn:
            conn.execute(text("UPDATE edda_instances SET wake_at = created_at WHERE wake_at IS NOT NULL"))
            claimed = claiming.claim_due(conn, worker_id="last", service=SERVICE, names=[FLOW], limit=10)
            ends = [
                End(Holder(lease.instance_id, "last", lease.epoch), Status.COMPLETED, "1", had_retries=True)
                for lease in claimed
            ]
            assert commit_units(conn, ends) == [
                Saved(is_cancelled=self.runs[lease.instance_id].is_asked_to_stop) for lease in claimed
            ]
        for lease in claimed:
            run = self.runs[lease.instance_id]
            assert not run.is_finished
            run.epoch = lease.epoch
            self.leases.written(End(Holder(run.name, "last", run.epoch), Status.COMPLETED))
        for run in self.runs.values():
            assert (run.holder, run.wake) == (None, None), "it is stuck"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """One that gives up soon where it would have to wait for a lock."""
    url = normalized_url(database_url)
    if url.get_backend_name() == "postgresql":
        url = make_url(url).update_query_dict({"options": "-c lock_timeout=20"})
    found = Database.from_url(url)
    migrate.upgrade(found)
    yield found
    found.close()


def test_of_all_leases_one_can_write_however_transactions_interleave(database: Database) -> None:
    machine = type("Leases", (LeaseMachine,), {"database": database})
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=30))
