"""``send_event_transactional``: an event that exists if, and only if, its activity's step does."""

from __future__ import annotations

import uuid
from collections.abc import Generator
from typing import Any

from edda_engine.context import ActivityContext, WorkflowContext
from edda_engine.core.codec import codec_for
from edda_engine.core.ports import OutboxEvent
from edda_engine.errors import UsageError

_ANY = codec_for(Any)


class EventId(str):
    """The id of a buffered event; in an async activity it may also be awaited, which gives itself."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, EventId]:
        yield from ()
        return self


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
    :param ordering_key: Events of one key are published in the order in which they were written.
    :returns: The event's id.
    :raises PayloadError: the data has no JSON form; the activity fails with it and is not retried.
    :raises UsageError: called outside an activity.
    """
    if not isinstance(ctx, ActivityContext):
        raise UsageError(
            "send_event_transactional() is part of an activity's transaction and takes the activity's ctx."
            " Call it inside an @activity."
        )
    for name, value in (("event_type", event_type), ("event_source", event_source), ("content_type", content_type)):
        if not isinstance(value, str) or not value or "\0" in value:
            raise UsageError(f"send_event_transactional({name}={value!r}): a non-empty text is needed.")
    event_id = EventId(uuid.uuid4())
    is_binary = isinstance(event_data, (bytes, bytearray, memoryview))
    owner = f"event {event_type!r} sent by activity {ctx.activity_id!r}"
    ctx._execution.buffer_outbox(
        OutboxEvent(
            event_id=str(event_id),
            type=event_type,
            source=event_source,
            content_type=content_type,
            data_json=None if is_binary else _ANY.encode(event_data, owner=owner),
            data_binary=bytes(event_data) if is_binary else None,
            subject=subject,
            ordering_key=ordering_key,
        )
    )
    return event_id
