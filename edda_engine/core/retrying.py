"""What follows a failed attempt: try again after a while, or give up.

A policy is data; :func:`decide` is the whole of the decision. Elapsed time and the random number come in as
arguments, so the same inputs decide the same after a crash.
"""

from __future__ import annotations

import builtins
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edda_engine.errors import ConfigurationError, PayloadError, TerminalError, UsageError

ErrorTypes = Sequence[type[BaseException] | str] | type[BaseException] | str


class _Default(float):
    """A default that can be told from the same number given by somebody."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, how soon and for how long a failing activity is tried again.

    :param max_attempts: Tries in all, the first included; ``None`` is without limit.
    :param initial_interval: Seconds before the second try.
    :param backoff_coefficient: Each further delay is the one before times this.
    :param max_interval: The longest delay, in seconds.
    :param max_duration: No try starts later than this many seconds after the first; ``None`` is without limit, and the
        default where ``max_attempts`` is ``None``.
    :param jitter: Fraction by which a delay is shortened at random, from 0 (none) to 1 (down to nothing).
    :param retryable_error_types: When given, only these exceptions (and subclasses) are tried again. One class or several,
        or their names: ``"ValueError"``, ``"shop.errors.SoldOut"``.
    :param non_retryable_error_types: These (and subclasses) never are; they reach the workflow as they are.
    :raises ConfigurationError: a value makes no sense.
    """

    max_attempts: int | None = 5
    initial_interval: float = 1.0
    backoff_coefficient: float = 2.0
    max_interval: float = 60.0
    max_duration: float | None = _Default(300.0)
    jitter: float = 0.0
    retryable_error_types: ErrorTypes | None = None
    non_retryable_error_types: ErrorTypes = ()

    def __post_init__(self) -> None:
        if isinstance(self.max_duration, _Default):
            object.__setattr__(self, "max_duration", None if self.max_attempts is None else float(self.max_duration))
        if self.retryable_error_types is not None:
            self._import("retryable_error_types", self.retryable_error_types)
        self._import("non_retryable_error_types", self.non_retryable_error_types)
        checks = (
            ("max_attempts", _is_count(self.max_attempts), "a whole number, at least 1, or None"),
            ("initial_interval", _is_number(self.initial_interval), "a number of seconds, at least 0"),
            ("backoff_coefficient", _is_number(self.backoff_coefficient, least=1), "a number, at least 1"),
            ("max_interval", _is_number(self.max_interval), "a number of seconds, at least 0"),
            (
                "max_duration",
                self.max_duration is None or _is_number(self.max_duration),
                "a number of seconds, at least 0, or None",
            ),
            ("jitter", _is_number(self.jitter, most=1), "a number from 0 to 1"),
        )
        for name, holds, what in checks:
            if not holds:
                raise ConfigurationError(f"RetryPolicy({name}={getattr(self, name)!r:.80}): it must be {what}.")

    def _import(self, name: str, given: ErrorTypes) -> None:
        several = [given] if isinstance(given, (type, str)) else given
        try:
            found = tuple(_error_class(name, one) for one in several)
        except TypeError as error:
            raise _no_error_class(name, given) from error
        object.__setattr__(self, name, found)

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
        never: Any = self.non_retryable_error_types
        only: Any = self.retryable_error_types
        return not isinstance(error, never) and (only is None or isinstance(error, only))


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)


def is_number(value: object, *, above: float = -math.inf) -> bool:
    """Whether *value* is a finite number, and more than *above*."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > above


def _is_number(value: object, *, least: float = 0, most: float = math.inf) -> bool:
    return is_number(value) and least <= value <= most  # type: ignore[operator]


def _error_class(name: str, given: object) -> type[BaseException]:
    """A class as it is, or by the name that a settings module gives."""
    found = _imported(name, given) if isinstance(given, str) else given
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        raise _no_error_class(name, given)
    return found


def _imported(name: str, path: str) -> object:
    module_name, _, class_name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name) if module_name else builtins, class_name)
    except Exception as error:  # importing a module of the user's may raise anything
        raise ConfigurationError(
            f"RetryPolicy({name}=...): {path!r:.80} cannot be imported ({type(error).__name__}: {error}). Give an exception"
            " class, or its dotted path such as 'shop.errors.SoldOut'; one of Python needs no path."
        ) from error


def _no_error_class(name: str, given: object) -> ConfigurationError:
    return ConfigurationError(
        f"RetryPolicy({name}={given!r:.80}): give an exception class or several, as in {name}=(ValueError, KeyError)."
    )


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
