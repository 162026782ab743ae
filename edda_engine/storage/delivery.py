"""Delivery: turns what was sent into rows of the receivers' inboxes, and makes the instances that wait for it due.

How it thinks. A sender's transaction only adds a message. After its commit any worker distributes it, one worker at a
time and in the order of sending, so every subscriber gets every message that was committed after its subscription,
in order. Then the instances that wait for what has come are made due. An instance whose row somebody has locked is
left for the next time, so delivery never waits for anybody's transaction; one that is held by a worker is not due,
and its worker is named instead, who looks into the inbox itself.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, literal, select, text, union, update
from sqlalchemy.dialects import postgresql, sqlite

from edda_engine.core.ports import ChannelMode, WaitKind
from edda_engine.core.status import FINISHED
from edda_engine.storage import inboxes
from edda_engine.storage.messages import QUEUE, has_new
from edda_engine.storage.schema import channels, inbox, instances, messages, subscriptions, waits
from edda_engine.storage.serial import try_to_serialize_delivery
from edda_engine.storage.types import clock
from edda_engine.storage.workers import live_workflows

BATCH = 500
MAX_ROWS = 5000
"""So many rows of inboxes one distribution makes at most, but for a single message with more receivers."""

_I = instances.c
_M = messages.c
_N = inbox.c

_BOX = func.coalesce(_I.mailbox, _I.instance_id)
_NOT_FINISHED = _I.status.not_in(list(FINISHED))
_IS_LAST_RUN = text("edda_instances.status <> 'recurred'")  # written out for the partial index of mailboxes


@dataclass(frozen=True, slots=True)
class Delivered:
    """What a delivery has done: whom to tell, and whether there is more to do."""

    woken: frozenset[tuple[str, str]] = frozenset()
    """Services and workflows of which instances became due."""
    held_by: frozenset[str] = frozenset()
    """Workers that hold an instance something has come for."""
    is_unfinished: bool = False
    """More is there, or somebody else was in the way: deliver again in a moment."""

    def and_(self, more: Delivered) -> Delivered:
        """Both together."""
        return Delivered(
            self.woken | more.woken,
            self.held_by | more.held_by,
            self.is_unfinished or more.is_unfinished,
        )


def deliver(
    conn: Connection, *, service: str = "", names: Collection[str] = (), offers_again: bool = False
) -> Delivered:
    """Distribute new messages and wake their receivers; does nothing, cheaply, if there is nothing new.

    :param service: Whose workflows of these *names* can be run by the caller, which may not have said so yet.
    :param offers_again: Look into all queues: the caller can run what could not be run before.
    """
    if not offers_again and not has_new(conn):
        return Delivered()
    if not try_to_serialize_delivery(conn):
        return Delivered(is_unfinished=True)
    distributed = distribute(conn)
    assign_queued(conn, service=service, names=names, offers_again=offers_again)
    delivered = wake_receivers(conn, strangers=distributed.strangers)
    return delivered.and_(Delivered(is_unfinished=distributed.has_more))


def distribute_all(conn: Connection) -> None:
    """Distribute everything that is new; the caller has the turn."""
    while distribute(conn).has_more:
        pass


@dataclass(frozen=True, slots=True)
class Distributed:
    """What a distribution has done."""

    has_more: bool = False
    strangers: frozenset[str] = frozenset()
    """Addressees that are not there, or not yet."""


def distribute(conn: Connection) -> Distributed:
    """Give the oldest new messages to their receivers' inboxes."""
    rows = conn.execute(
        select(_M.seq, _M.kind, _M.name, _M.addressee).where(_M.is_new).order_by(_M.seq).limit(BATCH)
    ).all()
    new = _bounded(conn, rows)
    if not new:
        return Distributed()
    strangers = _to_addressees(conn, [row for row in new if row.addressee is not None])
    for_all = [row for row in new if row.addressee is None]
    _to_waiting(conn, [row.seq for row in for_all if row.kind == WaitKind.EVENT])
    _to_channels(conn, [row.seq for row in for_all if row.kind == WaitKind.MESSAGE])
    seqs = [row.seq for row in new]
    is_received = exists().where(_N.seq == _M.seq).correlate(messages)
    received = conn.execute(update(messages).where(_M.seq.in_(seqs), is_received).values(is_new=False))
    if received.rowcount < len(seqs):
        conn.execute(delete(messages).where(_M.seq.in_(seqs), ~is_received))
    return Distributed(len(rows) == BATCH or len(new) < len(rows), strangers)


def _bounded(conn: Connection, rows: Sequence[Any]) -> list[Any]:
    """The first of these messages, as many as make no more than so many rows; at least one."""
    names = {row.name for row in rows if row.addressee is None}
    if not names:
        return list(rows)
    counts = select(subscriptions.c.channel, func.count()).where(subscriptions.c.channel.in_(names))
    sizes = {(str(WaitKind.MESSAGE), row[0]): row[1] for row in conn.execute(counts.group_by(subscriptions.c.channel))}
    waiting = select(waits.c.name, func.count()).where(waits.c.kind == WaitKind.EVENT, waits.c.name.in_(names))
    sizes |= {(str(WaitKind.EVENT), row[0]): row[1] for row in conn.execute(waiting.group_by(waits.c.name))}
    taken: list[Any] = []
    total = 0
    for row in rows:
        total += 1 if row.addressee is not None else sizes.get((row.kind, row.name), 1)
        if taken and total > MAX_ROWS:
            break
        taken.append(row)
    return taken


def _to_addressees(conn: Connection, addressed: Sequence[Any]) -> frozenset[str]:
    """Returns those that nobody knows; what is for them is kept."""
    if not addressed:
        return frozenset()
    addressees = {row.addressee for row in addressed}
    boxes = _boxes_of(conn, addressees)
    rows = [
        {"receiver": box, "kind": row.kind, "name": row.name, "seq": row.seq, "is_queued": False, "is_new": True}
        for row in addressed
        if (box := boxes.get(row.addressee, row.addressee)) is not None
    ]
    if rows:
        conn.execute(_insert_into(conn).on_conflict_do_nothing(), rows)
    return frozenset(addressees - boxes.keys())


def _boxes_of(conn: Connection, instance_ids: Collection[str]) -> dict[str, str | None]:
    """The mailbox of each known instance; ``None`` for one that nobody will read any more."""
    rows = conn.execute(select(_I.instance_id, _BOX).where(_I.instance_id.in_(instance_ids))).all()
    boxes = {row[1] for row in rows}
    # Not only the instance itself: a run that has recurred has successors, who read the same mailbox.
    live = set(conn.execute(select(_BOX).where(_is_run_of(boxes), _NOT_FINISHED)).scalars())
    return {row[0]: row[1] if row[1] in live else None for row in rows}


def _is_run_of(boxes: Collection[str]) -> ColumnElement[bool]:
    """Whether an instance is the first run that reads one of these mailboxes, or the last.

    Each by its index; for one OR of both SQLite reads the whole table.
    """
    first = select(_I.instance_id).where(_I.instance_id.in_(boxes)).correlate(None)
    last = select(_I.instance_id).where(_I.mailbox.in_(boxes), _IS_LAST_RUN).correlate(None)
    return _I.instance_id.in_(union(first, last))


def _to_waiting(conn: Connection, seqs: Sequence[int]) -> None:
    """An event without addressee: for every instance that waits for its type."""
    if seqs:
        is_awaited = and_(waits.c.kind == WaitKind.EVENT, waits.c.name == _M.name)
        _fan_out(conn, select(waits.c.mailbox, *_line(is_queued=False)).join(messages, is_awaited), seqs)


def _to_channels(conn: Connection, seqs: Sequence[int]) -> None:
    """A message to a channel: for every subscriber, or into the queue that competing ones share."""
    if not seqs:
        return
    is_subscribed = and_(subscriptions.c.channel == _M.name, subscriptions.c.mode == ChannelMode.BROADCAST)
    _fan_out(conn, select(subscriptions.c.mailbox, *_line(is_queued=False)).join(messages, is_subscribed), seqs)
    # One of a mode that nobody knows yet is kept too, for the first subscriber to decide. Of a direct one only
    # send_to() reaches the subscribers.
    is_known = and_(channels.c.channel == _M.name, channels.c.mode != ChannelMode.COMPETING)
    queued = select(literal(QUEUE), *_line(is_queued=True)).select_from(messages).where(~exists().where(is_known))
    _fan_out(conn, queued, seqs)


def _line(*, is_queued: bool) -> tuple[Any, ...]:
    return _M.kind, _M.name, _M.seq, literal(is_queued), literal(True)


def _fan_out(conn: Connection, query: Any, seqs: Sequence[int]) -> None:
    columns = ["receiver", "kind", "name", "seq", "is_queued", "is_new"]
    rows = query.where(_M.seq.in_(seqs)).distinct()
    conn.execute(_insert_into(conn).from_select(columns, rows, include_defaults=False).on_conflict_do_nothing())


def _insert_into(conn: Connection) -> Any:
    return postgresql.insert(inbox) if conn.dialect.name == "postgresql" else sqlite.insert(inbox)


def assign_queued(
    conn: Connection, *, service: str = "", names: Collection[str] = (), offers_again: bool = False
) -> None:
    """Hand what is new in channels' queues to those that wait, the longest-waiting first, one message each.

    Who cannot be run by any worker gets nothing: others may be there.
    """
    query = select(_N.name).where(_N.receiver == QUEUE, _N.is_new).distinct()
    found = _queues(conn) if offers_again else conn.execute(query).scalars().all()
    known = live_workflows(conn) if found else {}
    if known:  # otherwise nobody has entered itself, and nothing can be said
        known.setdefault(service, set()).update(names)
    for channel in found:
        queued = (_N.receiver == QUEUE, _N.kind == WaitKind.MESSAGE, _N.name == channel)
        conn.execute(update(inbox).where(*queued, _N.is_new).values(is_new=False))
        for free in _free_receivers(conn, channel, known):
            seqs = conn.execute(select(_N.seq).where(*queued).order_by(_N.seq).limit(len(free))).scalars().all()
            for seq, receiver in zip(seqs, free, strict=False):
                conn.execute(update(inbox).where(*queued, _N.seq == seq).values(receiver=receiver, is_new=True))
            if len(seqs) < len(free):
                break


def _queues(conn: Connection) -> Sequence[str]:
    has_any = exists().where(_N.receiver == QUEUE, _N.kind == WaitKind.MESSAGE, _N.name == channels.c.channel)
    query = select(channels.c.channel).where(channels.c.mode == ChannelMode.COMPETING, has_any)
    return conn.execute(query).scalars().all()


def _free_receivers(conn: Connection, channel: str, known: Mapping[str, Collection[str]]) -> Iterator[list[str]]:
    """The mailboxes of those that wait for a message of the queue and have none, once for each wait, page by page."""
    waiting = (
        select(waits.c.mailbox, _I.service, _I.workflow_name)
        .join(
            subscriptions,
            and_(subscriptions.c.mailbox == waits.c.mailbox, subscriptions.c.channel == waits.c.name),
        )
        .join(instances, _I.instance_id == waits.c.instance_id)
        .where(waits.c.kind == WaitKind.MESSAGE, waits.c.name == channel, waits.c.is_competing)
        .where(_I.error.is_(None))  # one that is blocked waits, and takes nothing
        .order_by(waits.c.created_at, waits.c.instance_id, waits.c.activity_id)
    )
    supplied: dict[str, int] = {}
    for page in range(sys.maxsize):
        rows = conn.execute(waiting.limit(BATCH).offset(page * BATCH)).all()
        boxes = [row[0] for row in rows if not known or row[2] in known.get(row[1], ())]
        unknown = set(boxes) - supplied.keys()
        has = (
            select(_N.receiver, func.count())
            .where(_N.receiver.in_(unknown), _N.kind == WaitKind.MESSAGE, _N.name == channel)
            .group_by(_N.receiver)
        )
        supplied |= dict.fromkeys(unknown, 0) | {row[0]: row[1] for row in conn.execute(has)}
        free = []
        for box in boxes:
            supplied[box] -= 1
            if supplied[box] < 0:
                free.append(box)
        if free:
            yield free
        if len(rows) < BATCH:
            return


def wake_receivers(conn: Connection, *, strangers: Collection[str] = ()) -> Delivered:
    """Make those due that wait for what is new in their inbox.

    :param strangers: Who got something in this very transaction without being there.
    """
    found = Delivered()
    last = QUEUE
    while True:
        query = select(_N.receiver).where(_N.is_new, _N.receiver > last).distinct().order_by(_N.receiver).limit(BATCH)
        boxes = list(conn.execute(query).scalars())
        if not boxes:
            return found
        found = found.and_(_wake(conn, boxes, strangers))
        if len(boxes) < BATCH:
            return found
        last = boxes[-1]


def _wake(conn: Connection, boxes: Collection[str], strangers: Collection[str]) -> Delivered:
    of_boxes = (_is_run_of(boxes), _BOX.in_(boxes), _NOT_FINISHED)
    columns = (
        _I.instance_id,
        _BOX.label("box"),
        _I.locked_by,
        _I.service,
        _I.workflow_name,
        _I.error.is_not(None).label("is_blocked"),
    )
    # Locked first and read afterwards: a wait that is registered just now is seen, or its row is left for next time.
    locked = conn.execute(
        select(*columns).where(*of_boxes).order_by(_I.instance_id).with_for_update(skip_locked=True)
    ).all()
    found = {row.box for row in locked}
    live = set(conn.execute(select(_BOX).where(*of_boxes)).scalars()) if found < set(boxes) else found
    # A stranger may be started, and wait, without seeing what we have put into its inbox: the next delivery looks for it.
    in_use = (live | set(boxes).intersection(strangers)) - found
    ready = [box for box in boxes if box not in in_use]
    has_returned = _empty_ended(conn, set(ready) - found)
    came = defaultdict(set)
    handed = set()
    new = select(_N.receiver, _N.kind, _N.name, _N.is_queued).where(_N.is_new, _N.receiver.in_(ready)).distinct()
    for row in conn.execute(new):
        came[row.receiver].add((row.kind, row.name))
        if row.is_queued:
            handed.add((row.receiver, row.name))
    able = [row for row in locked if not row.is_blocked]
    awaited, competing = _awaited(conn, {row.instance_id: row.box for row in able})
    woken = [row for row in able if came[row.box] & awaited[row.box]]
    due = [row for row in woken if row.locked_by is None]
    if due:
        ids = [row.instance_id for row in due]
        conn.execute(update(instances).where(_I.instance_id.in_(ids)).values(wake_at=clock(), updated_at=clock()))
    # Under the lock of the instance nobody else puts anything into its inbox.
    conn.execute(update(inbox).where(_N.is_new, _N.receiver.in_(ready)).values(is_new=False))
    # Handed over while a transaction that is over by now gave up the wait for it, or blocked its instance.
    has_returned |= inboxes.return_surplus(conn, handed, competing)
    return Delivered(
        frozenset((row.service, row.workflow_name) for row in due),
        frozenset(row.locked_by for row in woken if row.locked_by is not None),
        is_unfinished=bool(in_use) or has_returned,
    )


def _empty_ended(conn: Connection, boxes: Collection[str]) -> bool:
    """Empty those that belong to an instance which has ended; True if something went back to a queue.

    It ended while its messages were on their way. A mailbox of an instance that is not known yet is kept.
    """
    if not boxes:
        return False
    ended = conn.execute(select(_I.instance_id).where(_I.instance_id.in_(boxes))).scalars().all()
    return bool(ended) and inboxes.empty(conn, ended)


def _awaited(
    conn: Connection, boxes: Mapping[str, str]
) -> tuple[dict[str, set[tuple[str, str]]], Counter[tuple[str, str]]]:
    """What the instances of these mailboxes wait for, and how many messages of which queues."""
    awaited: dict[str, set[tuple[str, str]]] = defaultdict(set)
    competing: Counter[tuple[str, str]] = Counter()
    columns = (waits.c.instance_id, waits.c.kind, waits.c.name, waits.c.is_competing)
    for row in conn.execute(select(*columns).where(waits.c.instance_id.in_(boxes))):
        box = boxes[row.instance_id]
        awaited[box].add((row.kind, row.name))
        competing[box, row.name] += row.is_competing
    return awaited, competing
