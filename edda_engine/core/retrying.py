"""What follows a failed attempt: try again after a while, or give up.

A policy is data; :func:`decide` is the whole of the decision. Elapsed time and the random number come in as
arguments, so the same inputs decide the same after a crash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edda_engine.errors import ConfigurationError, PayloadError, TerminalError, UsageError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, how soon and for how long a failing activity is tried again.

    :param max_attempts: Tries in all, the first included; ``None`` is without limit.
    :param initial_interval: Seconds before the second try.
    :param backoff_coefficient: Each further delay is the one before times this.
    :param max_interval: The longest delay, in seconds.
    :param max_duration: No try starts later than this many seconds after the first; ``None`` is without limit.
    :param jitter: Fraction by which a delay is shortened at random, from 0 (none) to 1 (down to nothing).
    :param retryable_error_types: When given, only these exceptions (and subclasses) are tried again.
    :param non_retryable_error_types: These (and subclasses) never are; they reach the workflow as they are.
    """

    max_attempts: int | None = 5
    initial_interval: float = 1.0
    backoff_coefficient: float = 2.0
    max_interval: float = 60.0
    max_duration: float | None = 300.0
    jitter: float = 0.0
    retryable_error_types: Sequence[type[BaseException]] | None = None
    non_retryable_error_types: Sequence[type[BaseException]] = ()

    def __post_init__(self) -> None:
        checks = (
            (self.max_attempts is None or self.max_attempts >= 1, "max_attempts must be at least 1, or None"),
            (self.initial_interval >= 0, "initial_interval must not be negative"),
            (self.backoff_coefficient >= 1, "backoff_coefficient must be at least 1"),
            (self.max_interval >= 0, "max_interval must not be negative"),
            (self.max_duration is None or self.max_duration >= 0, "max_duration must not be negative, or None"),
            (0 <= self.jitter <= 1, "jitter must be between 0 and 1"),
        )
        for holds, sentence in checks:
            if not holds:
                raise ConfigurationError(f"RetryPolicy: {sentence}; this one is {self}.")

    def delay_after(self, attempt: int, *, random: float = 0.0) -> float:
        """Seconds between failed attempt number *attempt* (from 1) and the next one."""
        if self.initial_interval == 0:
            return 0.0
        try:
            delay = min(self.initial_interval * self.backoff_coefficient ** (attempt - 1), self.max_interval)
        except OverflowError:
            delay = self.max_interval
        return delay * (1 - self.jitter * random)

    def allows(self, error: BaseException) -> bool:
        """Whether this kind of error may be tried again at all."""
        if isinstance(error, (TerminalError, PayloadError, UsageError, ConfigurationError)):
            return False
        if isinstance(error, tuple(self.non_retryable_error_types)):
            return False
        return self.retryable_error_types is None or isinstance(error, tuple(self.retryable_error_types))


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Try again, not before *delay_seconds*."""

    attempt: int
    delay_seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Record the failure. The workflow sees ``RetryExhaustedError`` if *exhausted*, else the error itself."""

    attempts: int
    exhausted: bool


def decide(
    policy: RetryPolicy, error: BaseException, *, attempt: int, elapsed_seconds: float, random: float
) -> RetryAfter | GiveUp:
    """What follows failed attempt number *attempt*, *elapsed_seconds* after the first one began."""
    if not policy.allows(error):
        return GiveUp(attempt, exhausted=False)
    if policy.max_attempts is not None and attempt >= policy.max_attempts:
        return GiveUp(attempt, exhausted=True)
    delay = policy.delay_after(attempt, random=random)
    if policy.max_duration is not None and elapsed_seconds + delay > policy.max_duration:
        return GiveUp(attempt, exhausted=True)
    return RetryAfter(attempt + 1, delay)
