"""Places kept for instances that are being started here: they count like runs until they are one."""

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

    def give(self, *, room: int) -> bool:
        """Keep a place if fewer than *room* are kept already."""
        with self._lock:
            if self._is_closed or self.count >= room:
                return False
            self.count += 1
            return True

    def end(self) -> None:
        """A place is taken, or not needed."""
        with self._lock:
            self.count -= 1

    async def kept(self, deadline: float) -> None:
        """Return when no place is kept any more, or at *deadline* by the loop's clock."""
        while self.count and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        """Give no more: the worker is stopping."""
        with self._lock:
            self._is_closed = True
