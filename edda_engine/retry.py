"""Ready-made retry policies.

An activity's own policy wins over the application's default, which wins over :data:`DEFAULT_RETRY`.
"""

from __future__ import annotations

from edda_engine.core.retrying import RetryPolicy

__all__ = ["AGGRESSIVE_RETRY", "CONSERVATIVE_RETRY", "DEFAULT_RETRY", "INFINITE_RETRY", "RetryPolicy"]

DEFAULT_RETRY = RetryPolicy()
"""Five attempts, 1, 2, 4 and 8 seconds apart."""

AGGRESSIVE_RETRY = RetryPolicy(
    max_attempts=10, initial_interval=0.1, backoff_coefficient=1.5, max_interval=10.0, max_duration=60.0
)
"""Ten attempts from 0.1 seconds on, for at most a minute: quick services that hiccup."""

CONSERVATIVE_RETRY = RetryPolicy(max_attempts=3, initial_interval=5.0, max_interval=60.0, max_duration=900.0)
"""Three attempts from 5 seconds on, for at most 15 minutes: services that limit rates."""

INFINITE_RETRY = RetryPolicy(max_attempts=None, max_duration=None)
"""Until it succeeds, at most a minute apart. Only for what must happen and can wait."""
