"""Delivery: turns what was sent into rows of the receivers' inboxes, and makes the instances that wait for it due.

How it thinks. A sender's transaction only adds a message. After its commit any worker distributes it, one worker at a
time and in the order of sending, so every subscriber gets every message that was committed after its subscription,
in order. Then those who wait for it are woken (:mod:`edda_engine.storage.waking`).
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Text,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    update,
)

from edda_engine.core.ports import ChannelMode, WaitKind
from edda_engine.storage.messages import QUEUE
from edda_engine.storage.prepared import Prepared, as_rows, given_rows, insert_for, is_one_of
from edda_engine.storage.schema import channels, inbox, instances, messages, subscriptions, waits
from edda_engine.storage.serial import turn
from edda_engine.storage.waking import BOX, NOT_FINISHED, Delivered, live_among, wake_receivers
from edda_engine.storage.workers import live_workflows

BATCH = 500
MAX_ROWS = 5000
"""So many rows of inboxes one distribution makes at most, but for a single message with more receivers."""

_I = instances.c
_M = messages.c
_N = inbox.c


def deliver(
    conn: Connection, *, service: str = "", names: Collection[str] = (), offers_again: bool = False
) -> Delivered:
    """Distribute new messages and wake their receivers; does nothing, cheaply, if there is nothing new.

    :param service: Whose workflows of these *names* can be run by the caller, which may not have said so yet.
    :param offers_again: Look into all queues: the caller can run what could not be run before.
    """
    found = take_turn(conn, anyway=offers_again)
    if not found.is_ours:
        return Delivered(is_unfinished=found.is_ours is not None)
    distributed = distribute(conn)
    if found.has_queued or distributed.has_queued or offers_again:
        assign_queued(conn, service=service, names=names, offers_again=offers_again)
    delivered = wake_receivers(conn, strangers=distributed.strangers)
    return delivered.and_(Delivered(is_unfinished=distributed.has_more))


@dataclass(frozen=True, slots=True)
class Turn:
    """Whether there is something to deliver, and who delivers."""

    is_ours: bool | None
    """``None``: nothing is new, so nobody needs to. False: somebody else is delivering."""
    has_queued: bool
    """Whether something is new in a queue."""


def take_turn(conn: Connection, *, anyway: bool = False) -> Turn:
    """Take the turn if something was sent that nobody has delivered yet, or somebody is still to be woken.

    :param anyway: Take it in any case.
    """
    is_ours, has_queued = conn.execute(_TURN.on(conn), {"anyway": anyway}).one()
    return Turn(None if is_ours is None else bool(is_ours), bool(has_queued))


@Prepared
def _TURN(dialect: str) -> Any:
    has_new = or_(bindparam("anyway", type_=Boolean), exists().where(_M.is_new), exists().where(_N.is_new))
    has_queued = exists().where(_N.receiver == QUEUE, _N.is_new)
    return select(case((has_new, turn(dialect))), has_queued)


def distribute_all(conn: Connection) -> None:
    """Distribute everything that is new; the caller has the turn."""
    while distribute(conn).has_more:
        pass


@dataclass(frozen=True, slots=True)
class Distributed:
    """What a distribution has done."""

    has_more: bool = False
    has_queued: bool = False
    """Something may have come into a queue."""
    strangers: frozenset[str] = frozenset()
    """Addressees that are not there, or not yet."""


def distribute(conn: Connection) -> Distributed:
    """Give the oldest new messages to their receivers' inboxes."""
    rows = conn.execute(_NEW).all()
    new = _bounded(conn, rows)
    if not new:
        return Distributed()
    strangers, is_done = _to_addressees(conn, [row for row in new if row.addressee is not None])
    for_all = [row for row in new if row.addressee is None]
    _to_waiting(conn, [row.seq for row in for_all if row.kind == WaitKind.EVENT])
    to_channels = [row.seq for row in for_all if row.kind == WaitKind.MESSAGE]
    _to_channels(conn, to_channels)
    seqs = [row.seq for row in new if row.seq not in is_done]
    if seqs and conn.execute(_RECEIVED.on(conn), {"seqs": seqs}).rowcount < len(seqs):
        conn.execute(_NOT_RECEIVED.on(conn), {"seqs": seqs})
    return Distributed(len(rows) == BATCH or len(new) < len(rows), bool(to_channels), strangers)


_OLDEST = select(_M.seq, _M.kind, _M.name, _M.addressee).where(_M.is_new).order_by(_M.seq).limit(BATCH).subquery()
_NEW = (
    select(*_OLDEST.c, BOX.label("box"), NOT_FINISHED.label("is_live"))
    .outerjoin(instances, _I.instance_id == _OLDEST.c.addressee)
    .order_by(_OLDEST.c.seq)
)
_IS_RECEIVED = exists().where(_N.seq == _M.seq).correlate(messages)
_RECEIVED = Prepared(
    lambda dialect: (
        update(messages).where(is_one_of(dialect, _M.seq, "seqs", BigInteger), _IS_RECEIVED).values(is_new=False)
    )
)
_NOT_RECEIVED = Prepared(
    lambda dialect: delete(messages).where(is_one_of(dialect, _M.seq, "seqs", BigInteger), ~_IS_RECEIVED)
)


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


def _to_addressees(conn: Connection, addressed: Sequence[Any]) -> tuple[frozenset[str], Collection[int]]:
    """Returns those that nobody knows, for whom it is kept; and the messages that are new no longer."""
    if not addressed:
        return frozenset(), ()
    ended = {row.addressee for row in addressed if row.box is not None and not row.is_live}
    boxes: dict[str, str | None] = {row.addressee: row.box for row in addressed if row.is_live}
    boxes |= _boxes_of(conn, ended) if ended else {}
    rows = [
        {"receiver": box, "kind": row.kind, "name": row.name, "seq": row.seq}
        for row in addressed
        if (box := boxes.get(row.addressee, row.addressee)) is not None
    ]
    strangers = frozenset(row.addressee for row in addressed if row.box is None)
    if not rows:
        return strangers, ()
    seqs = {row["seq"] for row in rows}
    if conn.dialect.name == "postgresql":
        conn.execute(_PUT_AND_MARK, {"rows": as_rows(rows), "seqs": list(seqs)})
        return strangers, seqs
    conn.execute(_PUT.on(conn), {"rows": as_rows(rows)})
    return strangers, ()


def _putting(dialect: str) -> Any:
    given = given_rows(dialect, "rows", {"receiver": Text, "kind": Text, "name": Text, "seq": BigInteger})
    columns = ["receiver", "kind", "name", "seq", "is_queued", "is_new"]
    # SQLite would read ON CONFLICT as a join's condition if there were no WHERE before it.
    rows = select(*given.c, literal(False), literal(True)).where(text("1 = 1"))
    return insert_for(dialect)(inbox).from_select(columns, rows, include_defaults=False).on_conflict_do_nothing()


_PUT = Prepared(_putting)
_PUT_AND_MARK = (
    update(messages)
    .where(is_one_of("postgresql", _M.seq, "seqs", BigInteger))
    .values(is_new=False)
    .add_cte(_putting("postgresql").cte("put"))
)


def _boxes_of(conn: Connection, instance_ids: Collection[str]) -> dict[str, str | None]:
    """The mailbox of each known instance; ``None`` for one that nobody will read any more."""
    rows = conn.execute(select(_I.instance_id, BOX).where(_I.instance_id.in_(instance_ids))).all()
    boxes = {row[1] for row in rows}
    # Not only the instance itself: a run that has recurred has successors, who read the same mailbox.
    live = live_among(conn, boxes)
    return {row[0]: row[1] if row[1] in live else None for row in rows}


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
    into = insert_for(conn.dialect.name)(inbox)
    conn.execute(into.from_select(columns, rows, include_defaults=False).on_conflict_do_nothing())


def assign_queued(
    conn: Connection, *, service: str = "", names: Collection[str] = (), offers_again: bool = False
) -> None:
    """Hand what is new in channels' queues to those that wait, the longest-waiting first, one message each.

    Who cannot be run by any worker gets nothing: others may be there.
    """
    found = _queues(conn) if offers_again else conn.execute(_NEW_QUEUES).scalars().all()
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


_NEW_QUEUES = select(_N.name).where(_N.receiver == QUEUE, _N.is_new).distinct()


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
