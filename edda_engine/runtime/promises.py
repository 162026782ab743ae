"""The places of a worker, and those kept for what is being started or claimed here: it counts like a run until it is one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sized

_LOOK_SECONDS = 0.01


class Promises:
    """How many runs a worker will have to take besides those it has, *held*; safe from any thread."""

    def __init__(self, held: Sized, *, max_running: int) -> None:
        self._held, self._max_running = held, max_running
        self._lock = threading.Lock()
        self._is_closed = False
        self.count = 0

    @property
    def are_over(self) -> bool:
        """Whether the worker was told to take nothing more, and nothing is on its way to it any more."""
        return self._is_closed and not self.count

    @property
    def are_half_free(self) -> bool:
        """Whether so few places are taken that whoever needs none for a moment may keep it."""
        return 2 * (len(self._held) + self.count) <= self._max_running

    def give(self, most: int = 1) -> int:
        """Keep up to *most* places, as far as there are; returns how many."""
        with self._lock:
            room = self._max_running - len(self._held) - self.count
            given = 0 if self._is_closed else max(0, min(most, room))
            self.count += given
            return given

    def end(self, number: int = 1) -> None:
        """Places are taken, or not needed."""
        with self._lock:
            self.count -= number

    async def kept(self, deadline: float) -> None:
        """Return when no place is kept any more, or at *deadline* by the loop's clock."""
        while self.count and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        """Give no more: the worker is stopping. What was given already is taken all the same."""
        with self._lock:
            self._is_closed = True
