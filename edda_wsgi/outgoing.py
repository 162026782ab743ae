"""``edda.send_event_transactional()``: events for other services join the transaction of the caller, as starts do."""

from __future__ import annotations

from typing import Any

from edda_engine.core.ports import EventId, OutboxEvent, current_place
from edda_engine.outbox.transactional import outbox_event
from edda_engine.runtime.attempts import Attempt
from edda_engine.storage import outbox
from edda_engine.workflow import UNSET, refuse_in_body
from edda_wsgi.application import Application


def event_of(
    application: Application,
    event_type: str,
    source: str,
    data: Any,
    content_type: str,
    *,
    subject: str | None,
    ordering_key: str | None,
) -> OutboxEvent:
    """Check and encode an event."""
    return outbox_event(
        event_type, source, data, content_type, subject=subject, ordering_key=ordering_key,
        owner=f"event {event_type!r}", max_payload_bytes=application.settings.max_payload_bytes,
    )  # fmt: skip


def send(application: Application, event: OutboxEvent, session: Any) -> EventId:
    """Write an event where it belongs: with an activity's step, in the request's session, or at once."""
    refuse_in_body("send_event_transactional()")
    place = current_place.get()
    if session is UNSET and isinstance(place, Attempt):
        place.buffer_outbox(event)
    else:
        application.write(
            "send_event_transactional()",
            lambda conn: outbox.insert_events(conn, [(None, None, event)]),
            alone=lambda: application.client.write_outbox_event(event),
            session=session,
            then=application.wake_relay,
        )
    return EventId(event.event_id)
