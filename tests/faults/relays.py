"""The lives of a relay: it publishes what is in the outbox, and its broker is a file that keeps the order of arrival."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from edda_engine import OutboxRelayer
from edda_engine.errors import DatabaseUnavailableError
from edda_engine.outbox.outgoing import OutgoingEvent
from tests.faults.books import PAST, Books
from tests.faults.stage import Stage

CONCURRENCY = 4
LOCK_SECONDS = 1.5
"""Short, so that locks are renewed, and expire, within a test; long enough for a machine that is busy."""

KEYS = ("a", "b", "-")
NAMES = [f"{key}{number}" for number in range(1, 21) for key in KEYS]
"""The ids of the events: of two ordering keys, and of none."""

_BETWEEN = NAMES[30]


def fill(books: Books) -> None:
    """Write the events to the outbox, and one that was published long ago."""
    books.change(
        "INSERT INTO edda_outbox (event_id, type, source, content_type, data, ordering_key, status, created_at,"
        " next_attempt_at, attempts) VALUES (:name, 'store.told', 'store', 'application/json', :data, :key, 'pending',"
        " :then, :then, 0)",
        *(
            {"name": name, "data": json.dumps(name), "key": name[0] if name[0] != "-" else None, "then": PAST}
            for name in NAMES
        ),
    )
    books.change(
        "INSERT INTO edda_outbox (event_id, type, source, content_type, data, status, created_at, published_at, attempts)"
        " VALUES ('old', 'store.told', 'store', 'application/json', '1', 'published', :then, :then, 1)",
        {"then": PAST},
    )


def arrived(folder: Path) -> list[str]:
    """The events that the broker has got, in the order of arrival."""
    file = folder / "broker"
    return file.read_text().split() if file.exists() else []


def relay(here: Stage) -> None:
    """Publish everything. The first event takes until the locks were renewed."""

    async def publish(event: OutgoingEvent) -> None:
        if event.event_id == NAMES[0]:
            await asyncio.to_thread(here.until, lambda: here.has_passed("relay.renew.after_commit"))
        _arrive(here, event)

    asyncio.run(_publish_all(here, OutboxRelayer(here.books.url, publish, **_options(here))))


def relay_twice(here: Stage) -> None:
    """Stop in the middle, when there is something to hand back; go on with another relay."""

    async def both() -> None:
        is_there = asyncio.Event()

        async def stick(event: OutgoingEvent) -> None:
            if event.event_id == _BETWEEN:
                is_there.set()
                await asyncio.sleep(3600)
            _arrive(here, event)

        async def publish(event: OutgoingEvent) -> None:
            _arrive(here, event)

        if _unpublished(here) == len(NAMES):
            first = OutboxRelayer(here.books.url, stick, **_options(here))
            await _opened(first)
            running = asyncio.create_task(first.run())
            await is_there.wait()
            await first.close(timeout=0)
            await running
        await _publish_all(here, OutboxRelayer(here.books.url, publish, **_options(here)))

    asyncio.run(both())


async def _publish_all(here: Stage, relayer: OutboxRelayer) -> None:
    await _opened(relayer)
    running = asyncio.create_task(relayer.run())
    while await asyncio.to_thread(_unpublished, here):
        await asyncio.sleep(0.02)
    relayer.stop()
    await running
    await relayer.close()


async def _opened(relayer: OutboxRelayer) -> None:
    for _ in range(20):
        try:
            await relayer.open()
            return
        except DatabaseUnavailableError:
            continue
    raise AssertionError("the database never answered")


def _options(here: Stage) -> dict[str, object]:
    return {
        "poll_interval_seconds": 0.05, "concurrency": CONCURRENCY, "lock_seconds": LOCK_SECONDS, "retention_days": 7,
        "probe": here,
    }  # fmt: skip


def _arrive(here: Stage, event: OutgoingEvent) -> None:
    with (here.folder / "broker").open("a") as file:
        file.write(f"{event.event_id}\n")


def _unpublished(here: Stage) -> int:
    return int(here.books.value("SELECT count(*) FROM edda_outbox WHERE status <> 'published'"))
