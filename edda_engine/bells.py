"""Waking a thread that waits: for word from another thread, or for a thing that it says once."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Bell:
    """Wakes the one thread that waits for it; rung before, it wakes the next wait at once.

    A third of what an :class:`threading.Event` costs, of which a request that starts a workflow and waits for its
    result would need two.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Let the wait end; from any thread, and as often as one likes."""
        try:
            self._lock.release()
        except RuntimeError:  # it was rung before, and nobody has waited since
            return

    def wait(self, seconds: float) -> bool:
        """Wait until it is rung, at most for so long; whether it was."""
        return self._lock.acquire(timeout=max(0.0, seconds))


class Reply(Bell, Generic[T]):
    """What another thread says once, a value or an exception, to the one that waits for it."""

    __slots__ = ("_found",)

    def say(self, found: T | BaseException) -> None:
        """The answer."""
        self._found = found
        self.ring()

    def value(self) -> T:
        """What was said: the value, or the exception raised; once :meth:`wait` has told that something was."""
        if isinstance(self._found, BaseException):
            raise self._found
        return self._found
