"""Named points in the life of a step, for tests that kill, pause or cut there.

A probe is given at construction; the usual one does nothing.
"""

from __future__ import annotations

from collections.abc import Callable

Probe = Callable[[str], None]

STEP_POINTS = (
    "claim.before_commit",
    "claim.after_commit",
    "body.started",
    "activity.started",
    "activity.returned",
    "activity.before_commit",
    "activity.after_commit",
    "step.before_commit",
    "step.after_commit",
    "attempt.before_commit",
    "attempt.after_commit",
    "batch.before_commit",
    "batch.after_commit",
    "end.before_commit",
    "end.after_commit",
)
"""Points that any instance with activities passes. What was sent is delivered in the transaction of a claim.

An activity that has used its session commits its own transaction (``activity.``). Everything else of an instance goes
through the committer: the points of a ``step``, an ``attempt`` or an ``end`` are before it is handed over and after the
answer, those of a ``batch`` are around the commit itself.
"""

KEEPING_POINTS = tuple(
    f"{name}.{when}_commit"
    for name in (
        "register", "unregister", "renew", "release", "recall", "hand_back", "strays", "take_over", "note_takeover",
        "bury", "beat", "sweep", "prune", "prune_instances",
    )
    for when in ("before", "after")
)  # fmt: skip
"""Points in what a worker writes about itself, its leases, and the work of workers that died."""

REQUEST_POINTS = tuple(
    f"request.{name}.{when}_commit"
    for name in ("start", "send", "event", "cancel", "retry", "outbox", "prune")
    for when in ("before", "after")
)
"""Points in requests that commit at once, rather than with the session of whoever asks."""

TALK_POINTS = (
    "take.before_commit",
    "take.after_commit",
    "wait.before_commit",
    "wait.after_commit",
    "send.before_commit",
    "send.after_commit",
    "subscribe.before_commit",
    "subscribe.after_commit",
)
"""Points in the life of a wait: it asks for what has come, gives its lease back; and of what a body sends."""

EVENT_POINTS = ("events.before_commit", "events.after_commit")
"""Points in the life of a request that brings an event."""

RELAY_POINTS = (
    "relay.claim.before_commit",
    "relay.claim.after_commit",
    "relay.publish.before",
    "relay.publish.after",
    "relay.record.before_commit",
    "relay.record.after_commit",
    "relay.renew.before_commit",
    "relay.renew.after_commit",
    "relay.release.before_commit",
    "relay.release.after_commit",
    "relay.prune.before_commit",
    "relay.prune.after_commit",
)
"""Points in the life of a publication; only a relay passes them."""

POINTS = STEP_POINTS + KEEPING_POINTS + TALK_POINTS + REQUEST_POINTS + EVENT_POINTS + RELAY_POINTS


def no_probe(point: str) -> None:
    """Do nothing."""
