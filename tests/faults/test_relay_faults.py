"""Relays are killed at random and share the work: every event arrives, in order, and only what was on its way again.

What happens at each of their points is in the fault table.
"""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from edda_engine.core.ports import OutboxEvent
from edda_engine.storage import migrate, outbox
from edda_engine.storage.database import Database
from tests.faults.ledger import Ledger
from tests.faults.processes import Process, Shop, wait_for
from tests.faults.relay import CONCURRENCY
from tests.receivers import ACCEPTED, Answer, Receiver, receiving
from tests.support import eventually

KEYS = ("a", "b", "-")


class Outbox:
    """The rows, written and read by the test."""

    def __init__(self, url: str) -> None:
        self._database = Database.from_url(url)
        migrate.upgrade(self._database)

    def write(self, *names: str) -> None:
        """Events in one transaction; ``"a1"`` has the ordering key ``"a"``, ``"-1"`` has none."""
        events = [
            OutboxEvent(
                name, "t", "s", "application/json", data_json=f'"{name}"',
                ordering_key=None if name.startswith("-") else name.rstrip("0123456789"),
            )
            for name in names
        ]  # fmt: skip
        with self._database.write() as conn:
            outbox.insert_events(conn, [(None, None, event) for event in events])

    def statuses(self) -> dict[str, str]:
        with self._database.read() as conn:
            return {row[0]: row[1] for row in conn.exec_driver_sql("SELECT event_id, status FROM edda_outbox")}

    def unpublished(self) -> list[str]:
        return [name for name, status in self.statuses().items() if status != "published"]

    def close(self) -> None:
        self._database.close()


@pytest.fixture
def rows(ledger: Ledger) -> Iterator[Outbox]:
    found = Outbox(ledger.url)
    yield found
    found.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def relay(shop: Shop, receiver: Receiver, **options: Any) -> Process:
    settings = {f"RELAY_{name.upper()}": str(value) for name, value in options.items()}
    return shop.fork("tests.faults.relay", RELAY_BROKER=receiver.url, **settings)


def stop(process: Process) -> None:
    wait_for(process, lambda: " ready\n" in process.log)
    process.terminate()
    assert process.wait() == 0


def assert_in_order(taken: list[str]) -> None:
    """Of each key, every event came after the ones before it."""
    for key in KEYS[:2]:
        firsts = list(dict.fromkeys(name for name in taken if name.startswith(key)))
        assert firsts == sorted(firsts, key=lambda name: int(name[1:]))


def test_relays_that_live_publish_nothing_twice(rows: Outbox, shop: Shop, receiver: Receiver) -> None:
    relays = [relay(shop, receiver) for _ in range(3)]
    names = [f"{key}{number}" for number in range(1, 81) for key in KEYS]
    for start in range(0, len(names), 30):
        rows.write(*names[start : start + 30])

    wait_for(relays[0], lambda: not rows.unpublished())

    assert sorted(receiver.taken_ids) == sorted(names)
    assert_in_order(receiver.taken_ids)
    for each in relays:
        stop(each)


def test_every_event_arrives_when_relays_are_killed_at_random(rows: Outbox, shop: Shop, receiver: Receiver) -> None:
    chance = random.Random(11)
    names = [f"{key}{number}" for number in range(1, 101) for key in KEYS]
    relays = [relay(shop, receiver, lock_seconds=3) for _ in range(2)]
    kills = (10, 60, 120, 180)
    rows.write(*names)
    for published in kills:
        eventually(lambda published=published: len(rows.unpublished()) <= len(names) - published, timeout=40)  # type: ignore[misc]
        relays.pop(chance.randrange(len(relays))).kill()
        relays.append(relay(shop, receiver, lock_seconds=3))

    wait_for(relays[-1], lambda: not rows.unpublished(), timeout=60)

    came = Counter(receiver.taken_ids)
    assert came.keys() == set(names)
    assert sum(came.values()) - len(names) <= CONCURRENCY * len(kills)
    assert_in_order(receiver.taken_ids)


def test_events_of_a_killed_worker_are_published_by_its_sibling_long_before_their_lock_ends(
    rows: Outbox, ledger: Ledger, shop: Shop, receiver: Receiver
) -> None:
    may_answer = threading.Event()

    def answer(_event: Any) -> Answer:
        may_answer.wait(40)
        return ACCEPTED

    receiver.answer = answer
    settings = {"outbox": json.dumps({"URL": receiver.url, "TIMEOUT_SECONDS": 60}), "recovery_interval_seconds": 0.2}
    rows.write("a1", "a2")
    killed = shop.work(**settings)
    wait_for(killed, lambda: receiver.seen)
    killed.kill()
    may_answer.set()

    sibling = shop.work(**settings)

    wait_for(sibling, lambda: not rows.unpublished())  # locked for a minute, and this waits for half of one
    assert [event.get_id() for event in receiver.seen] == ["a1", "a1", "a2"]
