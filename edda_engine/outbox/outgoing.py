"""What a relay hands to a publisher, and what it expects of one.

A publisher is any object with the two methods of :class:`Publisher`. It is made from its dotted path and options,
used on one event loop, and asked to publish several events at once; never two of one ordering key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from edda_engine.core.codec import parse


@dataclass(frozen=True, slots=True)
class OutgoingEvent:
    """One event to be published. The same ``event_id`` may come again: publish it with it, so that receivers notice."""

    event_id: str
    type: str
    source: str
    time: datetime
    """When it was written; aware, in UTC."""
    content_type: str
    subject: str | None = None
    ordering_key: str | None = None
    instance_id: str | None = None
    """The workflow instance it comes from, if any."""
    attempt: int = 1
    """Which try this is."""
    data_json: str | None = field(default=None, repr=False)
    data_binary: bytes | None = field(default=None, repr=False)

    @property
    def data(self) -> Any:
        """The payload: ``bytes`` if it was sent as such, else the JSON value."""
        return self.data_binary if self.data_json is None else parse(self.data_json)


class Publisher(Protocol):
    """Hands events to a broker, or to whoever takes them."""

    async def publish(self, event: OutgoingEvent) -> None:
        """Return once the broker has taken the event. Cancelled after five minutes.

        :raises PublishRefusedError: it will never take this one.
        :raises PublishLaterError: try again, not before the given seconds; any other exception means the same.
        """
        ...

    async def close(self) -> None:
        """Let go of connections; called once, when the relay stops."""
        ...
