"""How declarations reach what runs: small protocols, and the one context variable that says where we are.

A declaration (``@activity``, ``ctx.now()``, ``wf.start()``) never imports the runtime. It asks the execution
that its context carries, or looks up the place it is called from.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, NoReturn, Protocol

from edda_engine.core.events import Recorded


class EventId(str):
    """The id of something sent; in an async activity it may also be awaited, which gives itself."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, EventId]:
        yield from ()
        return self


class WaitKind(StrEnum):
    """What a body can wait for."""

    TIMER = "timer"
    EVENT = "event"
    MESSAGE = "message"


@dataclass(frozen=True, slots=True)
class WaitRequest:
    """One wait of a body. *seconds* or *until* say when it ends by itself; the database's clock decides."""

    kind: WaitKind
    name: str = ""
    """The event type, or the channel; empty for a timer."""
    seconds: float | None = None
    until: datetime | None = None


DIRECT_CHANNEL = "__direct__"
"""The channel that every instance has without a subscription."""


class ChannelMode(StrEnum):
    """Who gets a channel's messages."""

    BROADCAST = "broadcast"
    COMPETING = "competing"
    DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class SubscriptionChange:
    """A body begins, or with ``mode=None`` ends, to get a channel's messages."""

    channel: str
    mode: ChannelMode | None


class BodyExecution(Protocol):
    """What a workflow body may ask of the executor."""

    is_body: Literal[True]
    instance_id: str
    workflow_name: str
    worker_id: str

    @property
    def is_replaying(self) -> bool:
        """True while answers come from history."""
        ...

    def call_activity(
        self, activity: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, activity_id: str | None
    ) -> Any:
        """Number the call now; return an awaitable, or in a plain ``def`` body the value."""
        ...

    def call_inline(self, workflow: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run another workflow's function as part of this body."""
        ...

    def gather(self, branches: tuple[Callable[[], Any], ...], *, return_exceptions: bool) -> list[Any]:
        """Run branches of a plain ``def`` body side by side."""
        ...

    def wait(
        self, function_name: str, request: WaitRequest, decode: Callable[[Recorded], Any], *, activity_id: str | None
    ) -> Any:
        """Number the wait now; return what *decode* makes of its recorded end, or an awaitable of it."""
        ...

    def send(self, function_name: str, message: OutgoingMessage) -> Any:
        """Send as a recorded step; return the message's id, or an awaitable of it."""
        ...

    def subscribe(self, function_name: str, change: SubscriptionChange) -> Any:
        """Change what this instance gets, as a recorded step; return ``None``, or an awaitable of it."""
        ...

    def first_of(self, branches: tuple[Any, ...]) -> Any:
        """Run branches side by side until one ends; return its index and value, or an awaitable of them."""
        ...

    def recur(self, arguments: dict[str, Any]) -> NoReturn:
        """End this run and start its successor."""
        ...

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload."""
        ...

    def now(self) -> datetime:
        """The recorded time of this call."""
        ...

    def uuid4(self) -> uuid.UUID:
        """An id derived from the instance and the place of the call."""
        ...

    def random(self) -> float:
        """A number from 0 to 1 derived from the instance and the place of the call."""
        ...


class ActivityExecution(Protocol):
    """What a running activity may ask of its attempt."""

    is_body: Literal[False]
    instance_id: str
    workflow_name: str
    worker_id: str
    activity_id: str
    attempt: int
    is_async: bool

    def now(self) -> datetime:
        """The time of this host."""
        ...

    def uuid4(self) -> uuid.UUID:
        """A random id."""
        ...

    def random(self) -> float:
        """A random number."""
        ...

    @property
    def session(self) -> Any:
        """The session of this attempt's transaction."""
        ...

    def savepoint(self) -> AbstractContextManager[Any] | AbstractAsyncContextManager[Any]:
        """A savepoint inside this attempt's transaction."""
        ...

    def register_post_commit(self, callback: Callable[[], Any]) -> None:
        """Call back once the step is durable."""
        ...

    def buffer_outbox(self, event: OutboxEvent) -> None:
        """Write this event with the history row."""
        ...

    def buffer_message(self, message: OutgoingMessage) -> None:
        """Send this message with the history row."""
        ...

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload."""
        ...


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """An event to be written with the step that caused it. Exactly one of the payloads is given."""

    event_id: str
    type: str
    source: str
    content_type: str
    data_json: str | None = None
    data_binary: bytes | None = None
    subject: str | None = None
    ordering_key: str | None = None


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """An event or a channel's message to be sent; at most one of the payloads is given."""

    message_id: str
    kind: Literal["event", "message"]
    name: str
    """The event type, or the channel."""
    metadata_json: str
    addressee: str | None = None
    """The id of the one instance it is for; ``None`` for whoever waits or has subscribed."""
    data_json: str | None = None
    data_binary: bytes | None = None


@dataclass(frozen=True, slots=True)
class NewInstance:
    """A start, checked and encoded, not yet written."""

    instance_id: str
    workflow_name: str
    service: str
    input_json: str
    source_hash: str
    lock_timeout_seconds: float
    priority: int = 0
    delay_seconds: float | None = None
    start_at: datetime | None = None


Place = BodyExecution | ActivityExecution

current_place: ContextVar[Place | None] = ContextVar("edda_place", default=None)
"""Set while user code of a workflow runs: the body's execution, or the attempt of an activity."""
