"""Waking: makes the instances due that wait for what has come into their inboxes.

How it thinks. An instance whose row somebody has locked is left for the next time, so nobody is waited for; one that is
held by a worker is not due, and its worker is named instead, who looks into the inbox itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, func, select, text, union, update

from edda_engine.core.status import FINISHED
from edda_engine.storage import inboxes
from edda_engine.storage.messages import QUEUE
from edda_engine.storage.prepared import Prepared, is_one_of
from edda_engine.storage.schema import inbox, instances, waits
from edda_engine.storage.types import clock

_BATCH = 500

_I = instances.c
_N = inbox.c

BOX = func.coalesce(_I.mailbox, _I.instance_id)
"""Whose inbox an instance reads: its own, or that of the first run it goes on from."""
NOT_FINISHED = _I.status.not_in(list(FINISHED))
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


def _of_boxes(dialect: str) -> tuple[ColumnElement[bool], ...]:
    """Which instances read one of the mailboxes of the parameter *boxes*: each of them a first run, or the last.

    Each by its index; for one OR of both SQLite reads the whole table.
    """
    first = select(_I.instance_id).where(is_one_of(dialect, _I.instance_id, "boxes")).correlate(None)
    last = select(_I.instance_id).where(is_one_of(dialect, _I.mailbox, "boxes"), _IS_LAST_RUN).correlate(None)
    return _I.instance_id.in_(union(first, last)), is_one_of(dialect, BOX, "boxes"), NOT_FINISHED


def live_among(conn: Connection, boxes: Collection[str]) -> set[str]:
    """The mailboxes that somebody reads."""
    return set(conn.execute(_LIVE.on(conn), {"boxes": list(boxes)}).scalars())


_LIVE = Prepared(lambda dialect: select(BOX).where(*_of_boxes(dialect)))


def wake_receivers(conn: Connection, *, strangers: Collection[str] = ()) -> Delivered:
    """Make those due that wait for what is new in their inbox.

    :param strangers: Who got something in this very transaction without being there.
    """
    found = Delivered()
    last = QUEUE
    while True:
        boxes = list(conn.execute(_NEW_BOXES, {"last": last}).scalars())
        if not boxes:
            return found
        found = found.and_(_wake(conn, boxes, strangers))
        if len(boxes) < _BATCH:
            return found
        last = boxes[-1]


_NEW_BOXES = (
    select(_N.receiver).where(_N.is_new, _N.receiver > bindparam("last")).distinct().order_by(_N.receiver).limit(_BATCH)
)


def _wake(conn: Connection, boxes: Collection[str], strangers: Collection[str]) -> Delivered:
    # Locked first and read afterwards: a wait that is registered just now is seen, or its row is left for next time.
    locked = conn.execute(_LOCKED.on(conn), {"boxes": list(boxes)}).all()
    found = {row.box for row in locked}
    live = found
    if found < set(boxes):
        live = live_among(conn, boxes)
    # A stranger may be started, and wait, without seeing what we have put into its inbox: the next delivery looks for it.
    in_use = (live | set(boxes).intersection(strangers)) - found
    ready = [box for box in boxes if box not in in_use]
    has_returned = _empty_ended(conn, set(ready) - found)
    came = defaultdict(set)
    handed = set()
    for row in conn.execute(_CAME.on(conn), {"boxes": ready}).all():
        came[row.receiver].add((row.kind, row.name))
        if row.is_queued:
            handed.add((row.receiver, row.name))
    able = [row for row in locked if not row.is_blocked]
    awaited, competing = _awaited(conn, {row.instance_id: row.box for row in able})
    woken = [row for row in able if came[row.box] & awaited[row.box]]
    due = [row for row in woken if row.locked_by is None]
    if due:
        conn.execute(_MAKE_DUE.on(conn), {"ids": [row.instance_id for row in due]})
    # Under the lock of the instance nobody else puts anything into its inbox.
    conn.execute(_SEEN.on(conn), {"boxes": ready})
    # Handed over while a transaction that is over by now gave up the wait for it, or blocked its instance.
    has_returned |= inboxes.return_surplus(conn, handed, competing)
    return Delivered(
        frozenset((row.service, row.workflow_name) for row in due),
        frozenset(row.locked_by for row in woken if row.locked_by is not None),
        is_unfinished=bool(in_use) or has_returned,
    )


@Prepared
def _LOCKED(dialect: str) -> Any:
    columns = (_I.instance_id, BOX.label("box"), _I.locked_by, _I.service, _I.workflow_name)
    return (
        select(*columns, _I.error.is_not(None).label("is_blocked"))
        .where(*_of_boxes(dialect))
        .order_by(_I.instance_id)
        .with_for_update(skip_locked=True)
    )


_CAME = Prepared(
    lambda dialect: (
        select(_N.receiver, _N.kind, _N.name, _N.is_queued)
        .where(_N.is_new, is_one_of(dialect, _N.receiver, "boxes"))
        .distinct()
    )
)
_MAKE_DUE = Prepared(
    lambda dialect: (
        update(instances).where(is_one_of(dialect, _I.instance_id, "ids")).values(wake_at=clock(), updated_at=clock())
    )
)
_SEEN = Prepared(
    lambda dialect: update(inbox).where(_N.is_new, is_one_of(dialect, _N.receiver, "boxes")).values(is_new=False)
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
    for row in conn.execute(_AWAITED.on(conn), {"ids": list(boxes)}).all():
        box = boxes[row.instance_id]
        awaited[box].add((row.kind, row.name))
        competing[box, row.name] += row.is_competing
    return awaited, competing


_AWAITED = Prepared(
    lambda dialect: select(waits.c.instance_id, waits.c.kind, waits.c.name, waits.c.is_competing).where(
        is_one_of(dialect, waits.c.instance_id, "ids")
    )
)
