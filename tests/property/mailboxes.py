"""A world of mailboxes for the delivery machine: the tables, transactions on them left open, and a model beside them.

What a transaction does to the model is *learnt* when it commits. A transaction that would have to wait for another
one, which no other thread could end here, gives up at once and is rolled back, as if its process had died. The
engine's own transactions may have to wait for each other, never for a sender's or a request's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Connection, Transaction, text
from sqlalchemy.exc import OperationalError

from edda_engine.core.events import EventType, Recorded, StepKey, event_json
from edda_engine.core.ports import DIRECT_CHANNEL, ChannelMode, NewInstance, OutgoingMessage, WaitRequest
from edda_engine.storage import claiming, delivery
from edda_engine.storage.commit import commit_units
from edda_engine.storage.database import WRITE_OPTION, Database
from edda_engine.storage.starts import insert_instance
from edda_engine.storage.units import (
    AlreadyRecorded,
    BatchOutcome,
    Block,
    Busy,
    End,
    Holder,
    LeaseLost,
    Open,
    Refused,
    Step,
    Take,
    Unit,
    Wait,
)  # fmt: skip

WORKER, SERVICE, FLOW = "worker", "tests", "flow"
NEWS, JOBS, PAID = "news", "jobs", "paid"
MODES = {NEWS: ChannelMode.BROADCAST, JOBS: ChannelMode.COMPETING}
NAMES = ("a", "b", "c", "d")
TABLES = ("instances", "history", "retries", "waits", "channels", "subscriptions", "messages", "inbox")
SENDERS = ("sender", "late sender")
HUMAN = (*SENDERS, "request")
"""Transactions of the application: nobody knows how long they stay open."""
ENGINES = ("worker", "other worker")


@dataclass
class Sent:
    """A message; *committed* is the time of its commit."""

    name: str
    addressee: str | None
    inserted: int
    committed: int | None = None


@dataclass(repr=False)
class Box:
    """A mailbox, and the run that reads it now."""

    name: str
    run: str
    is_started: bool = False
    is_held: bool = False
    is_busy: bool = False
    is_blocked: bool = False
    is_to_stop: bool = False
    has_ended: bool = False
    epoch: int = 0
    calls: int = 0
    waits: dict[str, tuple[WaitRequest, int]] = field(default_factory=dict)
    recorded: dict[str, Recorded] = field(default_factory=dict)
    received: list[tuple[str, str]] = field(default_factory=list)
    """The step and the message of each receipt, in order."""
    subscribed: dict[str, int] = field(default_factory=dict)
    last: Unit | None = None

    def __repr__(self) -> str:
        return self.name

    @property
    def is_free(self) -> bool:
        return self.is_held and not self.is_busy

    @property
    def holder(self) -> Holder:
        return Holder(self.run, WORKER, self.epoch)

    def next_key(self) -> StepKey:
        self.calls += 1
        return StepKey(f"call:{self.calls}", "", self.calls)

    def next_step(self, kind: EventType, *messages: OutgoingMessage) -> Step:
        key = self.next_key()
        return Step(self.holder, key, key.position, kind, event_json("call"), messages=messages)

    def take(self, activity_id: str, request: WaitRequest) -> Take:
        number = int(activity_id.partition(":")[2])
        return Take(self.holder, StepKey(activity_id, "", number), number, "call", self.name, request)

    def end(self) -> None:
        self.has_ended, self.is_held, self.is_blocked = True, False, False
        self.subscribed.clear()
        self.waits.clear()


@dataclass
class Begun:
    """A transaction, whom it concerns, and what the model learns by its commit."""

    conn: Connection
    transaction: Transaction
    boxes: list[Box] = field(default_factory=list)
    learnt: list[Callable[[], None]] = field(default_factory=list)


class GaveUp(Exception):
    """The transaction would have had to wait for another one."""


class World:
    """The tables and the model."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = 0
        self.begun: dict[str, Begun] = {}
        self.boxes = {name: Box(name, name) for name in NAMES}
        self.sent: dict[str, Sent] = {}
        self.returned: set[str] = set()
        with database.write() as conn:
            for table in TABLES:
                conn.execute(text(f"DELETE FROM edda_{table}"))

    # Transactions.

    def open_slots(self, *slots: str) -> list[str]:
        """Which of these transactions can go on, or begin: SQLite admits one at a time."""
        return [slot for slot in slots if slot in self.begun or not self.database.is_sqlite or not self.begun]

    def begin(self, slot: str) -> Begun:
        if slot not in self.begun:
            conn = self.database.engine.connect().execution_options(**{WRITE_OPTION: True})
            self.begun[slot] = Begun(conn, conn.begin())
        return self.begun[slot]

    def attempt(self, slot: str, work: Callable[[Connection], Any]) -> Any:
        """Do *work* in a transaction; one that would wait is rolled back."""
        others = set(self.begun) - {slot}
        try:
            return work(self.begin(slot).conn)
        except OperationalError as error:
            has_waited = getattr(error.orig, "sqlstate", "") == "55P03"
            if not has_waited or (slot not in HUMAN and not others - set(HUMAN)):
                raise
            self.finish(slot, commits=False)
            raise GaveUp from error

    def finish(self, slot: str, *, commits: bool = True) -> None:
        if (found := self.begun.pop(slot, None)) is None:
            return
        try:
            found.transaction.commit() if commits else found.transaction.rollback()
        finally:
            found.conn.close()
        for box in found.boxes:
            box.is_busy = False
        for learn in found.learnt if commits else ():
            learn()

    def learn_with(self, slot: str, learn: Callable[[], None], *boxes: Box) -> None:
        """The commit of this transaction tells something; meanwhile nobody else works on these boxes."""
        self.begun[slot].learnt.append(learn)
        self.begun[slot].boxes += boxes
        for box in boxes:
            box.is_busy = True

    # What happens in them.

    def start(self, slot: str, box: Box) -> None:
        new = NewInstance(
            instance_id=box.name, workflow_name=FLOW, service=SERVICE, input_json="{}", source_hash="",
            lock_timeout_seconds=1000.0,
        )  # fmt: skip
        insert_instance(self.begin(slot).conn, new)

        def learn() -> None:
            box.is_started = True

        self.learn_with(slot, learn, box)

    def message(self, name: str, to: Box | None) -> OutgoingMessage:
        self.now += 1
        message_id = f"m{len(self.sent) + 1}"
        self.sent[message_id] = Sent(name, None if to is None else to.name, self.now)
        kind: Literal["event", "message"] = "event" if name == PAID else "message"
        addressee = None if to is None else to.run
        return OutgoingMessage(message_id, kind, name, "{}", addressee, json.dumps(message_id), None)

    def is_sent(self, message: OutgoingMessage) -> None:
        self.now += 1
        self.sent[message.message_id].committed = self.now

    def claim(self) -> None:
        """In the transaction of a delivery."""
        leases = self.attempt(
            "claimer",
            lambda conn: claiming.claim_due(conn, worker_id=WORKER, service=SERVICE, names=[FLOW], limit=10),
        )
        by_run = {box.run: box for box in self.boxes.values()}
        for lease in leases:
            box = by_run[lease.instance_id]
            assert (box.is_held, box.is_busy, box.has_ended) == (False, False, False)
            assert lease.mailbox == box.name
            assert lease.epoch > box.epoch

            def learn(box: Box = box, lease: claiming.Lease = lease) -> None:
                box.is_held, box.epoch = True, lease.epoch
                box.is_to_stop = box.is_to_stop or lease.is_cancelled

            self.learn_with("claimer", learn, box)

    def write(self, box: Box, slot: str, unit: Unit, learn: Callable[[BatchOutcome], None]) -> None:
        """Write one unit; what became of it is learnt when its transaction commits."""
        try:
            (outcome,) = self.attempt(slot, lambda conn: commit_units(conn, [unit]))
        except GaveUp:
            return
        assert not isinstance(outcome, LeaseLost)
        if isinstance(outcome, Busy):
            assert set(self.begun) - {slot}, "nobody else has the row"
            return

        def learn_all() -> None:
            if not isinstance(unit, Wait | Block | End):
                box.last = unit
            box.is_to_stop = box.is_to_stop or outcome.is_cancelled
            learn(outcome)

        self.learn_with(slot, learn_all, box)

    def take(self, box: Box, slot: str, unit: Take, *, asked: int) -> None:
        self.write(box, slot, unit, lambda outcome: self.has_asked(box, unit, outcome, asked))

    def has_asked(self, box: Box, unit: Take, outcome: BatchOutcome, asked: int) -> None:
        activity_id, name = unit.key.activity_id, unit.request.name
        box.waits.pop(activity_id, None)
        match outcome:
            case Open():
                box.waits[activity_id] = unit.request, asked
                assert name not in MODES or name in box.subscribed
            case Refused():
                assert name in MODES
                assert name not in box.subscribed
            case AlreadyRecorded(event):
                assert box.recorded.setdefault(activity_id, event) == event
                if "taken" in event.event_data:
                    receipt = activity_id, event.event_data["result"]["id"]
                    box.received += [receipt] if receipt not in box.received else []
            case _:
                raise AssertionError(outcome)

    # What must hold whenever nobody is in the middle of something.

    def look(self) -> None:
        self.deliver_all()
        with self.database.write() as conn:
            for rule, query in _NEVER.items():
                assert conn.execute(text(query)).all() == [], rule

    def deliver_all(self) -> None:
        for _ in range(20):
            with self.database.write() as conn:
                if not delivery.deliver(conn).is_unfinished:
                    return
        raise AssertionError("delivery never comes to an end")

    def judge(self) -> None:
        """When all that can be received has been received."""
        received = Counter(message_id for box in self.boxes.values() for _, message_id in box.received)
        assert all(self.sent[message_id].committed is not None for message_id in received), "received and never sent"
        with self.database.write() as conn:
            queued = set(conn.execute(text(_QUEUED)).scalars())
        for message_id, sent in self.sent.items():
            if sent.name == JOBS and sent.committed is not None:
                assert received[message_id] + (message_id in queued) == 1, "lost, or there twice"
        for box in self.boxes.values():
            self.judge_box(box)

    def judge_box(self, box: Box) -> None:
        received = [message_id for _, message_id in box.received]
        assert len(set(received)) == len(received), "received twice"
        if box.is_started and not box.has_ended:
            assert self.sent_for(box) <= set(received), "lost"
            for request, asked in box.waits.values():
                missed = {id for id, sent in self.sent.items() if sent.name == PAID and (sent.committed or 0) > asked}
                assert request.name != PAID or {id for id in missed if self.sent[id].addressee is None} == set()
        for name in (NEWS, DIRECT_CHANNEL):
            order = [self.sent[id] for id in received if self.sent[id].name == name and id not in self.returned]
            for place, later in enumerate(order):
                assert all(earlier.inserted < (later.committed or 0) for earlier in order[:place]), "out of order"

    def sent_for(self, box: Box) -> set[str]:
        """What a box must get: what is addressed to it, and what came to a channel after its subscription."""
        since = box.subscribed.get(NEWS)
        return {
            message_id
            for message_id, sent in self.sent.items()
            if sent.committed is not None
            and (
                sent.addressee == box.name
                or (sent.addressee is None and sent.name == NEWS and since is not None and sent.committed > since)
            )
        }


_BOX = "coalesce(i.mailbox, i.instance_id)"
_ENDED = "i.status IN ('completed', 'failed', 'cancelled')"
_MAIL = "n.receiver = w.mailbox AND n.kind = w.kind AND n.name = w.name"
_ABLE = " JOIN edda_instances i ON i.instance_id = w.instance_id AND i.error IS NULL"
_NEVER = {
    "it waits, something is there for it, and nobody will ever wake it":
        f"SELECT w.instance_id, w.activity_id FROM edda_waits w JOIN edda_inbox n ON {_MAIL}"
        " JOIN edda_instances i ON i.instance_id = w.instance_id WHERE i.locked_by IS NULL AND i.wake_at IS NULL"
        " AND i.error IS NULL",
    "a queue has messages that somebody waits for":
        "SELECT w.instance_id, q.seq FROM edda_waits w JOIN edda_inbox q ON q.receiver = '' AND q.name = w.name"
        f"{_ABLE} WHERE w.is_competing AND NOT EXISTS (SELECT 1 FROM edda_inbox n WHERE {_MAIL})",
    "a queue's message lies with one who does not want it":
        "SELECT n.receiver, n.seq FROM edda_inbox n WHERE n.is_queued AND n.receiver <> ''"
        f" AND NOT EXISTS (SELECT 1 FROM edda_waits w{_ABLE} WHERE {_MAIL})",
    "an inbox names a message that is gone":
        "SELECT n.receiver, n.seq FROM edda_inbox n"
        " WHERE NOT EXISTS (SELECT 1 FROM edda_messages m WHERE m.seq = n.seq)",
    "a message was not delivered":
        "SELECT seq FROM edda_messages WHERE is_new UNION ALL SELECT seq FROM edda_inbox WHERE is_new",
    "who has ended has mail":
        f"SELECT i.instance_id, n.seq FROM edda_instances i JOIN edda_inbox n ON n.receiver = {_BOX} WHERE {_ENDED}",
    "who has ended waits":
        "SELECT i.instance_id FROM edda_instances i JOIN edda_waits w ON w.instance_id = i.instance_id"
        f" WHERE {_ENDED} OR i.status = 'recurred'",
    "who has ended is subscribed":
        f"SELECT i.instance_id FROM edda_instances i JOIN edda_subscriptions s ON s.mailbox = {_BOX} WHERE {_ENDED}",
}  # fmt: skip
_QUEUED = "SELECT m.message_id FROM edda_inbox n JOIN edda_messages m ON m.seq = n.seq WHERE n.receiver = ''"
