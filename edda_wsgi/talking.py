"""Sending from a Flask application: events and messages join the transaction of the caller, as starts do."""

from __future__ import annotations

from typing import Any

from edda_engine import events
from edda_engine.client import send_with
from edda_engine.core.ports import OutgoingMessage, current_place
from edda_engine.runtime.attempts import Attempt
from edda_engine.workflow import UNSET, refuse_in_body
from edda_wsgi.application import Application
from edda_wsgi.workflow import current_application


def send_event(event_type: str, source: str, data: Any, *, instance_id: str | None = None) -> Any:
    """Send an event to the workflows that wait for it.

    Where it is called decides when it is sent. In a view it joins ``db.session``, and is sent by its commit. In an
    activity: with the activity's step, or not at all. In a workflow's body: as a recorded step, once; to be awaited
    in an ``async def`` one.

    :param event_type: What the waiting workflows named, such as ``"order.paid"``.
    :param source: Who sends it.
    :param data: Any JSON value, pydantic model or dataclass, or ``bytes``.
    :param instance_id: The one instance it is for, even if that waits only later; otherwise it goes to every
        instance that waits for its type.
    :returns: The id of what was sent, or in an ``async def`` body an awaitable of it.
    :raises InstanceNotFoundError: there is no such instance (not in activities and bodies, where it is kept).
    :raises PayloadError: the data has no JSON form, or is too large.
    """
    if current_place.get() is not None:
        return events.send_event(event_type, source, data, instance_id=instance_id)
    application = current_application()
    message = event_of(application, event_type, source, data, instance_id)
    return send(application, "send_event()", message, UNSET)


def event_of(
    application: Application, event_type: str, source: str, data: Any, instance_id: str | None
) -> OutgoingMessage:
    """Check and encode an event."""
    limit = application.settings.max_payload_bytes
    return events.event_message(event_type, source, data, instance_id=instance_id, max_payload_bytes=limit)


def send(application: Application, call: str, message: OutgoingMessage, session: Any) -> str:
    """Send where it belongs: with an activity's step, in the request's session, or in a transaction of its own."""
    refuse_in_body(call)
    place = current_place.get()
    if session is UNSET and isinstance(place, Attempt):
        place.buffer_message(message)
        return message.message_id
    application.write(
        call,
        lambda conn: send_with(conn, message),
        alone=lambda: application.client.write_message(message),
        session=session,
    )
    return message.message_id
