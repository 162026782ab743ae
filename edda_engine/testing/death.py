"""How a worker of a test dies: at one of its commits, as by ``kill -9``.

How it thinks. What a killed process leaves is what it has committed; everything else of it is gone. The same is left
when, from one instant on, the worker's database answers nothing any more and the worker is then thrown away. The
instant is just before or just after one of its commits. Every connection of this process to that database is cut,
because nobody can tell those of the worker from others, but not for the test's own thread, on which no worker runs.

What stays alive, unlike after a real kill, is the process: its memory outside the engine, and functions that were
running on threads, up to their next statement.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.exc import OperationalError

from edda_engine.core.ports import current_place
from edda_engine.errors import LeaseLostError
from edda_engine.runtime.probes import Probe

_COMMITS = {
    "claim.before_commit": "before it took up what was due",
    "claim.after_commit": "after it took up what was due",
    "batch.before_commit": "before it saved steps, waits or ends",
    "batch.after_commit": "after it saved steps, waits or ends",
    "activity.before_commit": "before it saved what an activity wrote, with its step",
    "activity.after_commit": "after it saved what an activity wrote, with its step",
}
_KILLED = "this worker was killed by its test, at one of its commits"


class KilledByTest(Exception):
    """The cause of the error that a killed worker sees."""


class KillSwitch:
    """A probe that kills at the n-th passing of a commit's beginning or end.

    :param probe: The application's own probe, which is called as well.
    :param has_work: Whether something is committed that a claim can take; what takes nothing is no commit to die at.
    :param died: Called once, on the thread that commits.
    """

    def __init__(self, url: URL, *, probe: Probe, has_work: Callable[[], bool], died: Callable[[], None]) -> None:
        self._database = _address(url)
        self._probe, self._has_work, self._died = probe, has_work, died
        self._lock = threading.Lock()
        self._test = threading.get_ident()
        self._kill_at: int | None = None
        self._passed: Counter[str] = Counter()
        self._claims = False
        self.killed_at: str | None = None
        """Where it has killed since it was armed, in words."""
        self.is_dead = False

    def arm(self, kill_at: int | None) -> None:
        """Count anew, and kill at that passing, from 1; ``None`` never kills."""
        with self._lock:
            self._kill_at, self._passed, self.killed_at = kill_at, Counter(), None

    def revive(self) -> None:
        """The dead worker is gone: its database answers again, to others."""
        self.is_dead = False

    def kill(self) -> None:
        """From now on the database answers nothing."""
        with self._lock:
            self.is_dead = True
        self._died()

    def __call__(self, point: str) -> None:
        """Pass a point."""
        self._probe(point)
        if point not in _COMMITS:
            return
        if point == "claim.before_commit":
            self._claims = self._has_work()  # a worker that was told of work may look for it in vain
            if not self._claims:
                return
        elif point == "claim.after_commit":
            if not self._claims:
                return
            self._claims = False
        with self._lock:
            if not self.is_dead:
                self._passed[point] += 1
                if self._passed.total() == self._kill_at:
                    self.killed_at = f"just {_COMMITS[point]}, for the {_ordinal(self._passed[point])} time"
                    self.is_dead = True
            has_killed = self.killed_at is not None and self._passed.total() == self._kill_at
        if has_killed:
            self._died()
        if self.is_dead:
            _refuse()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, a kill cuts the connections of this process to the database."""
        event.listen(Engine, "before_cursor_execute", self._before_statement)
        event.listen(Engine, "commit", self._before_commit)
        try:
            yield
        finally:
            event.remove(Engine, "before_cursor_execute", self._before_statement)
            event.remove(Engine, "commit", self._before_commit)

    def _before_statement(self, conn: Connection, *_: Any) -> None:
        self._refuse_if_dead(conn)

    def _before_commit(self, conn: Connection) -> None:
        self._refuse_if_dead(conn)

    def _refuse_if_dead(self, conn: Connection) -> None:
        is_of_test = threading.get_ident() == self._test
        if self.is_dead and not is_of_test and _address(conn.engine.url) == self._database:
            _refuse()


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def _refuse() -> NoReturn:
    place = current_place.get()
    if place is not None and not place.is_body:
        raise LeaseLostError(f"The database cannot be used any more: {_KILLED}.")  # user code must not handle it
    raise OperationalError("", None, KilledByTest(_KILLED), connection_invalidated=True)


def _address(url: URL) -> tuple[str, str | None, int | None, str | None]:
    return url.get_backend_name(), url.host, url.port, url.database
