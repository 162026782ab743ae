"""Messages, as a machine that hypothesis drives: senders that commit late, deliveries and takes left open, crashes.

Each rule does to the tables what an engine, a request or another process would, by the functions of the storage. On
PostgreSQL several transactions are open at a time, each on a connection of its own, and rules interleave them;
SQLite admits one. At the end everything is delivered and received, and compared with what was committed when.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from sqlalchemy import make_url, text

from edda_engine.core.events import EventType, StepKey, event_json
from edda_engine.core.ports import DIRECT_CHANNEL, SubscriptionChange, WaitKind, WaitRequest
from edda_engine.core.status import Status
from edda_engine.storage import delivery, instances, migrate
from edda_engine.storage.database import Database
from edda_engine.storage.messages import insert_messages
from edda_engine.storage.units import (
    AlreadyRecorded,
    Block,
    End,
    PutBack,
    Refused,
    Step,
    Subscribe,
    Successor,
    Take,
    Wait,
)
from edda_engine.storage.urls import normalized_url
from tests.property.mailboxes import ENGINES, JOBS, MODES, NEWS, PAID, SENDERS, TABLES, WORKER, Box, GaveUp, World

usually_closed = st.sampled_from([False, True, False])


class Delivery(RuleBasedStateMachine):
    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.database)
        for name in ("a", "b"):
            self.world.start("request", self.world.boxes[name])
        self.world.finish("request")
        self.claim_all()
        for name in ("a", "b"):
            for channel in (NEWS, JOBS):
                self.subscribe_to(self.world.boxes[name], "worker", channel)
                self.world.finish("worker")

    # What is possible now.

    def free(self, *, is_waiting: bool = False) -> list[Box]:
        """Boxes whose body can make a call."""
        if not self.world.open_slots(*ENGINES):
            return []
        found = [box for box in self.world.boxes.values() if box.is_free and not box.is_to_stop]
        return [box for box in found if box.waits or not is_waiting]

    def drawn(self, data: st.DataObject, boxes: list[Box]) -> tuple[Box, str]:
        self.world.now += 1
        box = data.draw(st.sampled_from(boxes), label="box")
        return box, data.draw(st.sampled_from(self.world.open_slots(*ENGINES)), label="slot")

    def close(self, slot: str, stays_open: bool) -> None:
        if not stays_open:
            self.world.finish(slot)

    # What the application does.

    @precondition(lambda self: self.world.begun)
    @rule(data=st.data(), commits=st.sampled_from([True, True, True, False]))
    def end_a_transaction(self, data: st.DataObject, commits: bool) -> None:
        self.world.now += 1
        self.world.finish(data.draw(st.sampled_from(sorted(self.world.begun))), commits=commits)

    @precondition(lambda self: self.world.open_slots(*SENDERS))
    @rule(
        data=st.data(),
        name=st.sampled_from([NEWS, NEWS, JOBS, JOBS, PAID, DIRECT_CHANNEL]),
        is_addressed=st.booleans(),
        stays_open=usually_closed,
    )
    def send(self, data: st.DataObject, name: str, is_addressed: bool, stays_open: bool) -> None:
        slot = data.draw(st.sampled_from(self.world.open_slots(*SENDERS)))
        to = None
        if name == DIRECT_CHANNEL or (name == PAID and is_addressed):
            to = data.draw(st.sampled_from(list(self.world.boxes.values())))
        message = self.world.message(name, to)
        insert_messages(self.world.begin(slot).conn, [message])
        self.world.learn_with(slot, lambda: self.world.is_sent(message))
        self.close(slot, stays_open)

    def startable(self) -> list[Box]:
        if not self.world.open_slots("request"):
            return []
        return [box for box in self.world.boxes.values() if not box.is_started and not box.is_busy]

    @precondition(lambda self: self.startable())
    @rule(stays_open=st.booleans())
    def start(self, stays_open: bool) -> None:
        self.world.start("request", self.startable()[0])
        self.close("request", stays_open)

    def cancellable(self) -> list[Box]:
        if not self.world.open_slots("request"):
            return []
        return [box for box in self.world.boxes.values() if box.is_started and not box.is_busy and not box.has_ended]

    @precondition(lambda self: len(self.cancellable()) > 1)
    @rule(data=st.data(), stays_open=st.booleans())
    def cancel(self, data: st.DataObject, stays_open: bool) -> None:
        box = data.draw(st.sampled_from(self.cancellable()))
        try:
            assert self.world.attempt("request", lambda conn: instances.request_cancel(conn, box.run, None))
        except GaveUp:
            return

        def learn() -> None:
            box.is_to_stop = True
            if not box.is_held:
                box.end()

        self.world.learn_with("request", learn, box)
        self.close("request", stays_open)

    def blocked(self) -> list[Box]:
        if not self.world.open_slots("request"):
            return []
        return [box for box in self.world.boxes.values() if box.is_blocked and not box.is_busy and not box.has_ended]

    @precondition(lambda self: self.blocked())
    @rule(stays_open=usually_closed)
    def retry(self, stays_open: bool) -> None:
        box = self.blocked()[0]
        try:
            assert self.world.attempt("request", lambda conn: instances.take_up_again(conn, box.run))
        except GaveUp:
            return

        def learn() -> None:
            box.is_blocked = False

        self.world.learn_with("request", learn, box)
        self.close("request", stays_open)

    # What the engine does.

    @precondition(lambda self: "claimer" not in self.world.begun and self.world.open_slots("claimer"))
    @rule(stays_open=st.booleans(), claims=st.sampled_from([True, True, False]))
    def deliver(self, stays_open: bool, claims: bool) -> None:
        try:
            self.world.attempt("claimer", delivery.deliver)
            if claims:
                self.world.claim()
        except GaveUp as gave_up:
            raise AssertionError("a delivery waits for somebody") from gave_up
        self.close("claimer", stays_open)

    @precondition(lambda self: self.free())
    @rule(data=st.data(), stays_open=usually_closed)
    def ask(self, data: st.DataObject, stays_open: bool) -> None:
        box, slot = self.drawn(data, self.free())
        asked = {request.name for request, _ in box.waits.values()}
        if not (choices := [name for name in (JOBS, NEWS, PAID, DIRECT_CHANNEL, "") if name not in asked]):
            return
        name = data.draw(st.sampled_from(choices))
        kind = WaitKind.TIMER if not name else WaitKind.EVENT if name == PAID else WaitKind.MESSAGE
        seconds = data.draw(st.sampled_from([0.0, 3600.0] if kind is WaitKind.TIMER else [None, None, 3600.0, 0.0]))
        unit = box.take(box.next_key().activity_id, WaitRequest(kind, name, seconds))
        self.world.take(box, slot, unit, asked=self.world.now)
        self.close(slot, stays_open)

    @precondition(lambda self: self.free(is_waiting=True))
    @rule(data=st.data(), stays_open=usually_closed)
    def ask_again(self, data: st.DataObject, stays_open: bool) -> None:
        box, slot = self.drawn(data, self.free(is_waiting=True))
        activity_id = data.draw(st.sampled_from(sorted(box.waits)))
        request, asked = box.waits[activity_id]
        self.world.take(box, slot, box.take(activity_id, request), asked=asked)
        self.close(slot, stays_open)

    @precondition(lambda self: self.free(is_waiting=True))
    @rule(data=st.data(), stays_open=usually_closed)
    def give_the_lease_back(self, data: st.DataObject, stays_open: bool) -> None:
        box, slot = self.drawn(data, self.free(is_waiting=True))

        def learn(_: Any) -> None:
            box.is_held = False

        self.world.write(box, slot, Wait(box.holder, Status.WAITING_FOR_MESSAGE, None), learn)
        self.close(slot, stays_open)

    @precondition(lambda self: self.free())
    @rule(data=st.data(), channel=st.sampled_from([NEWS, JOBS]), stays_open=usually_closed)
    def subscribe(self, data: st.DataObject, channel: str, stays_open: bool) -> None:
        box, slot = self.drawn(data, self.free())
        self.subscribe_to(box, slot, channel)
        self.close(slot, stays_open)

    def subscribe_to(self, box: Box, slot: str, channel: str) -> None:
        step = box.next_step(EventType.SUBSCRIBED)

        def learn(outcome: Any) -> None:
            assert not isinstance(outcome, Refused)
            self.world.now += 1
            box.subscribed.setdefault(channel, self.world.now)

        self.world.write(box, slot, Subscribe(step, box.name, SubscriptionChange(channel, MODES[channel])), learn)

    @precondition(lambda self: self.free())
    @rule(data=st.data(), channel=st.sampled_from([NEWS, JOBS]), stays_open=usually_closed)
    def unsubscribe(self, data: st.DataObject, channel: str, stays_open: bool) -> None:
        box, slot = self.drawn(data, self.free())
        if channel in {request.name for request, _ in box.waits.values()}:
            return  # a body that waits for the channel is waiting
        step = box.next_step(EventType.UNSUBSCRIBED)

        def learn(_: Any) -> None:
            box.subscribed.pop(channel, None)

        self.world.write(box, slot, Subscribe(step, box.name, SubscriptionChange(channel, None)), learn)
        self.close(slot, stays_open)

    @precondition(lambda self: self.free())
    @rule(data=st.data(), name=st.sampled_from([NEWS, JOBS, DIRECT_CHANNEL]), stays_open=usually_closed)
    def send_as_a_step(self, data: st.DataObject, name: str, stays_open: bool) -> None:
        box, slot = self.drawn(data, self.free())
        message = self.world.message(name, self.world.boxes["a"] if name == DIRECT_CHANNEL else None)
        step = box.next_step(EventType.MESSAGE_SENT, message)
        self.world.write(box, slot, step, lambda _: self.world.is_sent(message))
        self.close(slot, stays_open)

    @precondition(lambda self: self.free())
    @rule(data=st.data(), stays_open=usually_closed)
    def withdraw_a_wait(self, data: st.DataObject, stays_open: bool) -> None:
        """Before anything came for it, or before the body saw what had come."""
        box, slot = self.drawn(data, self.free())
        taken = [step for step, _ in box.received if step in box.recorded]
        if not (choices := [*sorted(box.waits), *taken[-2:]]):
            return
        activity_id = data.draw(st.sampled_from(choices))
        number = int(activity_id.partition(":")[2])
        key = StepKey(activity_id, "", number)
        step = Step(box.holder, key, number, EventType.WAIT_WITHDRAWN, event_json("call"))

        def learn(_: Any) -> None:
            box.waits.pop(activity_id, None)
            box.recorded.pop(activity_id, None)
            self.world.returned |= {message_id for step, message_id in box.received if step == activity_id}
            box.received = [receipt for receipt in box.received if receipt[0] != activity_id]

        self.world.write(box, slot, PutBack(step, box.name), learn)
        self.close(slot, stays_open)

    def repeatable(self) -> list[Box]:
        """Those whose last commit may be made again, under the same lease: its acknowledgement was lost."""
        return [
            box
            for box in self.free()
            if isinstance(box.last, Step | Take | Subscribe | PutBack) and box.last.holder == box.holder
        ]

    @precondition(lambda self: self.repeatable())
    @rule(data=st.data(), stays_open=usually_closed)
    def repeat(self, data: st.DataObject, stays_open: bool) -> None:
        box, slot = self.drawn(data, self.repeatable())
        if isinstance(box.last, Take):
            asked = box.waits.get(box.last.key.activity_id, (None, self.world.now))[1]
            self.world.take(box, slot, box.last, asked=asked)
        elif isinstance(unit := box.last, Step | Subscribe | PutBack):

            def learn(outcome: Any) -> None:
                assert isinstance(outcome, AlreadyRecorded) or isinstance(unit, PutBack)

            self.world.write(box, slot, unit, learn)
        self.close(slot, stays_open)

    @precondition(lambda self: self.free())
    @rule(data=st.data(), recurs=st.booleans(), stays_open=st.booleans())
    def end(self, data: st.DataObject, recurs: bool, stays_open: bool) -> None:
        box, slot = self.drawn(data, self.free())
        self.end_box(box, slot, Status.RECURRED if recurs else Status.COMPLETED)
        self.close(slot, stays_open)

    def end_box(self, box: Box, slot: str, status: Status) -> None:
        successor = Successor(f"{box.run}'", "{}", "") if status is Status.RECURRED else None
        unit = End(box.holder, status, "1", had_waits=True, mailbox=box.name, successor=successor)

        def learn(outcome: Any) -> None:
            if successor is None or outcome.is_cancelled:
                box.end()
                return
            box.run, box.is_held, box.epoch, box.last = successor.instance_id, False, 0, None
            box.waits.clear()
            box.recorded.clear()

        self.world.write(box, slot, unit, learn)

    @precondition(lambda self: self.free())
    @rule(data=st.data(), stays_open=usually_closed)
    def block(self, data: st.DataObject, stays_open: bool) -> None:
        box, slot = self.drawn(data, self.free())

        def learn(_: Any) -> None:
            box.is_held, box.is_blocked, box.last = False, True, None

        self.world.write(box, slot, Block(box.holder, "{}"), learn)
        self.close(slot, stays_open)

    def stopping(self) -> list[Box]:
        if not self.world.open_slots(*ENGINES):
            return []
        return [box for box in self.world.boxes.values() if box.is_free and box.is_to_stop]

    @precondition(lambda self: self.stopping())
    @rule(data=st.data(), stays_open=st.booleans())
    def stop(self, data: st.DataObject, stays_open: bool) -> None:
        box, slot = self.drawn(data, self.stopping())
        self.end_box(box, slot, Status.CANCELLED)
        self.close(slot, stays_open)

    @precondition(lambda self: self.free())
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """The process dies between two transactions, and its instance is taken over."""
        box, slot = self.drawn(data, self.free())
        is_released = self.world.attempt(
            slot, lambda conn: instances.release(conn, worker_id=WORKER, instance_ids=[box.run])
        )
        if not is_released:
            return  # its row is locked: whoever takes over looks again later

        def learn() -> None:
            box.is_held, box.last = False, None

        self.world.learn_with(slot, learn, box)
        self.world.finish(slot)

    @precondition(lambda self: not self.world.begun)
    @rule()
    def look(self) -> None:
        self.world.look()

    # The end.

    def teardown(self) -> None:
        try:
            for slot in sorted(self.world.begun):
                self.world.finish(slot, commits=slot in SENDERS)
            self.world.look()
            self.receive_everything()
            self.world.look()
            self.world.judge()
        finally:
            for slot in list(self.world.begun):
                self.world.finish(slot, commits=False)

    def claim_all(self) -> None:
        self.world.attempt("claimer", delivery.deliver)
        self.world.claim()
        self.world.finish("claimer")

    def receive_everything(self) -> None:
        """Every live run asks for all that it may get, until there is nothing."""
        with self.database.write() as conn:
            conn.execute(
                text(
                    "UPDATE edda_instances SET wake_at = created_at, error = NULL"
                    " WHERE locked_by IS NULL AND completed_at IS NULL"
                )
            )
        before = None
        while before != (before := [(box.is_held, len(box.received)) for box in self.world.boxes.values()]):
            self.claim_all()
            for box in [box for box in self.world.boxes.values() if box.is_free]:
                if box.is_to_stop:
                    self.end_box(box, "worker", Status.CANCELLED)
                else:
                    self.receive(box)
                self.world.finish("worker")

    def receive(self, box: Box) -> None:
        sent = {sent.name for sent in self.world.sent.values()}
        for name in sorted(sent & {*box.subscribed, DIRECT_CHANNEL, PAID}):
            kind = WaitKind.EVENT if name == PAID else WaitKind.MESSAGE
            activity_id = next((step for step, (request, _) in box.waits.items() if request.name == name), None)
            fresh = WaitRequest(kind, name, 0.0), self.world.now
            request, asked = fresh if activity_id is None else box.waits[activity_id]
            self.world.take(box, "worker", box.take(activity_id or box.next_key().activity_id, request), asked=asked)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """One that gives up soon where it would have to wait for a lock."""
    url = normalized_url(database_url)
    if url.get_backend_name() == "postgresql":
        url = make_url(url).update_query_dict({"options": "-c lock_timeout=20"})
    found = Database.from_url(url)
    migrate.upgrade(found)
    if not found.is_sqlite:
        with found.write() as conn:
            for table in TABLES:  # a vacuum locks whole tables for a moment, which nobody here waits for
                conn.execute(text(f"ALTER TABLE edda_{table} SET (autovacuum_enabled = false)"))
    yield found
    found.close()


def test_whatever_is_sent_is_received_once_and_in_order_however_transactions_interleave(database: Database) -> None:
    machine = type("Delivery", (Delivery,), {"database": database})
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=30))
