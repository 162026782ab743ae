"""The units of writing: what is written together or not at all, each with the lease it is written under."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edda_engine.core.codec import parse
from edda_engine.core.events import FORMAT, EventType, Recorded, StepKey
from edda_engine.core.ports import NewInstance, OutboxEvent, OutgoingMessage, SubscriptionChange, WaitRequest
from edda_engine.core.status import Status
from edda_engine.errors import EddaError
from edda_engine.storage.retries import RetryState
from edda_engine.storage.starts import Started


@dataclass(frozen=True, slots=True)
class Holder:
    """Who writes: refused unless *worker_id* still holds the lease of that *epoch*."""

    instance_id: str
    worker_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Step:
    """One step's outcome, with the events that belong to it."""

    holder: Holder
    key: StepKey
    seq: int
    event_type: EventType
    event_json: str
    outbox: tuple[OutboxEvent, ...] = ()
    had_retries: bool = False
    messages: tuple[OutgoingMessage, ...] = ()
    ends_wait: bool = False

    def as_recorded(self) -> Recorded:
        """As a replay reads it."""
        key = self.key
        return Recorded(key.activity_id, key.branch, key.position, self.event_type, parse(self.event_json))

    def as_row(self) -> dict[str, Any]:
        """The row of history."""
        return {
            "instance_id": self.holder.instance_id,
            "activity_id": self.key.activity_id,
            "seq": self.seq,
            "branch": self.key.branch,
            "position": self.key.position,
            "event_type": self.event_type,
            "event_data": self.event_json,
            "format": FORMAT,
        }


@dataclass(frozen=True, slots=True)
class Attempt:
    """A failed attempt that another one will follow."""

    holder: Holder
    activity_id: str
    state: RetryState


@dataclass(frozen=True, slots=True)
class Take:
    """Take what has come for a wait, or find its time up, and record that; else register the wait."""

    holder: Holder
    key: StepKey
    seq: int
    about: str
    """How history names the call."""
    mailbox: str
    request: WaitRequest
    is_asked_again: bool = False
    """The wait is registered already."""

    def ended(self, event_type: EventType, event_json: str) -> Step:
        """What history says of its end."""
        return Step(self.holder, self.key, self.seq, event_type, event_json)


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Change what an instance gets, with the step that says so."""

    step: Step
    mailbox: str
    change: SubscriptionChange

    @property
    def holder(self) -> Holder:
        """Who writes."""
        return self.step.holder

    @property
    def key(self) -> StepKey:
        """Which call of the body this is."""
        return self.step.key


@dataclass(frozen=True, slots=True)
class PutBack:
    """A wait is withdrawn although something was taken for it: that goes back to where it lay."""

    step: Step
    mailbox: str

    @property
    def holder(self) -> Holder:
        """Who writes."""
        return self.step.holder

    @property
    def key(self) -> StepKey:
        """Which call of the body this is."""
        return self.step.key


@dataclass(frozen=True, slots=True)
class Wait:
    """Give the lease back until *delay_seconds* have passed, or with ``None`` until somebody wakes the instance."""

    holder: Holder
    status: Status
    delay_seconds: float | None
    asks: frozenset[str] | None = None
    """At which waits the body is, or ``None`` if at all that are registered.

    Others are of a version of the code that is gone, or of another turn that the body has taken.
    """


@dataclass(frozen=True, slots=True)
class Successor:
    """The run that goes on where a recurring one ends."""

    instance_id: str
    input_json: str
    source_hash: str


@dataclass(frozen=True, slots=True)
class End:
    """The final outcome of an instance."""

    holder: Holder
    status: Status
    output_json: str | None = None
    error_json: str | None = None
    had_retries: bool = False
    had_waits: bool = False
    mailbox: str | None = None
    """Whose subscriptions and messages end with it; ``None`` if it can have none."""
    successor: Successor | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Something keeps the instance from going on; it stays visible, and nobody claims it until an operator acts."""

    holder: Holder
    error_json: str


@dataclass(frozen=True, slots=True)
class Start:
    """A new instance, for anybody to claim or claimed already by the worker that writes it."""

    new: NewInstance
    claimed_by: str | None = None


HeldUnit = Step | Attempt | Take | Subscribe | PutBack | Wait | End | Block
"""What only the holder of a lease may write."""

Unit = HeldUnit | Start


@dataclass(frozen=True, slots=True)
class Saved:
    """The unit is written. *is_cancelled*: the instance was asked to stop. *is_due*: it is due again at once."""

    is_cancelled: bool = False
    is_due: bool = False


@dataclass(frozen=True, slots=True)
class AlreadyRecorded:
    """The step was recorded before; this is its outcome."""

    event: Recorded
    is_cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Open:
    """Nothing is there for the wait yet. *due_in_seconds* is ``None`` for one without a deadline."""

    due_in_seconds: float | None
    is_cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """It cannot be done; nothing was written. The body gets *error*."""

    error: EddaError
    is_cancelled: bool = False


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """Another worker owns the instance; nothing was written."""


@dataclass(frozen=True, slots=True)
class Busy:
    """Somebody else's transaction has locked the instance; nothing was written, and nobody waited. Try again."""


Outcome = Saved | AlreadyRecorded | Open | Refused | LeaseLost
BatchOutcome = Outcome | Started | Refused | Busy
