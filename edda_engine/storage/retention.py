"""Retention: deletes what nobody will read any more, in bounded batches.

What a live instance has yet to read is never among it, however old.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Float, and_, delete, exists, literal, or_, select

from edda_engine.core.ports import WaitKind
from edda_engine.core.status import FINISHED
from edda_engine.storage.instances import IS_LAST_RUN
from edda_engine.storage.keys import among
from edda_engine.storage.messages import QUEUE, forget_unused
from edda_engine.storage.schema import inbox, instances, messages, subscriptions
from edda_engine.storage.types import clock_plus

BATCH = 1000

_M = messages.c
_N = inbox.c

_IS_NOT_FINISHED = instances.c.status.not_in(list(FINISHED))

_LEFTOVER_SECONDS = 60.0


def prune_messages(conn: Connection, *, retention_seconds: float) -> int:
    """Delete a batch of what is unread for too long, and of messages that no inbox holds; returns how many rows."""
    return _prune_unread(conn, retention_seconds) + _prune_leftovers(conn)


def _prune_unread(conn: Connection, retention_seconds: float) -> int:
    """Messages in queues without subscribers, and in the inboxes of instances that have ended or never were."""
    has_subscriber = exists().where(subscriptions.c.channel == _N.name)
    is_forsaken = and_(_N.receiver == QUEUE, _N.kind == WaitKind.MESSAGE, ~has_subscriber)
    # Each by its index, as in the delivery: for one OR of both SQLite reads the whole table.
    is_read_by_first = exists().where(
        instances.c.instance_id == _N.receiver, instances.c.mailbox.is_(None), _IS_NOT_FINISHED
    )
    is_read_by_last = exists().where(instances.c.mailbox == _N.receiver, IS_LAST_RUN, _IS_NOT_FINISHED)
    key = (_N.receiver, _N.kind, _N.name, _N.seq)
    old = (
        select(*key)
        .join(messages, _M.seq == _N.seq)
        .where(_M.published_at < _ago(retention_seconds))
        .where(or_(is_forsaken, and_(_N.receiver != QUEUE, ~is_read_by_first, ~is_read_by_last)))
        .order_by(_N.seq)
        .limit(BATCH)
    )
    rows = [tuple(row) for row in conn.execute(old)]
    if rows:
        conn.execute(delete(inbox).where(among(conn, key, rows)))
    return len(rows)


def _prune_leftovers(conn: Connection) -> int:
    """Messages that are delivered and read by all: mostly those that two receivers took at the same moment."""
    unused = (
        select(_M.seq)
        .where(~_M.is_new, _M.published_at < _ago(_LEFTOVER_SECONDS))
        .where(~exists().where(_N.seq == _M.seq).correlate(messages))
        .order_by(_M.published_at)
        .limit(BATCH)
    )
    return forget_unused(conn, conn.execute(unused).scalars().all())


def _ago(seconds: float) -> Any:
    return clock_plus(literal(-seconds, Float))
