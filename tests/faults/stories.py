"""The lives that a process of the store can lead: together they pass every point.

A story may be lived again by another process, after the first one has died in it, or while that is stopped: whoever asks
for something looks first whether it is done already, as a careful user of any service would. It ends when everything in
it has ended.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edda_engine.runtime import recovery, upkeep
from tests.faults.books import PAST, Account, Books
from tests.faults.relays import fill, relay, relay_twice
from tests.faults.stage import Deed, Stage, nothing
from tests.faults.store import (
    Store,
    opened,
    store_hold,
    store_hurry,
    store_mend,
    store_pay,
)
from tests.support import eventually

ORDER = "order"
"""The instance that every story of the engine is about."""


def instance(name: str, *steps: str, rows: Sequence[str] = (), status: str = "completed") -> Account:
    """One instance that has ended: each of its steps once, each row, and the event of each step that sends one."""
    recorded = [step.partition("=")[::2] for step in steps]
    return Account(
        statuses={name: status},
        rows=Counter((name, row) for row in rows),
        steps=Counter((name, f"{step}:1", kind or "ActivityCompleted") for step, kind in recorded),
        events=Counter((name, f"{step}:1", _SENT[step], "pending") for step, _ in recorded if step in _SENT),
    )


_SENT = {"store_reserve": "store.reserved", "store_label": "store.labelled"}

FULFILLED = instance(
    ORDER,
    "subscribe=Subscribed", "store_quote", "store_reserve", "store_charge", "store_label", "publish=MessageSent",
    "sleep=TimerFired", "receive=MessageReceived",
    rows=["placed", "reserved", "charged", "labelled"],
)  # fmt: skip
HELD = instance(ORDER, "store_linger", "store_reserve", rows=["lingered", "reserved"])
HURRIED = instance(ORDER, "wait_event=WaitWithdrawn", "store_reserve", rows=["reserved"])
ASKED = (
    instance("paid", "wait_event=EventReceived", "store_reserve", rows=["reserved"])
    .and_(instance("cancelled", status="cancelled"))
    .and_(instance("broken", "store_reserve", "store_break", rows=["reserved", "mended"]))
    .and_(Account({}, Counter(), Counter(), Counter([(None, None, "store.asked", "pending")])))
)
RETURNED = instance("store_return", "store_reserve", rows=["reserved"]).and_(
    Account({}, Counter([(ORDER, "returned")]), Counter(), Counter())
)
SENT_AFTER_ALL = Account({}, Counter(), Counter(), Counter([(None, None, "store.told", "pending")]))


def begin_with_nothing(_books: Books) -> None:
    """Most stories do."""


def begin_with_ancient_instance(books: Books) -> None:
    """It ended long ago, and is to be deleted."""
    books.change(
        "INSERT INTO edda_instances (instance_id, workflow_name, service, status, input, output, source_hash,"
        " lock_timeout_seconds, created_at, updated_at, completed_at)"
        " VALUES ('ancient', 'store_pay', 'edda', 'completed', '{}', '1', '', 300, :then, :then, :then)",
        then=PAST,
    )


def begin_with_dead_event(books: Books) -> None:
    """And with an instance that is to be deleted."""
    begin_with_ancient_instance(books)
    books.change(
        "INSERT INTO edda_outbox (event_id, type, source, content_type, data, status, created_at, attempts)"
        " VALUES ('dead', 'store.told', 'store', 'application/json', '1', 'dead', :then, 1)",
        then=PAST,
    )


@dataclass(frozen=True)
class Story:
    """One way to live."""

    name: str
    live: Callable[[Stage], None]
    ends: Account | None
    """What is there in the end; ``None``: it is the story of a relay."""
    begin: Callable[[Books], None] = begin_with_nothing
    mishap: Deed = nothing
    """What always happens in it."""
    is_orphan: bool = False
    """It begins with an order whose worker was killed."""
    has_tables: bool = True

    @property
    def is_relays(self) -> bool:
        """Whether it is the story of a relay."""
        return self.ends is None


def place(store: Store) -> None:
    """Start the order from a view, in the request's transaction."""
    store.post(f"/orders/{ORDER}")


def live_with_order(here: Stage) -> None:
    with opened(here) as store:
        place(store)
        with store.working():
            assert store.result(ORDER) == [200, 1, "labelled", "shoes"]


def live_with_first_order(here: Stage) -> None:
    """On a database without tables."""
    with opened(here) as store:
        store.ask(lambda: store_pay.options(instance_id="first", session=None).start())
        store.ask(lambda: store.edda.cancel("first", session=None))


def live_through_drain(here: Stage) -> None:
    """The engine is stopped in the middle of an activity; another one of the same process goes on."""
    with opened(here) as store:
        hold(store, "drained")
        store.edda.start_worker()
        _until_under_way(here)
        threading.Timer(0.05, here.draining).start()
        store.edda.shutdown(timeout=0)
        with store.working():
            assert store.result(ORDER) == "drained"


def live_through_dead_loop(here: Stage) -> None:
    """The event loop dies in the middle of an activity; the process begins another engine by itself."""
    with opened(here) as store:
        hold(store, "drained")
        with store.working():
            _until_under_way(here)
            loop: Any = store.app.extensions["edda"]._loop_thread._loop
            loop._selector.select = _broken
            loop.call_soon_threadsafe(int)
            here.until(lambda: here.has_passed("bury.after_commit"))
            here.draining()
            assert store.result(ORDER) == "drained"
            eventually(lambda: store.app.extensions["edda"].is_running)


def _broken(_timeout: float | None) -> None:
    raise OSError("its file descriptors were closed")


def _until_under_way(here: Stage) -> None:
    """Unless another process has done it all already."""
    if here.books.status(ORDER) != "completed":
        here.until(lambda: here.has_passed("activity.started"))


def hold(store: Store, until: str) -> None:
    """Start an order that lingers."""
    store.ask(lambda: store_hold.options(instance_id=ORDER, session=None).start(until))


def live_with_renewal(here: Stage) -> None:
    with opened(here, lock_timeout_seconds=1.5) as store:
        hold(store, "renewed")
        with store.working():
            assert store.result(ORDER) == "renewed"


def live_in_a_hurry(here: Stage) -> None:
    with opened(here) as store:
        store.ask(lambda: store_hurry.options(instance_id=ORDER, session=None).start())
        here.books.make_due()  # if it was parked in a process that has died, only the time of its wait is left to wake it
        with store.working():
            assert store.result(ORDER) == "hurried"


def live_with_broken_run(here: Stage) -> None:
    with opened(here) as store:
        place(store)
        with store.working():
            eventually(lambda: here.books.make_due() or here.books.status(ORDER) == "completed", timeout=60.0)


def break_once(_here: Stage, point: str, arrival: int) -> None:
    if (point, arrival) == ("end.before_commit", 1):
        raise RuntimeError("a fault of the engine itself")


def lose_first_claim(here: Stage, point: str, arrival: int) -> None:
    if (point, arrival) == ("claim.before_commit", 1):
        here.wire.lose_next(thread=threading.get_ident())


def live_and_keep_house(here: Stage) -> None:
    """What a worker does seldom is done often."""
    seldom = recovery.HEARTBEAT_SECONDS, recovery._SWEEP_SECONDS, upkeep.INTERVAL_SECONDS
    recovery.HEARTBEAT_SECONDS = recovery._SWEEP_SECONDS = upkeep.INTERVAL_SECONDS = 0.1
    try:
        with opened(here, instance_retention_days=1000) as store:
            place(store)
            with store.working():
                store.result(ORDER)
                for name in ("beat", "sweep", "prune", "prune_instances"):
                    here.until(lambda name=name: here.has_passed(f"{name}.after_commit"))  # type: ignore[misc]
                eventually(lambda: here.books.status("ancient") is None)
    finally:
        recovery.HEARTBEAT_SECONDS, recovery._SWEEP_SECONDS, upkeep.INTERVAL_SECONDS = seldom


def live_by_asking(here: Stage) -> None:
    """Requests that commit at once, each of which looks first."""
    with opened(here) as store:
        for instance_id in ("paid", "cancelled"):
            store.ask(lambda name=instance_id: store_pay.options(instance_id=name, session=None).start())  # type: ignore[misc]
        store.ask(lambda: store_mend.options(instance_id="broken", session=None).start())
        with store.working():
            store.ask(lambda: _pay(store))
            store.ask(lambda: store.edda.cancel("cancelled", session=None))
            store.ask(lambda: _announce(store))
            eventually(lambda: store.ask(lambda: _is_mended(store)))
            assert store.result("paid") == 100
            eventually(lambda: here.books.status("cancelled") == "cancelled")


def _pay(store: Store) -> None:
    books = store.stage.books
    if books.status("paid") != "completed" and not books.value("SELECT count(*) FROM edda_messages"):
        store.edda.send_event("store.paid", "test", 100, instance_id="paid", session=None)


def _announce(store: Store) -> None:
    if not store.stage.books.value("SELECT count(*) FROM edda_outbox WHERE type = 'store.asked'"):
        store.edda.send_event_transactional("store.asked", "test", {}, session=None)


def _is_mended(store: Store) -> bool:
    status = store.stage.books.status("broken")
    if status == "failed":
        (store.stage.folder / "mended").touch()
        store.edda.retry("broken", session=None)
    return status == "completed"


def live_by_event(here: Stage) -> None:
    """An event that comes by HTTP starts the order, and its sender repeats it until it is accepted."""
    event = {"specversion": "1.0", "id": ORDER, "source": "/till", "type": "store_return", "data": {"order": 7}}
    with opened(here) as store:
        headers = {"Content-Type": "application/cloudevents+json"}
        store.post("/events", data=json.dumps(event), headers=headers)
        with store.working():
            eventually(lambda: here.books.value("SELECT count(*) FROM edda_instances WHERE status = 'completed'"))


def live_as_operator(here: Stage) -> None:
    """What is old is deleted, and a dead event is sent after all."""
    with opened(here) as store:
        for command in (["prune", "--older-than", "1000"], ["outbox", "retry", "--all-dead"]):
            for _ in range(20):
                if store.app.test_cli_runner().invoke(args=["edda", *command]).exit_code == 0:
                    break
            else:
                raise AssertionError(f"{command} never succeeded")


STORIES = {
    story.name: story
    for story in (
        Story("order", live_with_order, FULFILLED),
        Story("tables", live_with_first_order, instance("first", status="cancelled"), has_tables=False),
        Story("dead loop", live_through_dead_loop, HELD),
        Story("drain", live_through_drain, HELD),
        Story("renewal", live_with_renewal, HELD),
        Story("hurry", live_in_a_hurry, HURRIED),
        Story("broken run", live_with_broken_run, FULFILLED, mishap=break_once),
        Story("lost claim", live_with_order, FULFILLED, mishap=lose_first_claim),
        Story("orphan", live_with_order, FULFILLED, is_orphan=True),
        Story("house", live_and_keep_house, FULFILLED, begin=begin_with_ancient_instance),
        Story("asking", live_by_asking, ASKED),
        Story("event", live_by_event, RETURNED),
        Story("operator", live_as_operator, SENT_AFTER_ALL, begin=begin_with_dead_event),
        Story("relay", relay, None, begin=fill),
        Story("relay stopped", relay_twice, None, begin=fill),
    )
}
