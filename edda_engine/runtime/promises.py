"""Places kept for instances that are being started or claimed here: they count like runs until they are one."""

from __future__ import annotations

import asyncio
import threading

_LOOK_SECONDS = 0.01


class Promises:
    """How many runs a worker will have to take besides those it has; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_closed = False
        self.count = 0

    def give(self, most: int = 1, *, room: int) -> int:
        """Keep up to *most* places, as far as not all of *room* are kept already; returns how many."""
        with self._lock:
            given = 0 if self._is_closed else max(0, min(most, room - self.count))
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
        """Give no more: the worker is stopping."""
        with self._lock:
            self._is_closed = True
