"""Waking: makes the instances due that wait for what has come into their inboxes.

How it thinks. An instance whose row somebody has locked is left for the next time, so nobody is waited for; one that is
held by a worker is not due, and its worker is named instead, who looks into the inbox itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Update,
    bindparam,
    false,
    func,
    select,
    text,
    true,
    union,
    union_all,
    update,
)

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
    able = [row for row in locked if not row.is_blocked]
    mail = _look(conn, ready, {row.instance_id: row.box for row in able})
    woken = [row for row in able if mail.came[row.box] & mail.awaited[row.box]]
    due = [row for row in woken if row.locked_by is None]
    # Under the lock of the instance nobody else puts anything into its inbox.
    _settle(conn, ready, [row.instance_id for row in due])
    # Handed over while a transaction that is over by now gave up the wait for it, or blocked its instance.
    has_returned |= inboxes.return_surplus(conn, mail.handed, mail.competing)
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


@dataclass(frozen=True, slots=True)
class _Mail:
    """What has come into mailboxes, and what is waited for."""

    came: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))
    handed: set[tuple[str, str]] = field(default_factory=set)
    """Mailboxes, and the queues that something came from."""
    awaited: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))
    competing: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many messages of which queues are waited for."""


def _look(conn: Connection, boxes: Collection[str], readers: Mapping[str, str]) -> _Mail:
    """What is new in these mailboxes, and what the instances that read them wait for; *readers* tells which reads which."""
    mail = _Mail()
    for row in conn.execute(_MAIL.on(conn), {"boxes": boxes, "ids": list(readers)}).all():
        if row.has_come:
            mail.came[row.whose].add((row.kind, row.name))
            mail.handed.update([(row.whose, row.name)] if row.is_queued else [])
        else:
            box = readers[row.whose]
            mail.awaited[box].add((row.kind, row.name))
            mail.competing[box, row.name] += row.is_queued
    return mail


@Prepared
def _MAIL(dialect: str) -> Any:
    return union_all(
        select(true().label("has_come"), _N.receiver.label("whose"), _N.kind, _N.name, _N.is_queued)
        .where(_N.is_new, is_one_of(dialect, _N.receiver, "boxes"))
        .distinct(),
        select(false(), waits.c.instance_id, waits.c.kind, waits.c.name, waits.c.is_competing).where(
            is_one_of(dialect, waits.c.instance_id, "ids")
        ),
    )


def _settle(conn: Connection, boxes: Collection[str], due_ids: Collection[str]) -> None:
    """What is new in these mailboxes is seen, and these instances are due."""
    if not due_ids:
        conn.execute(_SEEN.on(conn), {"boxes": boxes})
    elif conn.dialect.name == "postgresql":
        conn.execute(_BOTH, {"boxes": boxes, "ids": due_ids})
    else:
        conn.execute(_SEEN.on(conn), {"boxes": boxes})
        conn.execute(_MAKE_DUE.on(conn), {"ids": due_ids})


def _seeing(dialect: str) -> Update:
    return update(inbox).where(_N.is_new, is_one_of(dialect, _N.receiver, "boxes")).values(is_new=False)


def _making_due(dialect: str) -> Update:
    return (
        update(instances).where(is_one_of(dialect, _I.instance_id, "ids")).values(wake_at=clock(), updated_at=clock())
    )


_SEEN, _MAKE_DUE = Prepared(_seeing), Prepared(_making_due)
_BOTH = _seeing("postgresql").add_cte(_making_due("postgresql").cte("due"))


def _empty_ended(conn: Connection, boxes: Collection[str]) -> bool:
    """Empty those that belong to an instance which has ended; True if something went back to a queue.

    It ended while its messages were on their way. A mailbox of an instance that is not known yet is kept.
    """
    if not boxes:
        return False
    # Not merely one that is there: it may have been started since its box was looked for.
    ended = conn.execute(select(_I.instance_id).where(_I.instance_id.in_(boxes), ~NOT_FINISHED)).scalars().all()
    return bool(ended) and inboxes.empty(conn, ended)
