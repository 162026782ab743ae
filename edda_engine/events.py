"""Events: ``wait_event`` in a workflow, ``send_event`` from anywhere.

An event sent to one instance waits for it, even if it asks only later. One sent to nobody in particular goes to
every instance that waits for its type at that moment.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Generic, TypeVar, overload

from edda_engine.context import SyncWorkflowContext, WorkflowContext, body_of
from edda_engine.core.codec import MAX_ID_LENGTH, Codec, check_size, codec_for, is_name
from edda_engine.core.events import EventType, Recorded
from edda_engine.core.ports import EventId, OutgoingMessage, WaitKind, WaitRequest, current_place
from edda_engine.errors import EventTimeoutError, PayloadError, UsageError
from edda_engine.timers import checked_seconds
from edda_engine.workflow import the_app

T = TypeVar("T")

_ANY = codec_for(Any)


@dataclass(frozen=True, slots=True)
class EventMetadata:
    """The attributes of an event, as CloudEvents 1.0 names them."""

    type: str
    source: str
    id: str
    time: datetime | None = None
    subject: str | None = None
    datacontenttype: str | None = None


@dataclass(frozen=True, slots=True)
class ReceivedEvent(Generic[T]):
    """An event, as the workflow that waited for it sees it; the same on replay. Immutable.

    ``data`` is an object of the *model* given to ``wait_event()``, else the plain JSON value, or ``bytes``.
    """

    data: T
    metadata: EventMetadata
    extensions: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), hash=False)

    @property
    def type(self) -> str:
        """The kind of event, such as ``"order.paid"``."""
        return self.metadata.type

    @property
    def source(self) -> str:
        """Who sent it."""
        return self.metadata.source

    @property
    def id(self) -> str:
        """Unique for its source."""
        return self.metadata.id

    @property
    def time(self) -> datetime | None:
        """When it happened, as its sender says; aware."""
        return self.metadata.time

    @property
    def subject(self) -> str | None:
        """What it is about."""
        return self.metadata.subject

    @property
    def datacontenttype(self) -> str | None:
        """The media type of the data."""
        return self.metadata.datacontenttype


@overload
def wait_event(
    ctx: SyncWorkflowContext,
    event_type: str,
    timeout_seconds: float | timedelta | None = None,
    *,
    model: type[T],
    event_id: str | None = None,
) -> ReceivedEvent[T]: ...
@overload
def wait_event(
    ctx: SyncWorkflowContext,
    event_type: str,
    timeout_seconds: float | timedelta | None = None,
    model: None = None,
    event_id: str | None = None,
) -> ReceivedEvent[Any]: ...
@overload
def wait_event(
    ctx: WorkflowContext,
    event_type: str,
    timeout_seconds: float | timedelta | None = None,
    *,
    model: type[T],
    event_id: str | None = None,
) -> Awaitable[ReceivedEvent[T]]: ...
@overload
def wait_event(
    ctx: WorkflowContext,
    event_type: str,
    timeout_seconds: float | timedelta | None = None,
    model: None = None,
    event_id: str | None = None,
) -> Awaitable[ReceivedEvent[Any]]: ...
def wait_event(
    ctx: Any,
    event_type: str,
    timeout_seconds: float | timedelta | None = None,
    model: Any = None,
    event_id: str | None = None,
) -> Any:
    """Let this workflow wait for an event of a type, for seconds or months, holding nothing.

    An event that was sent to this instance before it asked is there at once. The deadline is fixed when the body
    first gets here; an event that came before the workflow noticed its deadline wins.

    :param timeout_seconds: Seconds, or a ``timedelta``; ``None`` waits for ever.
    :param model: What the data is to be: a pydantic model, a dataclass, any annotation.
    :param event_id: The id of this step in history; numbered by itself if left out.
    :raises EventTimeoutError: nothing came in time.
    :raises PayloadError: the data does not fit *model*; the event is used up.
    :raises UsageError: called outside a workflow body.
    """
    body = body_of(ctx, "wait_event()", "An activity can be given what the event said as an argument.")
    check_text("wait_event", "event_type", event_type, MAX_ID_LENGTH)
    seconds = None if timeout_seconds is None else checked_seconds("wait_event", "timeout_seconds", timeout_seconds)
    codec = _ANY if model is None else codec_for(model)

    def decode(recorded: Recorded) -> ReceivedEvent[Any]:
        if recorded.event_type == EventType.WAIT_TIMED_OUT:
            raise EventTimeoutError(event_type, seconds or 0.0)
        message = recorded.event_data["result"]
        data = data_of(message)
        if model is not None:
            data = _as_model(codec, data, owner=f"data of event {event_type!r} ({recorded.activity_id})")
        return received_event(data, message["metadata"])

    request = WaitRequest(WaitKind.EVENT, event_type, seconds=seconds)
    return body.wait("wait_event", request, decode, activity_id=event_id)


def _as_model(codec: Codec, data: Any, *, owner: str) -> Any:
    """The data as its model says; bytes are those of a JSON text, unless the model is bytes."""
    if not isinstance(data, bytes):
        return codec.decode_parsed(data, owner=owner)
    if codec.annotation in (bytes, Any, object):
        return data
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise PayloadError(owner, "$", f"does not fit the model: {len(data)} bytes that are no JSON text") from error
    return codec.decode(text, owner=owner)


def send_event(event_type: str, source: str, data: Any, *, instance_id: str | None = None) -> Any:
    """Send an event to the workflows that wait for it.

    Where it is called decides when it is sent. In an activity: with the activity's step, or not at all; works with and
    without ``await``. In a workflow's body: as a recorded step, once; to be awaited in an ``async def`` one.
    Elsewhere: at once, by the running :class:`~edda_engine.app.EddaApp`, to be awaited.

    :param event_type: What the waiting workflows named, such as ``"order.paid"``.
    :param source: Who sends it.
    :param data: Any JSON value, pydantic model or dataclass, or ``bytes``.
    :param instance_id: The one instance it is for, even if that waits only later; otherwise it goes to every
        instance that waits for its type.
    :returns: The id of what was sent, or an awaitable of it.
    :raises InstanceNotFoundError: there is no such instance (not in activities and bodies, where it is kept).
    :raises PayloadError: the data has no JSON form, or is too large.
    """
    place = current_place.get()
    if place is None:
        return the_app("send_event()").send_event(event_type, source, data, instance_id=instance_id)
    limit = place.max_payload_bytes
    message = event_message(event_type, source, data, instance_id=instance_id, max_payload_bytes=limit)
    if place.is_body:
        return place.send("send_event", message)
    place.buffer_message(message)
    return EventId(message.message_id)


def received_event(data: Any, metadata: Mapping[str, Any]) -> ReceivedEvent[Any]:
    """The event that a stored message stands for."""
    time = metadata.get("time")
    return ReceivedEvent(
        data=data,
        metadata=EventMetadata(
            type=metadata["type"],
            source=metadata["source"],
            id=metadata["id"],
            time=None if time is None else datetime.fromisoformat(time),
            subject=metadata.get("subject"),
            datacontenttype=metadata.get("datacontenttype"),
        ),
        extensions=MappingProxyType(dict(metadata.get("extensions") or {})),
    )


def data_of(message: Mapping[str, Any]) -> Any:
    """The data of a stored message: a JSON value, or bytes."""
    binary = message.get("data_base64")
    return message.get("data") if binary is None else base64.b64decode(binary)


def event_message(
    event_type: str,
    source: str,
    data: Any,
    *,
    instance_id: str | None = None,
    max_payload_bytes: int,
    event_id: str | None = None,
    time: datetime | None = None,
    subject: str | None = None,
    datacontenttype: str | None = None,
    extensions: Mapping[str, Any] | None = None,
) -> OutgoingMessage:
    """Check and encode an event; nothing is written yet.

    :param event_id: Of an event that came from outside; its other attributes are kept as they came, also absent.
    :raises PayloadError: the data has no JSON form, or is larger than *max_payload_bytes*.
    :raises UsageError: an attribute is missing or no text.
    """
    for name, value, limit in (("event_type", event_type, MAX_ID_LENGTH), ("source", source, 2000)):
        check_text("send_event", name, value, limit)
    if instance_id is not None:
        check_text("send_event", "instance_id", instance_id, MAX_ID_LENGTH)
    owner = f"event {event_type!r}"
    is_binary = isinstance(data, (bytes, bytearray, memoryview))
    data_json = None if is_binary else _ANY.round_trip(data, owner=owner)[0]
    data_binary = bytes(data) if is_binary else None
    check_size(data_json or data_binary or b"", max_payload_bytes, owner=owner)
    message_id = uuid.uuid4().hex
    if event_id is None:
        time = time or datetime.now(UTC)
        datacontenttype = datacontenttype or ("application/octet-stream" if is_binary else "application/json")
    metadata = {
        "type": event_type,
        "source": source,
        "id": message_id if event_id is None else event_id,
        "time": None if time is None else time.isoformat(),
        "subject": subject,
        "datacontenttype": datacontenttype,
        "extensions": dict(extensions or {}),
    }
    metadata_json = json.dumps(metadata)
    check_size(metadata_json, max_payload_bytes, owner=f"attributes of {owner}")
    return OutgoingMessage(
        message_id=message_id,
        kind="event",
        name=event_type,
        metadata_json=metadata_json,
        addressee=instance_id,
        data_json=data_json,
        data_binary=data_binary,
    )


def check_text(function: str, name: str, value: Any, limit: int) -> None:
    """Refuse what cannot be a name.

    :raises UsageError: it cannot.
    """
    if not is_name(value, limit=limit):
        shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:79] + "…"
        raise UsageError(
            f"{function}({name}={shown}): a text of 1 to {limit} characters is needed, without control characters."
        )
