"""CloudEvents that came over HTTP: what was accepted once is not done again while it is remembered.

A delivery and all it causes are one transaction with the rows that remember it. Of two that race, the second one
waits in :func:`is_first_delivery` for the first to commit, and then finds its row.

Each service remembers for itself: what an event starts and calls there is its own. What goes to waiting instances is
remembered for all, as of the service :data:`EVERY_SERVICE`, because they get it whichever service stores it.
"""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import Connection, Float, delete, literal, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from edda_engine.storage.schema import received_events
from edda_engine.storage.types import clock, clock_plus

_C = received_events.c
_KEY = (_C.service, _C.source, _C.event_id)
_WIDTH = 255
FORGOTTEN_AT_ONCE = 100

EVERY_SERVICE = ""


def is_first_delivery(conn: Connection, *, service: str, source: str, event_id: str, keep_seconds: float) -> bool:
    """Remember an event for so many seconds; False if it is remembered already.

    A transaction that remembers several does so in the order of service and :func:`key`, or two of them may deadlock.
    """
    dialect_insert: Any = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
    stored_source, stored_id = key(source, event_id)
    statement = dialect_insert(received_events).values(
        service=service, source=stored_source, event_id=stored_id, expires_at=clock_plus(literal(keep_seconds, Float))
    )
    statement = statement.on_conflict_do_update(
        index_elements=_KEY,
        set_={"expires_at": statement.excluded.expires_at},
        where=_C.expires_at <= clock(),
    )
    return conn.execute(statement.returning(_C.event_id)).first() is not None


def forget_expired(conn: Connection, *, at_most: int = FORGOTTEN_AT_ONCE) -> int:
    """Delete some of the rows whose time is over, passing over those that somebody else has locked."""
    expired = (
        select(*_KEY)
        .where(_C.expires_at <= clock())
        .order_by(_C.expires_at)
        .limit(at_most)
        .with_for_update(skip_locked=True)
    )
    return conn.execute(delete(received_events).where(tuple_(*_KEY).in_(expired))).rowcount


def key(source: str, event_id: str) -> tuple[str, str]:
    """How an event is remembered: its source and id, of which one too long for its column is known by its digest."""
    return _fitted(source), _fitted(event_id)


def _fitted(text: str) -> str:
    return text if len(text) <= _WIDTH else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
