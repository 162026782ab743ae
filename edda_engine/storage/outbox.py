"""Outbox rows: events written with the step that caused them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, bindparam, insert

from edda_engine.core.ports import OutboxEvent
from edda_engine.storage.schema import outbox
from edda_engine.storage.types import clock


def insert_events(conn: Connection, events: Iterable[tuple[str | None, str | None, OutboxEvent]]) -> None:
    """Write events with the instance and step they come from."""
    rows: list[dict[str, Any]] = [
        {
            "event_id": event.event_id,
            "instance_id": instance_id,
            "activity_id": activity_id,
            "type": event.type,
            "source": event.source,
            "subject": event.subject,
            "content_type": event.content_type,
            "data": event.data_json,
            "data_binary": event.data_binary,
            "ordering_key": event.ordering_key,
        }
        for instance_id, activity_id, event in events
    ]
    if rows:
        statement = insert(outbox).values(
            {name: bindparam(name) for name in rows[0]}
            | {"status": "pending", "created_at": clock(), "next_attempt_at": clock()}
        )
        conn.execute(statement, rows)
