"""Retries under way: attempts so far, their errors, and when the next one is due.

A row exists only between a failed attempt and the step's end. Times are written and compared by the
database's clock; a worker only ever sees durations.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Float, bindparam, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from edda_engine.core.codec import parse
from edda_engine.storage.keys import among
from edda_engine.storage.schema import retries
from edda_engine.storage.types import clock_plus, seconds_since

_C = retries.c


@dataclass(frozen=True, slots=True)
class RetryState:
    """What is known of a step that failed before: *errors* has one entry an attempt."""

    attempts: int = 0
    elapsed_seconds: float = 0.0
    due_in_seconds: float = 0.0
    errors: tuple[dict[str, Any], ...] = field(default=(), hash=False)


def save(conn: Connection, rows: Sequence[tuple[str, str, RetryState]]) -> None:
    """Record failed attempts: ``(instance_id, activity_id, state)``."""
    dialect_insert: Any = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
    statement = dialect_insert(retries).values(
        instance_id=bindparam("instance_id"),
        activity_id=bindparam("activity_id"),
        attempts=bindparam("attempts"),
        first_attempt_at=clock_plus(bindparam("since_first", type_=Float)),
        next_attempt_at=clock_plus(bindparam("due_in", type_=Float)),
        errors=bindparam("errors"),
    )
    new = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=["instance_id", "activity_id"],
        set_={"attempts": new.attempts, "next_attempt_at": new.next_attempt_at, "errors": new.errors},
    )
    conn.execute(
        statement,
        [
            {
                "instance_id": instance_id,
                "activity_id": activity_id,
                "attempts": state.attempts,
                "since_first": -state.elapsed_seconds,
                "due_in": state.due_in_seconds,
                "errors": json.dumps(state.errors),
            }
            for instance_id, activity_id, state in rows
        ],
    )


def load(conn: Connection, instance_ids: Collection[str]) -> dict[str, dict[str, RetryState]]:
    """The retries of instances, by activity id."""
    found: dict[str, dict[str, RetryState]] = defaultdict(dict)
    query = select(
        _C.instance_id,
        _C.activity_id,
        _C.attempts,
        seconds_since(_C.first_attempt_at).label("elapsed"),
        seconds_since(_C.next_attempt_at).label("overdue"),
        _C.errors,
    ).where(_C.instance_id.in_(instance_ids))
    for row in conn.execute(query):
        found[row.instance_id][row.activity_id] = RetryState(
            row.attempts, max(0.0, row.elapsed), max(0.0, -row.overdue), tuple(parse(row.errors))
        )
    return dict(found)


def forget(conn: Connection, keys: Collection[tuple[str, str]]) -> None:
    """Delete the retries of steps that have ended."""
    if keys:
        conn.execute(delete(retries).where(among(conn, (_C.instance_id, _C.activity_id), keys)))


def forget_instances(conn: Connection, instance_ids: Collection[str]) -> None:
    """Delete all retries of instances that have ended."""
    if instance_ids:
        conn.execute(delete(retries).where(_C.instance_id.in_(instance_ids)))
