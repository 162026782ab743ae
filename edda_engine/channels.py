"""Channels: workflows send each other messages by the name of a channel.

A channel has one mode for all. *broadcast*: every subscriber gets every message, from its subscription on and in
order. *competing*: each message goes to exactly one subscriber, and waits in a queue until there is one. *direct*:
only ``send_to()`` reaches a subscriber. Every instance has the channel ``"__direct__"`` without subscribing.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, overload

from edda_engine.context import SyncWorkflowContext, WorkflowContext, body_of, place_of
from edda_engine.core.codec import MAX_ID_LENGTH, check_size, codec_for
from edda_engine.core.events import EventType, Recorded
from edda_engine.core.ports import (
    DIRECT_CHANNEL,
    ChannelMode,
    EventId,
    OutgoingMessage,
    SubscriptionChange,
    WaitKind,
    WaitRequest,
)
from edda_engine.errors import MessageTimeoutError, UsageError
from edda_engine.events import check_text, data_of
from edda_engine.timers import checked_seconds

_ANY = codec_for(Any)


@dataclass(frozen=True, slots=True)
class ChannelMessage:
    """A message, as the workflow that received it sees it; the same on replay. Immutable.

    ``data`` is a plain JSON value, or ``bytes``. ``published_at`` is an aware UTC instant by the database's clock.
    """

    id: str
    channel: str
    data: Any = field(hash=False)
    metadata: Mapping[str, Any] = field(hash=False)
    published_at: datetime


@overload
def subscribe(ctx: SyncWorkflowContext, channel: str, mode: str = "broadcast") -> None: ...
@overload
def subscribe(ctx: WorkflowContext, channel: str, mode: str = "broadcast") -> Awaitable[None]: ...
def subscribe(ctx: Any, channel: str, mode: str = "broadcast") -> Any:
    """Let this workflow get what is sent to a channel from now on; :func:`receive` takes it.

    A subscription ends with its instance, or by :func:`unsubscribe`; it survives crashes and ``ctx.recur()``.
    Subscribing again in the same mode changes nothing.

    :param mode: ``"broadcast"``, ``"competing"`` or ``"direct"``; the same for all subscribers of the channel.
    :raises ChannelModeConflictError: the channel is used in another mode.
    :raises UsageError: called outside a workflow body, or there is no such mode.
    """
    body = body_of(ctx, "subscribe()", "")
    _check_channel("subscribe", channel)
    try:
        chosen = ChannelMode(mode)
    except ValueError:
        raise UsageError(
            f"subscribe(mode={mode!r}): there is no such mode; use one of {', '.join(map(repr, map(str, ChannelMode)))}."
        ) from None
    return body.subscribe("subscribe", SubscriptionChange(channel, chosen))


@overload
def unsubscribe(ctx: SyncWorkflowContext, channel: str) -> None: ...
@overload
def unsubscribe(ctx: WorkflowContext, channel: str) -> Awaitable[None]: ...
def unsubscribe(ctx: Any, channel: str) -> Any:
    """Let this workflow get nothing more from a channel.

    What it has not received yet is dropped; in competing mode it goes to others.

    :raises UsageError: called outside a workflow body.
    """
    body = body_of(ctx, "unsubscribe()", "")
    _check_channel("unsubscribe", channel)
    return body.subscribe("unsubscribe", SubscriptionChange(channel, None))


@overload
def receive(
    ctx: SyncWorkflowContext,
    channel: str = DIRECT_CHANNEL,
    timeout_seconds: float | timedelta | None = None,
    message_id: str | None = None,
) -> ChannelMessage: ...
@overload
def receive(
    ctx: WorkflowContext,
    channel: str = DIRECT_CHANNEL,
    timeout_seconds: float | timedelta | None = None,
    message_id: str | None = None,
) -> Awaitable[ChannelMessage]: ...
def receive(
    ctx: Any,
    channel: str = DIRECT_CHANNEL,
    timeout_seconds: float | timedelta | None = None,
    message_id: str | None = None,
) -> Any:
    """Let this workflow wait for the next message of a channel it is subscribed to.

    The oldest unread message first. A message is taken in the transaction that records it, so it is neither lost
    nor received twice when the process dies.

    :param timeout_seconds: Seconds, or a ``timedelta``; ``None`` waits for ever.
    :param message_id: The id of this step in history; numbered by itself if left out.
    :raises MessageTimeoutError: nothing came in time.
    :raises UsageError: not subscribed to the channel, or called outside a workflow body.
    """
    body = body_of(ctx, "receive()", "An activity can be given what the message said as an argument.")
    check_text("receive", "channel", channel, MAX_ID_LENGTH)
    seconds = None if timeout_seconds is None else checked_seconds("receive", "timeout_seconds", timeout_seconds)

    def decode(recorded: Recorded) -> ChannelMessage:
        if recorded.event_type == EventType.WAIT_TIMED_OUT:
            raise MessageTimeoutError(channel, seconds or 0.0)
        message = recorded.event_data["result"]
        return ChannelMessage(
            id=message["id"],
            channel=message["name"],
            data=data_of(message),
            metadata=MappingProxyType(dict(message["metadata"])),
            published_at=datetime.fromisoformat(message["published_at"]),
        )

    request = WaitRequest(WaitKind.MESSAGE, channel, seconds=seconds)
    return body.wait("receive", request, decode, activity_id=message_id)


def publish(ctx_or_edda: Any, channel: str, data: Any, metadata: Mapping[str, Any] | None = None) -> Any:
    """Send a message to a channel's subscribers.

    In an activity (its ``ctx``): with the activity's step, or not at all; works with and without ``await``. In a
    workflow's body: as a recorded step, once; to be awaited in an ``async def`` one. With the application instead of
    a ``ctx``: as its ``publish()`` method.

    :param data: Any JSON value, pydantic model or dataclass, or ``bytes``.
    :param metadata: Anything else the receiver should know, with JSON values.
    :returns: The message's id, or an awaitable of it.
    :raises PayloadError: the data has no JSON form, or is too large.
    """
    if not isinstance(ctx_or_edda, (WorkflowContext, SyncWorkflowContext)) and hasattr(ctx_or_edda, "publish"):
        return ctx_or_edda.publish(channel, data, metadata)
    place = place_of(ctx_or_edda, "publish()")
    message = channel_message(channel, data, metadata, max_payload_bytes=place.max_payload_bytes)
    return _sent(place, "publish", message)


def send_to(
    ctx_or_edda: Any,
    instance_id: str,
    data: Any,
    channel: str = DIRECT_CHANNEL,
    metadata: Mapping[str, Any] | None = None,
) -> Any:
    """Send a message to one instance, which gets it by ``receive(ctx, channel)``, even if it asks only later.

    Where it is called decides when it is sent, as with :func:`publish`. It reaches the successors of an instance that
    has recurred. To an instance that has ended nothing is sent.

    :returns: The message's id, or an awaitable of it.
    :raises InstanceNotFoundError: there is no such instance (not in activities and bodies, where it is kept).
    :raises PayloadError: the data has no JSON form, or is too large.
    """
    if not isinstance(ctx_or_edda, (WorkflowContext, SyncWorkflowContext)) and hasattr(ctx_or_edda, "send_to"):
        return ctx_or_edda.send_to(instance_id, data, channel, metadata)
    place = place_of(ctx_or_edda, "send_to()")
    message = direct_message(instance_id, data, channel, metadata, max_payload_bytes=place.max_payload_bytes)
    return _sent(place, "send_to", message)


def channel_message(
    channel: str, data: Any, metadata: Mapping[str, Any] | None, *, max_payload_bytes: int
) -> OutgoingMessage:
    """Check and encode a message to a channel; nothing is written yet.

    :raises PayloadError: the data or the metadata has no JSON form, or is too large.
    :raises UsageError: the channel is no text, or one that only ``send_to()`` reaches.
    """
    _check_channel("publish", channel)
    return _message("publish", channel, data, metadata, None, max_payload_bytes)


def direct_message(
    instance_id: str, data: Any, channel: str, metadata: Mapping[str, Any] | None, *, max_payload_bytes: int
) -> OutgoingMessage:
    """Check and encode a message to one instance; nothing is written yet.

    :raises PayloadError: the data or the metadata has no JSON form, or is too large.
    :raises UsageError: the channel or the instance id is no text.
    """
    check_text("send_to", "instance_id", instance_id, MAX_ID_LENGTH)
    check_text("send_to", "channel", channel, MAX_ID_LENGTH)
    return _message("send_to", channel, data, metadata, instance_id, max_payload_bytes)


def _message(
    function: str,
    channel: str,
    data: Any,
    metadata: Mapping[str, Any] | None,
    instance_id: str | None,
    max_payload_bytes: int,
) -> OutgoingMessage:
    owner = f"message to channel {channel!r}"
    is_binary = isinstance(data, (bytes, bytearray, memoryview))
    data_json = None if is_binary else _ANY.round_trip(data, owner=owner)[0]
    data_binary = bytes(data) if is_binary else None
    check_size(data_json or data_binary or b"", max_payload_bytes, owner=owner)
    if metadata is not None and not isinstance(metadata, Mapping):
        raise UsageError(f"{function}(metadata=...): a dict is needed, not a {type(metadata).__name__}.")
    metadata_json = _ANY.round_trip(dict(metadata or {}), owner=f"metadata of the {owner}")[0]
    check_size(metadata_json, max_payload_bytes, owner=f"metadata of the {owner}")
    return OutgoingMessage(
        message_id=uuid.uuid4().hex,
        kind="message",
        name=channel,
        metadata_json=metadata_json,
        addressee=instance_id,
        data_json=data_json,
        data_binary=data_binary,
    )


def _check_channel(function: str, channel: str) -> None:
    check_text(function, "channel", channel, MAX_ID_LENGTH)
    if channel == DIRECT_CHANNEL:
        raise UsageError(
            f"{function}(channel={channel!r}): every instance has this channel without a subscription, and only send_to()"
            " reaches it. Use another name."
        )


def _sent(place: Any, function_name: str, message: OutgoingMessage) -> Any:
    if place.is_body:
        return place.send(function_name, message)
    place.buffer_message(message)
    return EventId(message.message_id)
