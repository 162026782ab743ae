"""The relay, from the row to a real HTTP server: at least once, in order, through failures of every kind."""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from edda_engine import (
    ConfigurationError,
    HooksBase,
    OutboxRelayer,
    PublishLaterError,
    PublishRefusedError,
    SyncWorkflowContext,
    TerminalError,
    UsageError,
    WorkflowContext,
    activity,
    send_event_transactional,
    workflow,
)
from edda_engine.core.ports import OutboxEvent
from edda_engine.outbox.outgoing import OutgoingEvent
from edda_engine.storage import outbox
from edda_engine.storage.database import Database
from edda_engine.storage.urls import normalized_url
from tests.integration.engines import Tables, edda, run, storage, until
from tests.integration.test_engine_outages import Proxy
from tests.receivers import ACCEPTED, Answer, Receiver, receiving
from tests.support import eventually


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture
def tables(database: Database, database_url: str) -> Tables:
    return Tables(database_url)


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    made = Proxy(postgres_url)
    yield made
    made.close()


def write(database: Database, *names: str, data: str | None = None) -> None:
    """Events, each in a transaction of its own; ``"a1"`` has the ordering key ``"a"``, ``"-1"`` has none."""
    for name in names:
        key = None if name.startswith("-") else name.rstrip("0123456789")
        event = OutboxEvent(
            name, "order.placed", "shop", "application/json", data_json=data or f'"{name}"', ordering_key=key
        )
        run(database, lambda conn, event=event: outbox.insert_events(conn, [(None, None, event)]))  # type: ignore[misc]


def row(tables: Tables, name: str) -> dict[str, Any]:
    (found,) = tables.rows("SELECT * FROM edda_outbox WHERE event_id = :name", name=name)
    return found


def status(tables: Tables, name: str) -> str:
    return str(row(tables, name)["status"])


def pass_time(tables: Tables, name: str) -> None:
    """The row is due, as if its time had come."""
    tables.execute(
        "UPDATE edda_outbox SET next_attempt_at = '2001-01-01 00:00:00.000' WHERE event_id = :name", name=name
    )


def put_off(tables: Tables, name: str) -> None:
    """The row is not due for long, however slow the test is."""
    tables.execute(
        "UPDATE edda_outbox SET next_attempt_at = '2199-01-01 00:00:00.000' WHERE event_id = :name", name=name
    )


def publish_due(url: str, receiver: Receiver, **options: Any) -> int:
    async def main() -> int:
        async with OutboxRelayer(url, broker_url=receiver.url, **options) as relayer:
            return await relayer.publish_due()

    return asyncio.run(main())


def answers(**by_id: Answer) -> Callable[[Any], Answer]:
    """So is an event of that id answered, any other one with 202; ``_1`` stands for ``-1``."""
    by_name = {name.replace("_", "-"): answer for name, answer in by_id.items()}
    return lambda event: by_name.get(event.get_id(), ACCEPTED)


def test_an_event_arrives_as_a_cloud_event_and_is_recorded(
    database: Database, tables: Tables, database_url: str, receiver: Receiver
) -> None:
    event = OutboxEvent(
        "e-1", "order.placed", "shop", "application/json", data_json='{"b": [1, "ö"], "a": null}', subject="7",
        ordering_key="k",
    )  # fmt: skip
    run(database, lambda conn: outbox.insert_events(conn, [("i-1", "step:1", event)]))

    assert publish_due(database_url, receiver) == 1

    (came,) = receiver.taken
    assert came.get_data() == {"b": [1, "ö"], "a": None}
    assert (came.get_id(), came.get_type(), came.get_source(), came.get_subject()) == (
        "e-1",
        "order.placed",
        "shop",
        "7",
    )
    assert (came.get_specversion(), came.get_extension("partitionkey")) == ("1.0", "k")
    assert abs((came.get_time() or datetime.min) - datetime.now(UTC)) < timedelta(minutes=5)
    found = row(tables, "e-1")
    assert (found["status"], found["attempts"], found["locked_by"], found["next_attempt_at"]) == (
        "published",
        1,
        None,
        None,
    )
    assert found["published_at"] is not None
    assert publish_due(database_url, receiver) == 0
    assert receiver.taken_ids == ["e-1"]


def test_a_thousand_events_of_many_keys_arrive_once_and_in_the_order_of_their_keys(
    database: Database, database_url: str, receiver: Receiver
) -> None:
    events = [
        OutboxEvent(
            f"e-{number}", "t", "s", "application/json", data_json=f"[{number % 7}, {number}]",
            ordering_key=f"key-{number % 7}" if number % 7 else None,
        )
        for number in range(1000)
    ]  # fmt: skip
    run(database, lambda conn: outbox.insert_events(conn, [(None, None, event) for event in events]))

    assert publish_due(database_url, receiver, concurrency=8) == 1000

    assert sorted(receiver.taken_ids) == sorted(event.event_id for event in events)
    for key in range(1, 7):
        numbers = [number for of, number in receiver.data if of == key]
        assert numbers == sorted(numbers)
    assert receiver.most_at_once <= 8


# What the broker says.


def test_the_rows_of_a_key_follow_each_other_without_a_poll(
    database: Database, database_url: str, receiver: Receiver
) -> None:
    names = [f"a{number}" for number in range(1, 4 * outbox.ROWS_OF_A_KEY)]
    write(database, *names)

    async def main() -> None:
        async with OutboxRelayer(database_url, broker_url=receiver.url, poll_interval_seconds=600.0) as relayer:
            running = asyncio.create_task(relayer.run())
            await until(lambda: len(receiver.taken_ids) == len(names), timeout=60)
            relayer.stop()
            await running

    asyncio.run(main())
    assert receiver.taken_ids == names


def test_a_broker_that_is_busy_gets_the_event_again_until_it_takes_it(
    database: Database, tables: Tables, database_url: str, receiver: Receiver
) -> None:
    write(database, "-1")
    receiver.answer = answers(_1=(503, {}, b"busy"))

    for attempt in (1, 2, 3):
        began = seconds_now(tables)
        assert publish_due(database_url, receiver) == 0
        ended = seconds_now(tables)
        found = row(tables, "-1")
        assert (found["status"], found["attempts"], found["last_error"]) == (
            "pending",
            attempt,
            "503 Service Unavailable: busy",
        )
        longest = 2 ** (attempt - 1)
        assert began + 0.8 * longest - 0.01 < seconds_due(tables, "-1") < ended + longest + 0.01
        put_off(tables, "-1")
        assert publish_due(database_url, receiver) == 0  # not before its time
        assert len(receiver.seen) == attempt
        pass_time(tables, "-1")
    receiver.answer = answers()

    assert publish_due(database_url, receiver) == 1
    found = row(tables, "-1")
    assert (found["status"], found["attempts"], found["last_error"]) == ("published", 4, None)
    assert len(receiver.seen) == 4


def seconds_now(tables: Tables) -> float:
    """By the database's clock."""
    return seconds_of(tables, "'now'" if tables.is_sqlite else "clock_timestamp()")


def seconds_due(tables: Tables, name: str) -> float:
    """When the row is due, by the same clock."""
    return seconds_of(tables, f"(SELECT next_attempt_at FROM edda_outbox WHERE event_id = '{name}')")


def seconds_of(tables: Tables, time: str) -> float:
    seconds = f"julianday({time}) * 86400" if tables.is_sqlite else f"extract(epoch FROM {time})::float8"
    return float(tables.value(f"SELECT {seconds} AS seconds"))


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [
        (lambda: "90", 85, 100),
        (lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True), 80, 100),
        (lambda: str(3 * 86_400), 259_000, 285_200),
        (lambda: "999999999", 2_591_000, 2_851_300),
        (lambda: "tomorrow", 0, 1),
    ],
)
def test_the_broker_says_when_to_come_back(
    database: Database,
    tables: Tables,
    database_url: str,
    receiver: Receiver,
    said: Callable[[], str],
    least: float,
    most: float,
) -> None:
    write(database, "-1")
    receiver.answer = lambda _: (429, {"Retry-After": said()}, b"")

    began = seconds_now(tables)
    publish_due(database_url, receiver)
    ended = seconds_now(tables)

    assert began + least < seconds_due(tables, "-1") < ended + most + 0.01


def test_a_refused_event_is_dead_with_the_reason_and_keeps_nobody_back(
    database: Database, tables: Tables, database_url: str, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    write(database, "a1", "a2", "-1", "a3")
    receiver.answer = answers(a1=(422, {}, b"no such order"), _1=(410, {}, b""))

    assert publish_due(database_url, receiver) == 2

    assert receiver.taken_ids == ["a2", "a3"]
    assert (status(tables, "a1"), status(tables, "-1")) == ("dead", "dead")
    assert row(tables, "a1")["last_error"] == "422 Unprocessable Entity: no such order"
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert sorted(record.event_id for record in errors) == ["-1", "a1"]  # type: ignore[attr-defined]
    assert "no such order" not in caplog.text
    assert publish_due(database_url, receiver) == 0


def test_an_event_that_is_tried_again_keeps_back_the_later_ones_of_its_key_and_nobody_else(
    database: Database, tables: Tables, database_url: str, receiver: Receiver
) -> None:
    write(database, "a1", "b1", "a2", "-1", "b2", "a3")
    receiver.answer = answers(a1=(500, {}, b""))

    assert publish_due(database_url, receiver) == 3
    assert sorted(receiver.taken_ids) == ["-1", "b1", "b2"]
    receiver.answer = answers()
    write(database, "a4", "b3")
    pass_time(tables, "a1")

    assert publish_due(database_url, receiver) == 5
    assert [name for name in receiver.taken_ids if name.startswith("a")] == ["a1", "a2", "a3", "a4"]
    assert [name for name in receiver.taken_ids if name.startswith("b")] == ["b1", "b2", "b3"]


def test_order_holds_through_failures_at_random(
    database: Database, tables: Tables, database_url: str, receiver: Receiver
) -> None:
    chance = random.Random(7)
    names = [f"{key}{number}" for number in range(1, 31) for key in "abc"]
    write(database, *names)
    receiver.answer = lambda _: (503, {}, b"") if chance.random() < 0.3 else ACCEPTED

    while "pending" in {row["status"] for row in tables.rows("SELECT status FROM edda_outbox")}:
        publish_due(database_url, receiver)
        tables.execute("UPDATE edda_outbox SET next_attempt_at = '2001-01-01 00:00:00.000' WHERE attempts > 0"
                       " AND status = 'pending'")  # fmt: skip

    for key in "abc":
        assert [name for name in receiver.taken_ids if name.startswith(key)] == [
            name for name in names if name.startswith(key)
        ]


def test_a_broker_that_was_down_gets_everything_when_it_is_up(
    database: Database, tables: Tables, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with receiving() as first:
        url, port = first.url, int(first.url.rpartition(":")[2].partition("/")[0])
    write(database, "a1", "a2", "-1", "-2", "-3")

    async def main() -> list[str]:
        async with OutboxRelayer(database_url, broker_url=url, poll_interval_seconds=0.05) as relayer:
            running = asyncio.create_task(relayer.run())
            await until(lambda: all(row(tables, name)["attempts"] >= 1 for name in ("a1", "-1", "-2", "-3")))
            with receiving(port=port) as broker:
                await until(lambda: len(broker.taken) == 5)
                relayer.stop()
                await running
                return broker.taken_ids

    taken = asyncio.run(main())

    assert sorted(taken) == ["-1", "-2", "-3", "a1", "a2"]
    assert taken.index("a1") < taken.index("a2")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [message.partition(";")[0] for message in warnings] == [
        "3 publications failed one after the other",
        "Events are published again",
    ]


def test_a_slow_broker_keeps_only_its_own_slot_busy(
    database: Database, tables: Tables, database_url: str, receiver: Receiver
) -> None:
    let_go = threading.Event()
    write(database, "-1", "a1", "-2", "a2")

    def answer(event: Any) -> Answer:
        if event.get_id() == "-1":
            let_go.wait(30)
        return ACCEPTED

    receiver.answer = answer

    async def main() -> None:
        async with OutboxRelayer(database_url, broker_url=receiver.url, concurrency=2) as relayer:
            publishing = asyncio.create_task(relayer.publish_due())
            await until(lambda: receiver.taken_ids == ["a1", "-2", "a2"] or len(receiver.taken) == 3)
            let_go.set()
            assert await publishing == 4

    asyncio.run(main())
    assert receiver.most_at_once == 2


# Several relays.


def test_relays_that_share_the_rows_publish_none_twice(database: Database, database_url: str) -> None:
    seen: list[str] = []
    lock = threading.Lock()

    async def publish(event: OutgoingEvent) -> None:
        await asyncio.sleep(0)
        with lock:
            seen.append(event.event_id)

    def relay() -> None:
        async def main() -> None:
            async with OutboxRelayer(database_url, publish, poll_interval_seconds=0.01) as relayer:
                running = asyncio.create_task(relayer.run())
                await asyncio.to_thread(done.wait, 60)
                relayer.stop()
                await running

        asyncio.run(main())

    done = threading.Event()
    names = [f"{key}{number}" for number in range(1, 101) for key in ("a", "b", "c", "-")]
    threads = [threading.Thread(target=relay) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for start in range(0, len(names), 40):  # while they are at it
            write(database, *names[start : start + 40])
        eventually(lambda: len(seen) >= len(names), timeout=60)
    finally:
        done.set()
        for thread in threads:
            thread.join()

    assert sorted(seen) == sorted(names)
    for key in "abc":
        assert [name for name in seen if name.startswith(key)] == [name for name in names if name.startswith(key)]


def test_a_publication_that_takes_longer_than_the_lock_is_not_made_twice(
    database: Database, tables: Tables, database_url: str
) -> None:
    seen: list[tuple[str, str]] = []
    let_go = asyncio.Event()

    async def slow(event: OutgoingEvent) -> None:
        seen.append(("slow", event.event_id))
        await let_go.wait()

    async def quick(event: OutgoingEvent) -> None:
        seen.append(("quick", event.event_id))

    async def main() -> None:
        write(database, "a1", "a2")
        async with (
            OutboxRelayer(database_url, slow, lock_seconds=0.6) as first,
            OutboxRelayer(database_url, quick, lock_seconds=0.6) as second,
        ):
            publishing = asyncio.create_task(first.publish_due())
            await until(lambda: seen)
            locked_until = row(tables, "a1")["lock_expires_at"]
            for _ in range(3):
                await until(lambda until=locked_until: row(tables, "a1")["lock_expires_at"] != until)  # type: ignore[misc]
                locked_until = row(tables, "a1")["lock_expires_at"]
                assert await second.publish_due() == 0
            let_go.set()
            assert await publishing == 2

    asyncio.run(main())
    assert seen == [("slow", "a1"), ("slow", "a2")]


def test_events_of_a_relay_that_is_gone_are_taken_over_when_its_lock_expires(
    database: Database, tables: Tables, database_url: str, receiver: Receiver
) -> None:
    write(database, "a1", "a2")
    run(database, lambda conn: outbox.claim_due(conn, relay_id="gone", limit=10, lock_seconds=3600.0))
    assert publish_due(database_url, receiver) == 0

    tables.execute("UPDATE edda_outbox SET next_attempt_at = created_at, lock_expires_at = created_at")
    assert publish_due(database_url, receiver) == 2

    assert receiver.taken_ids == ["a1", "a2"]


def test_an_event_that_another_relay_has_taken_over_is_reported_and_left_to_it(
    database: Database, tables: Tables, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    async def publish(event: OutgoingEvent) -> None:
        seen.append(event.event_id)
        tables.execute("UPDATE edda_outbox SET locked_by = 'thief'")

    async def main() -> int:
        async with OutboxRelayer(database_url, publish) as relayer:
            return await relayer.publish_due()

    write(database, "a1", "a2")

    assert asyncio.run(main()) == 0
    assert seen == ["a1"]
    assert status(tables, "a1") == "publishing"
    assert "may be published twice" in caplog.text


# Stopping.


def test_a_publication_under_way_ends_before_the_relay_does_and_the_rest_is_handed_back(
    database: Database, tables: Tables, database_url: str
) -> None:
    seen: list[str] = []
    let_go = asyncio.Event()

    async def publish(event: OutgoingEvent) -> None:
        seen.append(event.event_id)
        await let_go.wait()

    async def main() -> None:
        write(database, "a1", "a2", "-1")
        async with OutboxRelayer(database_url, publish, concurrency=1) as relayer:
            running = asyncio.create_task(relayer.run())
            await until(lambda: seen)
            relayer.stop()
            await running
            closing = asyncio.create_task(relayer.close())
            await asyncio.sleep(0)
            let_go.set()
            await closing

    asyncio.run(main())

    (name,) = seen
    assert status(tables, name) == "published"
    for other in {"a1", "a2", "-1"} - {name}:
        found = row(tables, other)
        assert (found["status"], found["locked_by"], found["attempts"]) == ("pending", None, 0)
        assert seconds_due(tables, other) <= seconds_now(tables)


def test_a_publication_that_does_not_end_in_time_is_handed_back(
    database: Database, tables: Tables, database_url: str
) -> None:
    seen: list[str] = []

    async def publish(event: OutgoingEvent) -> None:
        seen.append(event.event_id)
        await asyncio.Event().wait()

    async def main() -> None:
        write(database, "-1")
        relayer = OutboxRelayer(database_url, publish)
        await relayer.open()
        running = asyncio.create_task(relayer.run())
        await until(lambda: seen)
        await relayer.close(timeout=0.05)
        await running

    asyncio.run(main())

    found = row(tables, "-1")
    assert (found["status"], found["locked_by"], found["attempts"]) == ("pending", None, 0)
    assert seconds_due(tables, "-1") <= seconds_now(tables)


# Publishers that misbehave.


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("a\0b \udcff"), "ValueError: a?b ?"),
        (PublishLaterError("not now"), "not now"),
        (TimeoutError(), "TimeoutError"),
        (asyncio.CancelledError(), "CancelledError"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (Unprintable(), "Unprintable"),
        (ValueError("x" * 5000), "ValueError: " + "x" * 988),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_whatever_a_publisher_raises_the_event_is_tried_again(
    database: Database, tables: Tables, database_url: str, error: BaseException, told: str
) -> None:
    class Broken:
        async def publish(self, event: OutgoingEvent) -> None:
            if event.attempt == 1:
                raise error

        async def close(self) -> None:
            raise RuntimeError("not even this")

    async def main() -> list[int]:
        async with OutboxRelayer(database_url, Broken()) as relayer:
            first = await relayer.publish_due()
            pass_time(tables, "-1")
            return [first, await relayer.publish_due()]

    write(database, "-1")

    async def look() -> str:
        async with OutboxRelayer(database_url, Broken()) as relayer:
            await relayer.publish_due()
        return str(row(tables, "-1")["last_error"])

    assert asyncio.run(look()) == told
    assert status(tables, "-1") == "pending"
    tables.execute("UPDATE edda_outbox SET attempts = 0, next_attempt_at = '2001-01-01 00:00:00.000'")
    assert asyncio.run(main()) == [0, 1]


def test_a_publisher_that_refuses_for_good_gives_the_reason(
    database: Database, tables: Tables, database_url: str
) -> None:
    def publish(event: OutgoingEvent) -> None:
        raise PublishRefusedError(f"{event.type} is not wanted")

    async def main() -> int:
        async with OutboxRelayer(database_url, publish) as relayer:
            return await relayer.publish_due()

    write(database, "-1")

    assert asyncio.run(main()) == 0
    assert (status(tables, "-1"), row(tables, "-1")["last_error"]) == ("dead", "order.placed is not wanted")


# Databases that go away.


def locked() -> Exception:
    return OperationalError("COMMIT", {}, sqlite3.OperationalError("database is locked"))


@pytest.mark.parametrize(
    "point", ["relay.claim.before_commit", "relay.claim.after_commit", "relay.record.before_commit"]
)
def test_an_outage_is_logged_once_and_publishes_nothing_twice(
    database: Database, tables: Tables, database_url: str, point: str, caplog: pytest.LogCaptureFixture
) -> None:
    failures = iter(range(4))
    seen: list[str] = []

    def probe(passed: str) -> None:
        if passed == point and next(failures, None) is not None:
            raise locked()

    async def publish(event: OutgoingEvent) -> None:
        seen.append(event.event_id)

    async def main() -> None:
        async with OutboxRelayer(database_url, publish, poll_interval_seconds=0.05, probe=probe) as relayer:
            running = asyncio.create_task(relayer.run())
            await until(lambda: status(tables, "a2") == "published")
            relayer.stop()
            await running

    write(database, "a1", "a2")
    asyncio.run(main())

    assert seen == ["a1", "a2"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 2
    assert "does not answer; no event is published until it does" in warnings[0]
    assert "answers again" in warnings[1]


def test_connections_cut_while_events_are_published_lose_nothing_and_repeat_nothing(
    postgres_url: str, proxy: Proxy
) -> None:
    names = [f"{key}{number}" for number in range(1, 31) for key in ("a", "b", "-")]
    seen: list[str] = []

    async def publish(event: OutgoingEvent) -> None:
        seen.append(event.event_id)
        if len(seen) in (10, 40):
            proxy.shut()
            proxy.open()
        await asyncio.sleep(0)

    async def main(tables: Tables) -> None:
        async with OutboxRelayer(proxy.url, publish, poll_interval_seconds=0.05) as relayer:
            running = asyncio.create_task(relayer.run())
            await until(lambda: tables.value("SELECT count(*) FROM edda_outbox WHERE status <> 'published'") == 0)
            relayer.stop()
            await running

    proxy.open()
    with storage(postgres_url) as database:
        write(database, *names)
        asyncio.run(main(Tables(postgres_url)))

    assert sorted(seen) == sorted(names)
    for key in "ab":
        assert [name for name in seen if name.startswith(key)] == [name for name in names if name.startswith(key)]


# Retention.


def test_published_events_are_deleted_after_the_retention_and_dead_ones_are_kept(
    database: Database, tables: Tables, database_url: str, receiver: Receiver
) -> None:
    write(database, "-1", "-2", "-3")
    receiver.answer = answers(_2=(400, {}, b""))
    publish_due(database_url, receiver)
    tables.execute("UPDATE edda_outbox SET published_at = '2001-01-01 00:00:00.000' WHERE event_id = '-1'")

    async def main() -> None:
        async with OutboxRelayer(database_url, broker_url=receiver.url, retention_days=7) as relayer:
            running = asyncio.create_task(relayer.run())
            await until(lambda: len(tables.rows("SELECT seq FROM edda_outbox")) == 2)
            relayer.stop()
            await running

    asyncio.run(main())

    assert sorted(found["event_id"] for found in tables.rows("SELECT event_id FROM edda_outbox")) == ["-2", "-3"]


def test_a_retention_of_nothing_keeps_nothing(
    database: Database, tables: Tables, database_url: str, receiver: Receiver
) -> None:
    write(database, *(f"-{number}" for number in range(20)))
    publish_due(database_url, receiver)

    async def main() -> None:
        async with OutboxRelayer(database_url, broker_url=receiver.url, retention_days=0) as relayer:
            await relayer.prune()

    asyncio.run(main())

    assert tables.rows("SELECT seq FROM edda_outbox") == []


# In an engine.


class Told(HooksBase):
    """Remembers what it was told, with the status of the row at that moment."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self.events: list[tuple[str, str, str]] = []

    def on_event_sent(self, event_id: str, event_type: str, event_source: str) -> None:
        self.events.append((event_type, event_source, status(self._tables, event_id)))


@activity
def place(ctx: WorkflowContext, number: int, *, fails: bool = False) -> str:
    event_id = send_event_transactional(ctx, "order.placed", "shop", {"number": number}, ordering_key="orders")
    if fails:
        raise TerminalError("no")
    return event_id


@activity
async def place_async(ctx: WorkflowContext, number: int) -> str:
    return await send_event_transactional(ctx, "order.placed", "shop", {"number": number})


@workflow
def plainly(ctx: SyncWorkflowContext, number: int) -> str:
    return place(ctx, number)


@workflow
async def order(ctx: WorkflowContext, number: int) -> str:
    return await place_async(ctx, number)


@workflow
async def failing(ctx: WorkflowContext, number: int) -> None:
    await place(ctx, number, fails=True)


@pytest.mark.parametrize("flow", [plainly, order])
def test_what_an_activity_sends_is_published_at_once_and_the_hook_is_told(
    tables: Tables, database_url: str, receiver: Receiver, flow: Any
) -> None:
    hooks = Told(tables)
    # Nobody looks by itself for a minute: the commit itself wakes the relay.
    app = edda(database_url, outbox_enabled=True, broker_url=receiver.url, hooks=hooks, poll_interval_seconds=60.0)

    async def main() -> str:
        async with app:
            event_id = await app.result(await app.start(flow, 7), timeout=30)
            await until(lambda: hooks.events)
            return str(event_id)

    event_id = asyncio.run(main())

    assert receiver.taken_ids == [event_id]
    assert receiver.data == [{"number": 7}]
    assert hooks.events == [("order.placed", "shop", "published")]


def test_what_a_failed_activity_sent_is_never_published(tables: Tables, database_url: str, receiver: Receiver) -> None:
    app = edda(database_url, outbox={"URL": receiver.url})

    async def main() -> None:
        async with app:
            refused = await app.start(failing, 1)
            await until(lambda: tables.status(refused) == "failed")
            await app.result(await app.start(plainly, 2), timeout=30)
            await until(lambda: receiver.taken)

    asyncio.run(main())

    assert receiver.data == [{"number": 2}]


def test_a_hook_that_raises_is_logged_and_changes_nothing(
    tables: Tables, database_url: str, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(HooksBase):
        def on_event_sent(self, event_id: str, event_type: str, event_source: str) -> None:
            raise RuntimeError("hook")

    app = edda(database_url, outbox={"URL": receiver.url}, hooks=Broken())

    async def main() -> None:
        async with app:
            first, second = [await app.send_event_transactional("t", "s", number) for number in (1, 2)]
            await until(lambda: status(tables, first) == status(tables, second) == "published")

    asyncio.run(main())

    assert sorted(receiver.data) == [1, 2]
    assert caplog.text.count("The hook on_event_sent failed") == 2


def test_events_of_an_application_are_published_at_once_and_checked_before(
    tables: Tables, database_url: str, receiver: Receiver
) -> None:
    app = edda(database_url, outbox={"URL": receiver.url}, poll_interval_seconds=60.0)

    async def main() -> None:
        async with app:
            event_id = await app.send_event_transactional(
                "picture.taken", "camera", b"\x00\xff", "image/png", subject="cat"
            )
            await until(lambda: receiver.taken_ids == [event_id])
            for wrong in ({"event_type": ""}, {"source": "a\0b"}, {"subject": ""}, {"ordering_key": "x" * 256}):
                with pytest.raises(UsageError, match="send_event_transactional"):
                    await app.send_event_transactional(**({"event_type": "t", "source": "s", "data": 1} | wrong))

    asyncio.run(main())

    (came,) = receiver.taken
    assert (came.get_data(), came.get_subject(), came.get_datacontenttype()) == (b"\x00\xff", "cat", "image/png")
    assert len(tables.rows("SELECT seq FROM edda_outbox")) == 1


def test_an_event_in_somebodys_transaction_is_published_with_its_commit_and_gone_with_its_rollback(
    tables: Tables, database_url: str, receiver: Receiver
) -> None:
    app = edda(database_url, outbox={"URL": receiver.url}, poll_interval_seconds=60.0)
    url = normalized_url(database_url)
    url = url.set(drivername="sqlite+aiosqlite") if tables.is_sqlite else url

    async def main() -> None:
        engine = create_async_engine(url)
        async with app:
            async with AsyncSession(engine) as session:
                await app.send_event_transactional("t", "s", "lost", session=session)
                await session.rollback()
                await app.send_event_transactional("t", "s", "kept", session=session)
                assert receiver.seen == []
                await session.commit()
            await until(lambda: receiver.data == ["kept"])
            with pytest.raises(UsageError, match="session= takes an AsyncSession"):
                await app.send_event_transactional("t", "s", "x", session=object())
        await engine.dispose()

    asyncio.run(main())
    assert len(tables.rows("SELECT seq FROM edda_outbox")) == 1


def test_without_an_outbox_setting_events_are_kept(tables: Tables, database_url: str) -> None:
    app = edda(database_url)

    async def main() -> str:
        async with app:
            return await app.send_event_transactional("t", "s", 1)

    assert status(tables, asyncio.run(main())) == "pending"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"outbox_enabled": True}, "give broker_url="),
        ({"outbox_enabled": True, "broker_url": "http://b/", "outbox": {"URL": "http://b/"}}, "exactly one of them"),
        ({"outbox_enabled": True, "broker_url": "broker"}, "URL of HttpPublisher"),
        ({"outbox": {"BACKEND": "nowhere.Publisher"}}, "cannot be loaded"),
        ({"outbox": 7}, r"outbox=\.\.\.\) is wrong: Input should be a dictionary"),
    ],
)
def test_a_wrong_set_up_of_an_application_says_what_is_wrong(
    sqlite_url: str, options: dict[str, Any], said: str
) -> None:
    async def main() -> None:
        async with edda(sqlite_url, **options):
            pass

    with pytest.raises(ConfigurationError, match=said):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "exactly one of them"),
        ({"publisher": print, "broker_url": "http://b/"}, "exactly one of them"),
        ({"publisher": print, "concurrency": 0}, "concurrency=0"),
        ({"publisher": print, "poll_interval_seconds": 0}, "poll_interval_seconds=0"),
        ({"publisher": print, "lock_seconds": float("nan")}, "lock_seconds=nan"),
    ],
)
def test_a_wrong_relayer_says_what_is_wrong(sqlite_url: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        OutboxRelayer(sqlite_url, **options)


def test_a_relayer_that_is_not_open_says_so(sqlite_url: str) -> None:
    relayer = OutboxRelayer(sqlite_url, print)

    with pytest.raises(UsageError, match="not open"):
        asyncio.run(relayer.publish_due())


def test_an_engine_that_stops_finishes_what_is_being_published(
    tables: Tables, database_url: str, receiver: Receiver
) -> None:
    let_go = threading.Event()

    def answer(_event: Any) -> Answer:
        let_go.wait(30)
        return ACCEPTED

    receiver.answer = answer
    app = edda(database_url, outbox={"URL": receiver.url, "CONCURRENCY": 1})

    async def main() -> list[str]:
        await app.initialize()
        names = [await app.send_event_transactional("t", "s", number, ordering_key="k") for number in (1, 2)]
        await until(lambda: receiver.seen)
        stopping = asyncio.create_task(app.shutdown())
        await asyncio.sleep(0)
        let_go.set()
        await stopping
        return names

    first, second = asyncio.run(main())

    assert (status(tables, first), status(tables, second)) == ("published", "pending")
    assert seconds_due(tables, second) <= seconds_now(tables)
