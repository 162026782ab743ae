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
from dataclasses import dataclass
from typing import Any, NoReturn

from sqlalchemy import URL, Connection, Engine, Pool, event
from sqlalchemy.exc import OperationalError

from edda_engine.core.ports import current_place
from edda_engine.errors import LeaseLostError
from edda_engine.runtime.probes import Probe

COMMITS = {
    "activity": "it saved what an activity wrote, with its step",
    "batch": "it saved steps, waits or ends",
    "claim": "it took up what was due",
}
"""The commits of an instance's life, by the name of their points; with what they do."""

_POINTS = {
    f"{commit}.{when}_commit": f"{when} {what}" for commit, what in COMMITS.items() for when in ("before", "after")
}
_KILLED = "this worker was killed by its test, at one of its commits"


class KilledByTest(Exception):
    """The cause of the error that a killed worker sees."""


@dataclass(frozen=True, slots=True)
class Passing:
    """The beginning or the end of a commit, for the so-many-th time: ``batch.before_commit``, 2.

    Each kind is counted by itself: some workers look for work once more than others, and that must not count.
    """

    point: str
    number: int

    def __str__(self) -> str:
        ordinal = {1: "first", 2: "second", 3: "third"}.get(self.number, f"{self.number}th")
        return f"just {_POINTS[self.point]}, for the {ordinal} time"


class KillSwitch:
    """A probe that kills at one passing of a commit's beginning or end.

    :param probe: The application's own probe, which is called as well.
    :param has_work: Whether something is committed that a claim can take; what takes nothing is no commit to die at.
    :param died: Called once, on the thread that commits.
    """

    def __init__(self, url: URL, *, probe: Probe, has_work: Callable[[], bool], died: Callable[[], None]) -> None:
        self._database = _address(url)
        self._probe, self._has_work, self._died = probe, has_work, died
        self._lock = threading.Lock()
        self._test = threading.get_ident()
        self._kill_at: Passing | None = None
        self._passed: Counter[str] = Counter()
        self._claims = False
        self.killed_at: Passing | None = None
        """Where it has killed since it was armed."""
        self.is_dead = False

    def arm(self, kill_at: Passing | None) -> None:
        """Count anew, and kill at that passing; ``None`` never kills."""
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
        if point not in _POINTS:
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
            is_time = False
            if not self.is_dead:
                self._passed[point] += 1
                is_time = self.killed_at is None and Passing(point, self._passed[point]) == self._kill_at
            if is_time:
                self.killed_at, self.is_dead = self._kill_at, True
        if is_time:
            self._died()
        if self.is_dead:
            _refuse()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, a kill cuts the connections of this process to the database."""
        event.listen(Engine, "before_cursor_execute", self._before_statement)
        event.listen(Engine, "commit", self._before_commit)
        event.listen(Pool, "checkin", self._close_what_comes_back)
        try:
            yield
        finally:
            event.remove(Engine, "before_cursor_execute", self._before_statement)
            event.remove(Engine, "commit", self._before_commit)
            event.remove(Pool, "checkin", self._close_what_comes_back)

    def _before_statement(self, conn: Connection, *_: Any) -> None:
        self._refuse_if_dead(conn)

    def _before_commit(self, conn: Connection) -> None:
        self._refuse_if_dead(conn)

    def _close_what_comes_back(self, _dbapi_connection: Any, record: Any) -> None:
        # Its pool may have been thrown away already: nobody else would close it. (On SQLite others still look at it.)
        if self.is_dead and self._database[0] == "postgresql" and threading.get_ident() != self._test:
            record.close()

    def _refuse_if_dead(self, conn: Connection) -> None:
        is_of_test = threading.get_ident() == self._test
        if self.is_dead and not is_of_test and _address(conn.engine.url) == self._database:
            _refuse()


def _refuse() -> NoReturn:
    place = current_place.get()
    if place is not None and not place.is_body:
        raise LeaseLostError(f"The database cannot be used any more: {_KILLED}.")  # user code must not handle it
    raise OperationalError("", None, KilledByTest(_KILLED), connection_invalidated=True)


def _address(url: URL) -> tuple[str, str | None, int | None, str | None]:
    return url.get_backend_name(), url.host, url.port, url.database
