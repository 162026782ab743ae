"""The pauses of one body: short ones are slept through, long ones may outlive the lease.

A pause ends by its timer, by a new lease that finds it due, or because the body is to stop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

IN_MEMORY_SECONDS = 1.0
"""Pauses up to this long are slept through with the lease held; longer ones give it back."""

CLOSE_ENOUGH_SECONDS = 0.02
"""A pause that ends this soon counts as over: the database's clock has said so already."""


class Pauses:
    """Who waits in one body, and until when (by this process's monotonic clock)."""

    def __init__(self) -> None:
        self._short: set[asyncio.Future[None]] = set()
        self._long: dict[asyncio.Future[None], float] = {}

    @property
    def has_long(self) -> bool:
        """True while somebody waits for longer than a moment."""
        return bool(self._long)

    @property
    def due_in_seconds(self) -> float:
        """Until the first of the long ones ends."""
        return max(0.0, min(self._long.values()) - time.monotonic())

    async def short(self, seconds: float) -> None:
        """Wait for a moment."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        timer = loop.call_later(seconds, wake, future)
        self._short.add(future)
        try:
            await future
        finally:
            timer.cancel()
            self._short.discard(future)

    async def long(self, seconds: float, *, is_parked: Callable[[], bool]) -> None:
        """Wait; while the body is parked its timer does nothing, because only a new lease may let it go on."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        timer = loop.call_later(seconds, lambda: None if is_parked() else wake(future))
        self._long[future] = time.monotonic() + seconds
        try:
            await future
        finally:
            timer.cancel()
            del self._long[future]

    def wake_due(self) -> None:
        """End the long pauses whose time has come."""
        limit = time.monotonic() + CLOSE_ENOUGH_SECONDS
        for future, due in list(self._long.items()):
            if due <= limit:
                wake(future)

    def wake_all(self) -> None:
        """End every pause."""
        for future in (*self._short, *self._long):
            wake(future)


def wake(future: asyncio.Future[None]) -> None:
    """End one wait, unless it has ended."""
    if not future.done():
        future.set_result(None)


async def for_ever() -> None:
    """Wait until cancelled."""
    await asyncio.get_running_loop().create_future()
