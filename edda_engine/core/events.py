"""What happened: the events of a history, in the past tense, and how they look as JSON.

An event's payloads stay encoded (JSON text) until somebody asks: a replay of ten thousand steps that
needs only their order never decodes a result.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

FORMAT = 1
"""The version of the event format that this code writes; it reads this one and all older ones."""


class EventType(StrEnum):
    """The words stored in ``event_type``."""

    ACTIVITY_COMPLETED = "ActivityCompleted"
    ACTIVITY_FAILED = "ActivityFailed"
    ACTIVITY_CANCELLED = "ActivityCancelled"
    VALUE_RECORDED = "ValueRecorded"
    TIMER_FIRED = "TimerFired"
    EVENT_RECEIVED = "EventReceived"
    MESSAGE_RECEIVED = "MessageReceived"
    WAIT_TIMED_OUT = "WaitTimedOut"
    WAIT_WITHDRAWN = "WaitWithdrawn"
    MESSAGE_SENT = "MessageSent"
    SUBSCRIBED = "Subscribed"
    UNSUBSCRIBED = "Unsubscribed"


GIVEN_UP = frozenset({EventType.ACTIVITY_CANCELLED, EventType.WAIT_WITHDRAWN})
"""The body itself let go of these calls, and does so again on replay: they have no answer."""


@dataclass(frozen=True, slots=True)
class StepKey:
    """Which call of the body this is: its id, and where in which concurrent branch it was made."""

    activity_id: str
    branch: str
    position: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """One row of history, as read back."""

    activity_id: str
    branch: str
    position: int
    event_type: str
    event_data: dict[str, Any]
    format: int = FORMAT

    @property
    def key(self) -> StepKey:
        """Which call it answers."""
        return StepKey(self.activity_id, self.branch, self.position)

    @property
    def name(self) -> str:
        """The activity that was recorded."""
        return str(self.event_data.get("activity_name", self.activity_id))


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """One step of an instance as its history tells it.

    ``event_data`` holds ``activity_name``, ``result`` or ``error``, ``input``, and ``retry_metadata`` only
    after retries. ``created_at`` is an aware UTC instant.
    """

    activity_id: str
    event_type: str
    event_data: dict[str, Any] = field(hash=False)
    created_at: datetime


def event_json(
    activity_name: str,
    *,
    input_json: str | None = None,
    result_json: str | None = None,
    error_json: str | None = None,
    retry_metadata: dict[str, Any] | None = None,
    taken_json: str | None = None,
) -> str:
    """Put an event's JSON together from parts that are encoded already."""
    parts = [f'"activity_name":{_quoted(activity_name)}']
    for name, text in (("input", input_json), ("result", result_json), ("error", error_json), ("taken", taken_json)):
        if text is not None:
            parts.append(f'"{name}":{text}')
    if retry_metadata is not None:
        parts.append(f'"retry_metadata":{json.dumps(retry_metadata)}')
    return "{" + ",".join(parts) + "}"


_quoted = lru_cache(maxsize=1024)(json.dumps)
"""The same few names come again and again."""
