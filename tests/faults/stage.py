"""One life of a process of the store: the points it passes, and what happens to it at one of them.

The same in a process of its own, that is killed or stopped, and in the process of the test.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from unittest.mock import patch

from edda_engine.runtime import run
from tests.faults.books import Books
from tests.faults.wire import Wire

Deed = Callable[["Stage", str, int], None]
"""Called at each point, with how many times this life has come there."""

_SECONDS = 60.0


def nothing(_stage: Stage, _point: str, _arrival: int) -> None:
    """What happens at most points."""


class Stage:
    """Where a life takes place."""

    def __init__(self, url: str, folder: Path, *, mishap: Deed = nothing, deed: Deed = nothing) -> None:
        """*mishap* belongs to the story of this life, *deed* is the fault that it is told for."""
        self.books, self.folder = Books(url), folder
        self.wire = Wire(url, committing=self._committing)
        # Timers of a moment stand for long ones here, which give the lease back.
        self._short_timers = patch.object(run, "SHORT_TIMER_SECONDS", run.NAP_SECONDS)
        self.is_draining = False
        self.is_at_work_on: Callable[[str], bool] = lambda _: False
        """Whether the engine of this life holds an instance."""
        self._mishap, self._deed = mishap, deed
        self._arrivals: Counter[str] = Counter()
        self._passed: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._when: dict[str, Callable[[], None]] = {}
        self._last_point = threading.local()

    def __call__(self, point: str) -> None:
        """The probe of the application."""
        with self._changed:
            self._arrivals[point] += 1
            arrival = self._arrivals[point]
        self._last_point.name = point
        self._mishap(self, point, arrival)
        self._deed(self, point, arrival)
        with self._changed:
            self._passed[point] += 1
            self._changed.notify_all()
        if point in self._when:
            self._when[point]()

    def when_passed(self, point: str, then: Callable[[], None]) -> None:
        """Call *then* each time that a point was passed, on the thread that passes it."""
        self._when[point] = then

    def has_passed(self, point: str) -> bool:
        """Whether this life has been there, and what happens there has happened."""
        return self._passed[point] > 0

    def points_passed(self) -> int:
        """How many points this life has passed so far, but for those of claims, which may find nothing."""
        return sum(count for point, count in self._passed.items() if not point.startswith("claim."))

    def until(self, look: Callable[[], bool]) -> None:
        """Wait until something holds that changes with the points; for threads that have nothing better to do."""
        with self._changed:
            assert self._changed.wait_for(look, _SECONDS), "nothing happened"

    def draining(self) -> None:
        """Tell lingering activities that their engine is being stopped."""
        with self._changed:
            self.is_draining = True
            self._changed.notify_all()

    def __enter__(self) -> Stage:
        self._short_timers.__enter__()
        self.wire.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.wire.__exit__(kind, error, traceback)
        self._short_timers.__exit__(None, None, None)

    def _committing(self, when: str) -> None:
        """A commit that no point of the library comes before is that by which the tables are made."""
        here = self._last_point
        if when == "before":
            here.is_named = getattr(here, "name", "").endswith(".before_commit")
        if not here.is_named:
            self(f"tables.{when}_commit")
        here.name = ""
