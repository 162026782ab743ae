"""The states of an instance, and the one table of legal moves between them."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """Where an instance stands."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING_FOR_EVENT = "waiting_for_event"
    WAITING_FOR_TIMER = "waiting_for_timer"
    WAITING_FOR_MESSAGE = "waiting_for_message"
    COMPENSATING = "compensating"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    RECURRED = "recurred"

    @property
    def is_finished(self) -> bool:
        """True when no worker will take the instance up again by itself."""
        return self in FINISHED


FINISHED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.RECURRED})
WAITING = frozenset({Status.WAITING_FOR_EVENT, Status.WAITING_FOR_TIMER, Status.WAITING_FOR_MESSAGE})

_ENDS = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.RECURRED})

TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({Status.RUNNING, Status.CANCELLED}),
    # RUNNING -> RUNNING: taken over from a worker that died.
    Status.RUNNING: WAITING | _ENDS | {Status.RUNNING, Status.COMPENSATING},
    Status.WAITING_FOR_EVENT: frozenset({Status.RUNNING, Status.CANCELLED, Status.COMPENSATING}),
    Status.WAITING_FOR_TIMER: frozenset({Status.RUNNING, Status.CANCELLED, Status.COMPENSATING}),
    Status.WAITING_FOR_MESSAGE: frozenset({Status.RUNNING, Status.CANCELLED, Status.COMPENSATING}),
    Status.COMPENSATING: frozenset({Status.COMPENSATING, Status.FAILED, Status.CANCELLED}),
    Status.COMPLETED: frozenset(),
    # FAILED -> RUNNING: only when an operator says so (`flask edda retry`).
    Status.FAILED: frozenset({Status.RUNNING}),
    Status.CANCELLED: frozenset(),
    Status.RECURRED: frozenset(),
}


def may_become(current: Status, following: Status) -> bool:
    """Whether an instance in *current* may move to *following*."""
    return following in TRANSITIONS[current]


def sources_of(following: Status) -> frozenset[Status]:
    """The states from which an instance may move to *following*, for the WHERE of an UPDATE."""
    return frozenset(status for status in Status if may_become(status, following))
