"""What operators, and time, do to outbox rows: look, try again, delete.

Every change is bounded; whoever wants all of them calls until nothing is left.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Float, Select, delete, literal, select, update

from edda_engine.storage.outbox import limit_idle_time, make_next_due
from edda_engine.storage.schema import outbox
from edda_engine.storage.types import clock, clock_plus

STATUSES = ("pending", "publishing", "published", "dead")

_C = outbox.c


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """One row of the outbox, without its payload. Instants are aware and in UTC."""

    event_id: str
    type: str
    source: str
    subject: str | None
    ordering_key: str | None
    status: str
    attempts: int
    last_error: str | None
    instance_id: str | None
    activity_id: str | None
    created_at: datetime
    next_attempt_at: datetime | None
    published_at: datetime | None


_SHOWN = tuple(_C[name] for name in OutboxEntry.__dataclass_fields__)


def listed(conn: Connection, *, statuses: Collection[str], limit: int) -> list[OutboxEntry]:
    """Rows, the latest written first; no statuses means all."""
    query = select(*_SHOWN).order_by(_C.seq.desc()).limit(limit)
    if statuses:
        query = query.where(_C.status.in_(statuses))
    return [OutboxEntry(*row) for row in conn.execute(query)]


def existing(conn: Connection, event_ids: Collection[str]) -> set[str]:
    """Those of the ids that are in the outbox."""
    return set(conn.execute(select(_C.event_id).where(_C.event_id.in_(event_ids))).scalars())


def retry(conn: Connection, event_ids: Collection[str]) -> list[str]:
    """Make dead or waiting rows due now, as if they had never been tried; returns the ids of those that were."""
    return _made_due(conn, _locked(_C.event_id.in_(event_ids), _C.status.in_(("dead", "pending"))))


def retry_dead(conn: Connection, *, limit: int) -> list[str]:
    """Make the oldest dead rows due now; returns their ids."""
    return _made_due(conn, _locked(_C.status == "dead").limit(limit))


def purge(conn: Connection, event_ids: Collection[str]) -> list[str]:
    """Delete rows that nobody is publishing just now, sent or not; returns their ids."""
    return _deleted(conn, _locked(_C.event_id.in_(event_ids), _C.status != "publishing"))


def purge_dead(conn: Connection, *, older_than_seconds: float, limit: int) -> list[str]:
    """Delete the oldest dead rows that were written so long ago; returns their ids."""
    before = clock_plus(literal(-older_than_seconds, Float))
    return _deleted(conn, _locked(_C.status == "dead", _C.created_at <= before).limit(limit))


def prune(conn: Connection, *, older_than_seconds: float, limit: int) -> int:
    """Delete up to *limit* rows that were published so long ago; returns how many."""
    limit_idle_time(conn)
    before = clock_plus(literal(-older_than_seconds, Float))
    query = select(_C.seq).where(_C.published_at <= before).order_by(_C.published_at).limit(limit)
    seqs = conn.execute(query.with_for_update(skip_locked=True)).scalars().all()
    if seqs:
        conn.execute(delete(outbox).where(_C.seq.in_(seqs)))
    return len(seqs)


def _locked(*conditions: ColumnElement[bool]) -> Select[Any]:
    # What a relay has locked at this moment is its business.
    query = select(_C.seq, _C.ordering_key, _C.event_id, _C.status).where(*conditions)
    return query.order_by(_C.seq).with_for_update(skip_locked=True)


def _made_due(conn: Connection, query: Select[Any]) -> list[str]:
    rows = conn.execute(query).all()
    if rows:
        conn.execute(
            update(outbox)
            .where(_C.seq.in_([row.seq for row in rows]))
            .values(status="pending", attempts=0, next_attempt_at=clock(), locked_by=None, lock_expires_at=None)
        )
    return [row.event_id for row in rows]


def _deleted(conn: Connection, query: Select[Any]) -> list[str]:
    rows = conn.execute(query).all()
    if rows:
        conn.execute(delete(outbox).where(_C.seq.in_([row.seq for row in rows])))
        make_next_due(conn, {row.seq: row.ordering_key for row in rows if row.status == "pending"})
    return [row.event_id for row in rows]
