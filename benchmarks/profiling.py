"""A CPU profile of every thread of the engine, begun by the probes that the engine passes anyway.

A profile belongs to the thread that begins it, and the engine's threads are not ours; a probe is called on each of
them. Time is CPU of that thread, so waiting for a lock, the interpreter or the database does not count.
"""

from __future__ import annotations

import cProfile
import io
import pstats
import threading
import time
from pathlib import Path

_LINES = 25


class ThreadProfiles:
    """Give :attr:`probe` to the engine, stop the engine, then :meth:`write`."""

    def __init__(self) -> None:
        self._mine = threading.local()
        self._found: list[tuple[str, cProfile.Profile]] = []

    def probe(self, _name: str) -> None:
        """Begin to profile this thread, unless that is so already."""
        if not hasattr(self._mine, "profile"):
            self._mine.profile = cProfile.Profile(time.thread_time)
            name = threading.current_thread().name.rstrip("0123456789").rstrip("_-")
            self._found.append((name, self._mine.profile))
            self._mine.profile.enable()

    def write(self, folder: str) -> None:
        """One file for each kind of thread, the busiest functions by own and by cumulative time."""
        kinds: dict[str, pstats.Stats] = {}
        for name, profile in self._found:
            profile.create_stats()
            if name in kinds:
                kinds[name].add(profile)
            else:
                kinds[name] = pstats.Stats(profile)
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, stats in kinds.items():
            text = io.StringIO()
            stats.stream = text  # type: ignore[attr-defined]
            for order in ("tottime", "cumulative"):
                stats.sort_stats(order).print_stats(_LINES)
            (Path(folder) / f"{name}.txt").write_text(text.getvalue())
