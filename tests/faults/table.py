"""The table of faults: every point of a process's life, every fault, every database.

How it thinks. A *place* is a point as it is passed in one story: a point that is passed in different ways has several. A
cell is a place, a fault and a database. Each is either tried, and then everything must end as it does without the fault,
or it says in words why there is nothing to try.

What happens at a place:

* *killed*: the process ends there, without a word. Another one goes on.
* *paused*: it is stopped there for longer than its lease. Another one takes over and finishes; then it wakes up.
* *lease taken*: the lease is another worker's from there on, while this process goes on as if nothing had been.
* *cut*: every connection to the database ends there.
* *answer lost*: the first commit after it succeeds, but nobody is told: the connection breaks instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum

DATABASES = ("sqlite", "postgresql")


class Fault(StrEnum):
    """What happens to a process."""

    KILLED = "killed"
    PAUSED = "paused"
    ROBBED = "lease taken"
    CUT = "cut"
    UNANSWERED = "answer lost"


class Holds(Enum):
    """What the open transaction of a place keeps from others. On SQLite any transaction that writes keeps all from writing."""

    NOTHING = 0
    ROWS = 1
    """Rows of its own."""
    INSTANCE = 2
    """The row of the instance, or whatever else the lease is."""
    PERHAPS_INSTANCE = 3
    """So too, unless somebody else had the row locked just then: the statement waits for nobody, and leaves it out."""
    INSTANCE_ON_SQLITE = 4
    """On PostgreSQL nothing yet: the statement that follows is its own commit."""


class Outcome(StrEnum):
    """How a fault of a cell ends."""

    AS_WITHOUT = "everything ends as it does without the fault"
    LOCKED = "the row is locked by the open transaction: the lease cannot be taken before its commit"
    ENDED = "the server ends the transaction of the stopped process (here at once); then it is taken over"
    WAITED_FOR = "the stopped process has SQLite's one lock to write: nobody takes over, all wait until it goes on"


_NEVER_HAD = "no lease: this is no work on an instance"
_NOT_YET = "no lease yet: the instance is not claimed"
_NO_MORE = "no lease any more: it was given back by this commit"
_NO_ROWS = "no lock of an event is held here"
_LAST = "the process commits nothing after this point"


@dataclass(frozen=True, slots=True)
class Place:
    """A point as it is passed in one story."""

    point: str
    story: str
    passing: int = 1
    variant: str = ""
    holds: Holds = Holds.NOTHING
    no_lease: str = ""
    """Why no lease can be taken here."""
    is_last: bool = False

    @property
    def name(self) -> str:
        """As it is printed."""
        return f"{self.point} ({self.variant})" if self.variant else self.point


@dataclass(frozen=True, slots=True)
class Cell:
    """A place, a fault, a database."""

    place: Place
    fault: Fault
    database: str

    @property
    def why_not(self) -> str:
        """Why there is nothing to try; empty if there is."""
        if self.fault is Fault.ROBBED:
            return self.place.no_lease
        if self.fault is Fault.UNANSWERED and self.place.is_last:
            return _LAST
        return ""

    @property
    def holds(self) -> Holds:
        """What the open transaction keeps from others on this database."""
        if self.place.holds is Holds.INSTANCE_ON_SQLITE:
            return Holds.INSTANCE if self.database == "sqlite" else Holds.NOTHING
        return self.place.holds

    @property
    def may_be_as_without(self) -> bool:
        """Whether what must not be possible by its outcome is possible now and then, and is then as without the fault."""
        return self.holds is Holds.PERHAPS_INSTANCE and self.database != "sqlite"

    @property
    def outcome(self) -> Outcome:
        """How it must end."""
        is_sqlite, holds = self.database == "sqlite", self.holds
        if holds is Holds.NOTHING:
            return Outcome.AS_WITHOUT
        if self.fault is Fault.PAUSED and is_sqlite:
            return Outcome.WAITED_FOR
        has_instance = holds in (Holds.INSTANCE, Holds.PERHAPS_INSTANCE)
        if self.fault is Fault.PAUSED and has_instance:
            return Outcome.ENDED
        if self.fault is Fault.ROBBED and (is_sqlite or has_instance):
            return Outcome.LOCKED
        return Outcome.AS_WITHOUT


def _around(
    name: str,
    story: str,
    passing: int = 1,
    variant: str = "",
    *,
    before: Holds = Holds.INSTANCE,
    no_lease: str = "",
    none_after: str = "",
    is_last: bool = False,
) -> tuple[Place, Place]:
    """Before and after a commit."""
    return (
        Place(f"{name}.before_commit", story, passing, variant, before, no_lease),
        Place(f"{name}.after_commit", story, passing, variant, Holds.NOTHING, no_lease or none_after, is_last),
    )


def _handed_over(name: str, story: str = "order", *, none_after: str = "") -> tuple[Place, Place]:
    """Before something is handed to the committer, and after its answer; no transaction is open here."""
    return _around(name, story, before=Holds.NOTHING, none_after=none_after)


_ENGINE = (
    *_around("claim", "order", none_after=""),
    Place("body.started", "order"),
    *_handed_over("subscribe"),
    Place("activity.started", "order", 1, "without session"),
    Place("activity.returned", "order", 1, "without session"),
    *_handed_over("step"),
    *_around("batch", "order", 2, "at once", before=Holds.INSTANCE_ON_SQLITE),
    *_around("batch", "order", 3, "in turn"),
    Place("activity.started", "order", 2, "own transaction"),
    Place("activity.returned", "order", 2, "own transaction", Holds.ROWS),
    *_around("activity", "order", 1, "own transaction"),
    *_handed_over("attempt"),
    Place("activity.started", "order", 5, "async"),
    Place("activity.returned", "order", 4, "async", Holds.ROWS),
    *_around("activity", "order", 3, "async"),
    *_handed_over("send"),
    *_handed_over("take"),
    *_handed_over("wait"),
    *_handed_over("end", none_after=_NO_MORE),
)

_KEEPING = (
    *_around("register", "order", no_lease=_NEVER_HAD),
    *_around("renew", "renewal"),
    *_around("recall", "hurry"),
    *_around("hand_back", "broken run", none_after=_NO_MORE),
    *_around("strays", "lost claim", none_after=_NO_MORE),
    *_around("release", "drain", none_after=_NO_MORE),
    *_around("unregister", "drain", no_lease=_NEVER_HAD),
    *_around("take_over", "orphan", none_after=_NO_MORE),
    *_around("note_takeover", "orphan", before=Holds.PERHAPS_INSTANCE),  # the run commits its steps meanwhile
    *_around("bury", "dead loop", none_after=_NO_MORE),
    *_around("beat", "house", no_lease=_NEVER_HAD),
    *_around("sweep", "house", no_lease=_NEVER_HAD),
    *_around("prune", "house", no_lease=_NEVER_HAD),
    *_around("prune_instances", "house", no_lease=_NEVER_HAD),
)

_REQUESTS = (
    *_around("tables", "tables", no_lease=_NEVER_HAD),
    *_around("view", "order", no_lease=_NOT_YET),
    *_around("request.start", "asking", no_lease=_NOT_YET),
    *_around("request.send", "asking", no_lease=_NEVER_HAD),
    *_around("request.event", "asking", no_lease=_NEVER_HAD),
    *_around("request.cancel", "asking", no_lease=_NEVER_HAD),
    *_around("request.retry", "asking", no_lease=_NEVER_HAD),
    *_around("request.prune", "operator", no_lease=_NEVER_HAD),
    *_around("request.outbox", "operator", no_lease=_NEVER_HAD, is_last=True),
    *_around("events", "event", no_lease=_NOT_YET),
)

_RELAY = (
    *_around("relay.claim", "relay"),
    Place("relay.publish.before", "relay", 7),
    Place("relay.publish.after", "relay", 7),
    *_around("relay.record", "relay", 3),
    *_around("relay.renew", "relay"),
    *_around("relay.release", "relay stopped", none_after=_NO_ROWS),
    *_around("relay.prune", "relay", no_lease=_NO_ROWS),
)

PLACES: tuple[Place, ...] = _ENGINE + _KEEPING + _REQUESTS + _RELAY

APPLICATION_POINTS = frozenset(f"{name}.{when}_commit" for name in ("tables", "view") for when in ("before", "after"))
"""Points of the store itself: the commit of its own session, and that by which the tables are made."""


def cells() -> Iterator[Cell]:
    """The whole table."""
    for place in PLACES:
        for fault in Fault:
            for database in DATABASES:
                yield Cell(place, fault, database)


def on_one_database(cell: Cell) -> bool:
    """Whether a cell is of the half that is tried where time is short: each place and fault, on the databases in turn."""
    turn = PLACES.index(cell.place) + list(Fault).index(cell.fault)
    return DATABASES[turn % 2] == cell.database
