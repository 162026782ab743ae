"""How declarations reach what runs: small protocols, and the one context variable that says where we are.

A declaration (``@activity``, ``ctx.now()``, ``wf.start()``) never imports the runtime. It asks the execution
that its context carries, or looks up the place it is called from.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol


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
