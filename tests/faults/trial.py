"""How a cell of the table is tried, and judged: everything must end as it does without the fault.

A process that is killed or stopped is forked for it; its successor, and every other fault, takes place in the process of
the test.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults import relays, wire
from tests.faults.books import Books
from tests.faults.forks import DONE, KILLED, Forks, stop
from tests.faults.stage import Deed, Stage
from tests.faults.stories import ORDER, STORIES
from tests.faults.table import Cell, Fault, Holds, Outcome, Place
from tests.support import eventually

_A_MOMENT_SECONDS = 0.5
_PATIENCE_SECONDS = 20.0


# In a process of its own.


def live_and_be_killed(url: str, folder: Path, story: str, place: Place) -> None:
    _live(url, folder, story, _at(place, lambda _: os._exit(KILLED)))


def live_and_be_stopped(url: str, folder: Path, story: str, place: Place) -> None:
    _live(url, folder, story, _at(place, lambda _: stop(folder)))


def _live(url: str, folder: Path, story: str, deed: Deed) -> None:
    with Stage(url, folder, mishap=STORIES[story].mishap, deed=deed) as here:
        STORIES[story].live(here)


def _at(place: Place, act: Any) -> Deed:
    def deed(here: Stage, point: str, arrival: int) -> None:
        if point == place.point and arrival == place.passing:
            act(here)

    return deed


class Trial:
    """One cell, on an empty database that is its own."""

    def __init__(self, cell: Cell, books: Books, forks: Forks) -> None:
        self._cell, self._books, self._forks = cell, books, forks
        self._story = STORIES[cell.place.story]
        self._happened = 0
        self._thief: threading.Thread | None = None
        self._complaint: BaseException | None = None

    def run(self) -> int:
        """Do it; returns how often the fault happened."""
        self._story.begin(self._books)
        if self._story.is_orphan:
            self._leave_orphan()
        match self._cell.fault:
            case Fault.KILLED:
                self._kill()
            case Fault.PAUSED:
                self._pause()
            case Fault.ROBBED:
                self._live_here(_at(self._cell.place, self._rob))
                self._end_theft()
            case Fault.CUT:
                self._live_here(_at(self._cell.place, self._cut))
            case Fault.UNANSWERED:
                before = self._live_here(_at(self._cell.place, self._lose))
                assert before.wire.lost > self._happened - 1
        self._judge()
        return self._happened

    # The faults.

    def _leave_orphan(self) -> None:
        place = Place("activity.started", "order", 2)
        assert self._forks.end_of(self._start(live_and_be_killed, place)) == KILLED

    def _kill(self) -> None:
        assert self._forks.end_of(self._start(live_and_be_killed)) == KILLED
        self._happened = 1
        self._books.expire_events()
        self._live_here()

    def _pause(self) -> None:
        stopped = self._start(live_and_be_stopped)
        holds = self._cell.holds
        expected = 0 if holds is Holds.NOTHING else 1
        self._forks.wait_until_stopped(stopped, lambda: self._books.has_no_lock_but(expected))
        self._happened = 1
        if self._cell.outcome is Outcome.WAITED_FOR:
            self._forks.wake_all()
            assert self._forks.end_of(stopped) == DONE
            self._live_here()
            return
        if self._cell.outcome is Outcome.ENDED:
            wire.end_connections(self._books.url)
        self._books.expire_leases()
        self._live_here()
        self._judge()
        before = self._books.everything()
        self._forks.wake_all()
        assert self._forks.end_of(stopped) == DONE
        assert self._books.everything() == before, "the process that was stopped has changed what others had finished"

    def _rob(self, here: Stage) -> None:
        is_locked = self._cell.outcome is Outcome.LOCKED
        patience = 0.1 if is_locked else _PATIENCE_SECONDS
        if self._story.is_relays:
            then = here.books.take_events(patience_seconds=patience)
        else:
            then = here.books.take_lease(ORDER, patience_seconds=patience)
        self._happened += 1
        if (then is None) != is_locked and not (then and self._cell.may_be_as_without):
            # Not raised here: the engine would only log it, and wait for a lease that nobody gives back.
            self._complaint = AssertionError(f"the lease was {'taken' if then else 'not taken'}")
        if then is not None:
            self._thief = threading.Thread(target=self._hold_and_give_back, args=(here, then), name="thief")
            self._thief.start()

    def _hold_and_give_back(self, here: Stage, then: list[Any]) -> None:
        """Until the one who was robbed has tried to go on, and has given up."""
        passed, began = here.points_passed(), time.monotonic()

        def has_tried() -> bool:
            has_gone_on = here.points_passed() >= passed + 2 or time.monotonic() > began + _A_MOMENT_SECONDS
            return has_gone_on and not here.is_at_work_on(ORDER)

        try:
            eventually(has_tried)
            assert here.books.everything() == then, "something was written without the lease"
        except AssertionError as complaint:
            self._complaint = complaint
        if self._story.is_relays:
            here.books.give_events_back()
        else:
            here.books.give_lease_back(ORDER)

    def _end_theft(self) -> None:
        if self._thief is not None:
            self._thief.join()
        if self._complaint is not None:
            raise self._complaint

    def _cut(self, here: Stage) -> None:
        here.wire.cut()
        self._happened += 1

    def _lose(self, here: Stage) -> None:
        is_in_transaction = self._cell.place.holds is not Holds.NOTHING
        here.wire.lose_next(thread=threading.get_ident() if is_in_transaction else None)
        self._happened += 1

    # Lives.

    def _start(self, life: Any, place: Place | None = None) -> Any:
        place = place or self._cell.place
        return self._forks.start(life, self._books.url, self._forks.folder, place.story, place)

    def _live_here(self, deed: Deed | None = None) -> Stage:
        options = {} if deed is None else {"deed": deed}
        with Stage(self._books.url, self._forks.folder, mishap=self._story.mishap, **options) as here:
            self._story.live(here)
        return here

    # The judgement.

    def _judge(self) -> None:
        assert self._happened == 1, f"the process came {self._happened} times to {self._cell.place.name}"
        if self._story.is_relays:
            self._judge_events()
            return
        assert self._books.account() == self._story.ends

    def _judge_events(self) -> None:
        came = relays.arrived(self._forks.folder)
        times = Counter(came)
        assert times.keys() == set(relays.NAMES)
        again = {name for name, count in times.items() if count > 1}
        assert max(times.values()) <= 2
        lives = self._cell.fault in (Fault.CUT, Fault.UNANSWERED)
        has_begun = not self._cell.place.point.startswith("relay.claim.") or self._cell.fault is Fault.ROBBED
        if self._story.name == "relay" and (lives or not has_begun):
            assert not again
        if self._cell.fault is not Fault.ROBBED:
            assert len(again) <= relays.CONCURRENCY
        firsts = list(dict.fromkeys(came))
        for key in relays.KEYS[:2]:
            of_key = [name for name in firsts if name.startswith(key)]
            assert of_key == [name for name in relays.NAMES if name.startswith(key)]
        assert not self._books.value("SELECT count(*) FROM edda_outbox WHERE status <> 'published'")
