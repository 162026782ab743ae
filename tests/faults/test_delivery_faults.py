"""The traps of delivery, each forced: by a probe in the middle, a second connection, a process that is stopped."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import psycopg
import pytest
from sqlalchemy import Connection, make_url

from edda_engine import (
    RetryPolicy,
    WorkflowContext,
    activity,
    publish,
    receive,
    send_event,
    send_to,
    sleep,
    sleep_until,
    subscribe,
    wait_event,
    workflow,
)  # fmt: skip
from edda_engine.client import cancel_with
from edda_engine.core.events import StepKey
from edda_engine.core.ports import DIRECT_CHANNEL, NewInstance, OutgoingMessage, WaitKind, WaitRequest
from edda_engine.storage import claiming, delivery, instances
from edda_engine.storage.commit import commit_units
from edda_engine.storage.database import Database
from edda_engine.storage.messages import insert_messages
from edda_engine.storage.starts import insert_instance
from edda_engine.storage.units import AlreadyRecorded, BatchOutcome, Holder, Take, Unit
from tests.faults.conversation import Kept
from tests.faults.forks import DONE
from tests.faults.talkers import Talkers
from tests.integration.engines import SERVICE, Tables, edda, run, storage
from tests.integration.talks import asleep, nothing_is_kept
from tests.support import eventually

QUICK = RetryPolicy(max_attempts=3, initial_interval=0.02, backoff_coefficient=1.0)


def message(
    name: str, data: Any, *, to: str | None = None, kind: Literal["event", "message"] = "message"
) -> OutgoingMessage:
    metadata = {"type": name, "source": "test", "id": str(data)} if kind == "event" else {}
    return OutgoingMessage(f"id-{data}", kind, name, json.dumps(metadata), to, json.dumps(data), None)


def send(database: Database, *outgoing: OutgoingMessage) -> None:
    run(database, lambda conn: insert_messages(conn, outgoing))


def ask(instance_id: str, request: WaitRequest, *, epoch: int, number: int = 1) -> Take:
    key = StepKey(f"call:{number}", "", number)
    return Take(Holder(instance_id, "worker", epoch), key, number, "call", instance_id, request)


def run_and_die(database: Database, unit: Unit) -> BatchOutcome:
    """Write a unit, and die before the commit."""
    with database.service.connect() as conn:
        conn.begin()
        return commit_units(conn, [unit])[0]


# Between "nothing there" and "now waiting".


@workflow
async def fault_listens(ctx: WorkflowContext) -> list[Any]:
    await subscribe(ctx, "news")
    await subscribe(ctx, "jobs", "competing")
    await receive(ctx, message_id="begin")
    found = []
    for number in range(2):
        found += [
            (await receive(ctx, message_id=f"direct {number}")).data,
            (await receive(ctx, "news", message_id=f"news {number}")).data,
            (await receive(ctx, "jobs", message_id=f"jobs {number}")).data,
            (await wait_event(ctx, "fault.paid", event_id=f"paid {number}")).data,
        ]
    return found


OUTGOING = [
    message(DIRECT_CHANNEL, 0, to="listener"), message("news", 1), message("jobs", 2),
    message("fault.paid", 3, to="listener", kind="event"),
    message(DIRECT_CHANNEL, 4, to="listener"), message("news", 5), message("jobs", 6),
    message("fault.paid", 7, to="listener", kind="event"),
]  # fmt: skip


class SendsInTheMiddle:
    """At a point that the listener passes: sends and delivers what it is about to wait for, on another connection."""

    def __init__(self, point: str, url: str) -> None:
        self._point, self._tables, self._database = point, Tables(url), Database.from_url(url)
        self.sent = 0
        self.is_armed = False

    def __call__(self, point: str) -> None:
        if not self.is_armed or point != self._point or self.sent == len(OUTGOING):
            return
        ended = "('MessageReceived', 'EventReceived')"
        if self._tables.value(f"SELECT count(*) FROM edda_history WHERE event_type IN {ended}") == self.sent + 1:
            self.sent += 1
            send(self._database, OUTGOING[self.sent - 1])
            run(self._database, delivery.deliver)

    def close(self) -> None:
        self._database.close()


async def is_received_in_the_middle(url: str, point: str) -> None:
    probe = SendsInTheMiddle(point, url)
    async with edda(url, probe=probe) as app:
        listener = await fault_listens.options(instance_id="listener").start()
        await asleep(Tables(url), listener)
        probe.is_armed = True
        await app.send_to(listener, "begin")
        assert await app.result(listener, timeout=20) == list(range(8))
    probe.close()


@pytest.mark.parametrize(
    "point", ["take.before_commit", "take.after_commit", "wait.before_commit", "wait.after_commit"]
)
def test_what_is_sent_while_an_instance_begins_to_wait_is_received(point: str, database_url: str) -> None:
    asyncio.run(is_received_in_the_middle(database_url, point))


def test_what_is_sent_and_delivered_while_a_wait_is_being_committed_is_received(postgres_url: str) -> None:
    # The wait is registered and not committed: delivery does not see it, nor can it lock its instance.
    asyncio.run(is_received_in_the_middle(postgres_url, "batch.before_commit"))


# Lost, or out of order.


@workflow
async def fault_reads(ctx: WorkflowContext, channel: str, count: int, mode: str = "broadcast") -> list[Any]:
    if channel != DIRECT_CHANNEL:
        await subscribe(ctx, channel, mode)
    return [(await receive(ctx, channel)).data for _ in range(count)]


def test_an_older_message_whose_sender_commits_late_is_received_after_newer_ones(postgres_url: str) -> None:
    async def main() -> None:
        async with edda(postgres_url) as app:
            reader = await fault_reads.start("news", 3)
            await asleep(Tables(postgres_url), reader)
            late = Database.from_url(postgres_url)
            with late.write() as conn:
                insert_messages(conn, [message("news", "older")])
                for number in (1, 2):
                    await app.publish("news", number)
                taken = "SELECT count(*) FROM edda_history WHERE event_type = 'MessageReceived'"
                await asyncio.to_thread(eventually, lambda: Tables(postgres_url).value(taken) == 2)
            assert await app.result(reader, timeout=20) == [1, 2, "older"]
            late.close()

    asyncio.run(main())


def test_a_competing_message_that_was_taken_and_not_recorded_is_there_for_another(database_url: str) -> None:
    async def waiting() -> list[str]:
        async with edda(database_url):
            hands = [await fault_reads.start("jobs", 1, mode="competing") for _ in range(2)]
            await asleep(Tables(database_url), *hands)
            return hands

    hands = asyncio.run(waiting())
    with storage(database_url) as database:
        send(database, message("jobs", "dig"))
        run(database, delivery.deliver)
        (lease,) = run(database, claimed)
        unit = ask(lease.instance_id, WaitRequest(WaitKind.MESSAGE, "jobs"), epoch=lease.epoch, number=7)
        assert isinstance(run_and_die(database, unit), AlreadyRecorded)
        run(database, lambda conn: cancel_with(conn, lease.instance_id, None))
        run(database, lambda conn: instances.release_worker(conn, "worker"))

    async def others() -> Any:
        async with edda(database_url) as app:
            (other,) = set(hands) - {lease.instance_id}
            return await app.result(other, timeout=20)

    assert asyncio.run(others()) == ["dig"]


def claimed(conn: Connection) -> list[claiming.Lease]:
    return claiming.claim_due(conn, worker_id="worker", service=SERVICE, names=["fault_reads"], limit=10)


PAYLOADS = [[1, [2]], 7, 1.0, -0.0, 10**30, "text", "", None, True, {}, b"\x00\xff"]


def test_payloads_of_every_kind_that_were_sent_before_anybody_asked_arrive_as_they_are(database_url: str) -> None:
    async def main() -> tuple[list[Any], list[Any]]:
        async with edda(database_url) as app:
            later = fault_waits.options(instance_id="later", delay=timedelta(seconds=1))
            await later.start(len(PAYLOADS))
            for payload in PAYLOADS:
                await app.send_event("fault.paid", "test", payload, instance_id="later")
            reader = await fault_reads.start(DIRECT_CHANNEL, len(PAYLOADS))
            for payload in PAYLOADS:
                await app.send_to(reader, payload)
            return await app.result(reader, timeout=20), await app.result("later", timeout=20)

    received, waited = asyncio.run(main())
    as_json = [list(payload) if isinstance(payload, bytes) else payload for payload in PAYLOADS]
    for found in (received, waited):
        assert [repr(value) for value in found[:-1]] == [repr(value) for value in as_json[:-1]]


@workflow
async def fault_waits(ctx: WorkflowContext, count: int) -> list[Any]:
    return [(await wait_event(ctx, "fault.paid")).data for _ in range(count)]


@activity(retry_policy=QUICK)
def fault_tells(ctx: WorkflowContext, reader: str, fails_until: int) -> None:
    send_to(ctx, reader, ctx.attempt)
    publish(ctx, "news", ctx.attempt)
    send_event("fault.paid", "test", ctx.attempt, instance_id=reader)
    if ctx.attempt < fails_until:
        raise ConnectionError("hung up")


@workflow
async def fault_tries(ctx: WorkflowContext, reader: str, fails_until: int) -> bool:
    try:
        await fault_tells(ctx, reader, fails_until)
    except Exception:
        return False
    return True


def test_what_an_activity_has_sent_that_then_failed_reaches_nobody(database_url: str) -> None:
    async def main() -> None:
        async with edda(database_url) as app:
            reader = await fault_listens.options(instance_id="listener").start()
            await asleep(Tables(database_url), reader)
            await app.send_to(reader, "begin")
            assert await app.result(await fault_tries.start(reader, 9), timeout=20) is False
            assert await app.result(await fault_tries.start(reader, 3), timeout=20) is True
            await app.publish("jobs", "a")
            await app.publish("jobs", "b")
            assert await app.result(await fault_tries.start(reader, 2), timeout=20) is True
            assert await app.result(reader, timeout=20) == [3, 3, "a", 3, 2, 2, "b", 2]

    asyncio.run(main())
    assert nothing_is_kept(Tables(database_url))


# Who must not block others.


def test_a_request_that_stays_open_after_sending_starting_and_cancelling_keeps_nobody_from_receiving(
    postgres_url: str,
) -> None:
    async def waiting() -> list[str]:
        async with edda(postgres_url):
            readers = [await fault_reads.start("news", 2) for _ in range(2)]
            await asleep(Tables(postgres_url), *readers)
            return readers

    cancelled, other = asyncio.run(waiting())
    request = Database.from_url(postgres_url)
    impatient = make_url(postgres_url).update_query_dict({"options": "-c lock_timeout=200"})
    with request.write() as conn, storage(impatient.render_as_string(False)) as database:
        cancel_with(conn, cancelled, None)
        insert_instance(conn, NewInstance("new", "fault_reads", SERVICE, "{}", "", 300.0))
        insert_messages(conn, [message("news", "never"), message("jobs", "never"), message("news", "x", to=cancelled)])
        # More than one batch for the one whose row is locked: it must not hide what is for the other.
        send(database, *(message(DIRECT_CHANNEL, number, to=cancelled) for number in range(600)))
        send(database, message("news", "for all"))
        run(database, delivery.deliver)
        run(database, delivery.deliver)
        leases = run(database, claimed)
        assert [lease.instance_id for lease in leases] == [other]
        unit = ask(other, WaitRequest(WaitKind.MESSAGE, "news"), epoch=leases[0].epoch)
        (outcome,) = run(database, lambda conn: commit_units(conn, [unit]))
        assert isinstance(outcome, AlreadyRecorded)
        assert outcome.event.event_data["result"]["data"] == "for all"
    request.close()


def test_a_process_that_is_stopped_while_it_delivers_is_waited_for_not_longer_than_the_server_allows(
    postgres_url: str, tmp_path: Path
) -> None:
    kept, talkers = Kept(postgres_url), Talkers(postgres_url, tmp_path)
    try:
        stopped = talkers.talk("claim.before_commit", action="stop while delivering", lock_timeout_seconds=2.0)
        talkers.wait_until_it_stops(stopped, transactions=1)

        assert talkers.end_of(talkers.talk(lock_timeout_seconds=2.0)) == DONE

        talkers.wake_all()
        assert talkers.end_of(stopped) == DONE
    finally:
        talkers.clean_up()
    kept.assert_exactly_once()


@workflow
async def fault_reads_patiently(ctx: WorkflowContext) -> list[Any]:
    found: list[Any] = []
    while len(found) < 2:
        try:
            found.append((await receive(ctx)).data)
        except Exception as error:
            found.append(type(error).__name__)
    return found


@pytest.mark.parametrize("poison", ["3", "null", "[]"])
def test_a_message_that_nobody_can_read_stops_neither_its_receiver_nor_others(poison: str, database_url: str) -> None:
    async def main() -> None:
        tables = Tables(database_url)
        async with edda(database_url) as app:
            victim, other = await fault_reads_patiently.start(), await fault_reads.start(DIRECT_CHANNEL, 1)
            await asleep(tables, victim, other)
        with storage(database_url) as database:
            send(database, message(DIRECT_CHANNEL, "bad", to=victim))
            value = ":poison" if tables.is_sqlite else "CAST(:poison AS JSON)"
            tables.execute(f"UPDATE edda_messages SET metadata = {value}", poison=poison)
            send(database, message(DIRECT_CHANNEL, "good", to=victim), message(DIRECT_CHANNEL, "good", to=other))
        async with edda(database_url) as app:
            assert await app.result(other, timeout=20) == ["good"]
            found = await app.result(victim, timeout=20)
            assert found[1] == "good"

    asyncio.run(main())


# Timers.


@workflow
async def fault_sleeps(ctx: WorkflowContext) -> float:
    before = ctx.now()
    await sleep(ctx, 0.2)
    await sleep_until(ctx, ctx.now() + timedelta(seconds=0.2))
    return (ctx.now() - before).total_seconds()


def test_timers_fire_in_time_where_the_server_lives_in_another_zone_and_many_are_due_at_once(
    postgres_url: str,
) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {make_url(postgres_url).database} SET timezone = 'Asia/Kathmandu'")

    async def main() -> list[float]:
        async with edda(postgres_url) as app:
            sleepers = [await fault_sleeps.start() for _ in range(100)]
            return [await app.result(sleeper, timeout=60) for sleeper in sleepers]

    assert all(0.4 <= slept < 600 for slept in asyncio.run(main()))
    fired = "SELECT count(*) FROM edda_history WHERE event_type = 'TimerFired'"
    assert Tables(postgres_url).value(fired) == 200
    assert nothing_is_kept(Tables(postgres_url))


@workflow
async def fault_sleeps_once(ctx: WorkflowContext) -> str:
    await sleep(ctx, 1.2, timer_id="call:1")
    return "awake"


def test_a_timer_that_fired_before_its_process_died_has_fired_and_one_that_was_not_committed_fires_again(
    database_url: str,
) -> None:
    tables = Tables(database_url)

    async def asleep_once() -> str:
        async with edda(database_url):
            sleeper = await fault_sleeps_once.start()
            await asleep(tables, sleeper)
            return sleeper

    sleeper = asyncio.run(asleep_once())
    with storage(database_url) as database:
        (lease,) = eventually(lambda: run(database, claimed_sleeper))
        unit = ask(sleeper, WaitRequest(WaitKind.TIMER, seconds=1.2), epoch=lease.epoch)
        unit = Take(unit.holder, unit.key, 1, "sleep", sleeper, unit.request)
        assert isinstance(run_and_die(database, unit), AlreadyRecorded)  # between "fired" and "removed"
        assert tables.value("SELECT count(*) FROM edda_waits") == 1
        assert tables.value("SELECT count(*) FROM edda_history") == 0
        run(database, lambda conn: commit_units(conn, [unit]))
        assert tables.value("SELECT count(*) FROM edda_waits") == 0
        assert tables.value("SELECT count(*) FROM edda_history") == 1
        run(database, lambda conn: instances.release_worker(conn, "worker"))

    async def the_rest() -> Any:
        async with edda(database_url) as app:
            return await app.result(sleeper, timeout=20)

    assert asyncio.run(the_rest()) == "awake"
    assert tables.value("SELECT count(*) FROM edda_history") == 1


def claimed_sleeper(conn: Connection) -> list[claiming.Lease]:
    return claiming.claim_due(conn, worker_id="worker", service=SERVICE, names=["fault_sleeps_once"], limit=1)
