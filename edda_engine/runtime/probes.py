"""Named points in the life of a step, for tests that kill, pause or cut there.

A probe is given at construction; the usual one does nothing.
"""

from __future__ import annotations

from collections.abc import Callable

Probe = Callable[[str], None]

POINTS = (
    "claim.before_commit",
    "claim.after_commit",
    "body.started",
    "activity.started",
    "activity.returned",
    "step.before_commit",
    "step.after_commit",
    "attempt.before_commit",
    "attempt.after_commit",
    "batch.before_commit",
    "batch.after_commit",
    "end.before_commit",
    "end.after_commit",
)


def no_probe(point: str) -> None:
    """Do nothing."""
