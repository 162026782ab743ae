"""``send_event_transactional``: an event that exists if, and only if, its activity's step does."""

from __future__ import annotations

import uuid
from typing import Any

from edda_engine.context import ActivityContext, WorkflowContext
from edda_engine.core.codec import check_size, codec_for, is_name
from edda_engine.core.ports import EventId, OutboxEvent
from edda_engine.errors import UsageError

_ANY = codec_for(Any)


def send_event_transactional(
    ctx: WorkflowContext,
    event_type: str,
    event_source: str,
    event_data: Any,
    content_type: str = "application/json",
    *,
    subject: str | None = None,
    ordering_key: str | None = None,
) -> EventId:
    """Send an event with this activity: it is written in the same transaction as the step's history row.

    Works without ``await`` in a sync activity and with or without it in an async one: the event is only kept in
    memory until the step is written. If the activity fails, or another worker has taken over, nothing is sent.

    :param event_type: The CloudEvents type, such as ``"order.created"``.
    :param event_source: The CloudEvents source, such as ``"order-service"``.
    :param event_data: Any JSON value, pydantic model or dataclass; or ``bytes`` with a fitting *content_type*.
    :param subject: The CloudEvents subject.
    :param ordering_key: Events of one key are published in the order in which they were written: each after the one
        before it was taken, or refused for good.
    :returns: The event's id.
    :raises PayloadError: the data has no JSON form; the activity fails with it and is not retried.
    :raises UsageError: called outside an activity.
    """
    if not isinstance(ctx, ActivityContext):
        raise UsageError(
            "send_event_transactional() is part of an activity's transaction and takes the activity's ctx."
            " Call it inside an @activity."
        )
    owner = f"event {event_type!r} sent by activity {ctx.activity_id!r}"
    event = outbox_event(
        event_type, event_source, event_data, content_type, subject=subject, ordering_key=ordering_key, owner=owner
    )
    ctx._execution.buffer_outbox(event)
    return EventId(event.event_id)


def outbox_event(
    event_type: str,
    event_source: str,
    event_data: Any,
    content_type: str,
    *,
    subject: str | None,
    ordering_key: str | None,
    owner: str,
    max_payload_bytes: int | None = None,
) -> OutboxEvent:
    """Check and encode an event under a new id; nothing is written yet.

    :param owner: How the error names it.
    :raises PayloadError: the data has no JSON form, or is too large.
    :raises UsageError: an attribute is missing, or cannot be stored.
    """
    _check_text("event_type", event_type, 255)
    _check_text("event_source", event_source, 2000)
    _check_text("content_type", content_type, 255)
    if subject is not None:
        _check_text("subject", subject, 2000)
    if ordering_key is not None:
        _check_text("ordering_key", ordering_key, 255)
    is_binary = isinstance(event_data, (bytes, bytearray, memoryview))
    event = OutboxEvent(
        event_id=str(uuid.uuid4()),
        type=event_type,
        source=event_source,
        content_type=content_type,
        data_json=None if is_binary else _ANY.round_trip(event_data, owner=owner)[0],
        data_binary=bytes(event_data) if is_binary else None,
        subject=subject,
        ordering_key=ordering_key,
    )
    if max_payload_bytes is not None:
        check_size(event.data_json or event.data_binary or b"", max_payload_bytes, owner=owner)
    return event


def _check_text(name: str, value: object, limit: int) -> None:
    if not is_name(value, limit=limit):
        shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:79] + "…"
        raise UsageError(
            f"send_event_transactional({name}={shown}): a text of 1 to {limit} characters is needed, without control"
            " characters."
        )
