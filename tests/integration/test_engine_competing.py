"""Competing mode: each message goes to exactly one subscriber, and to another one if that does not take it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edda_engine import (
    EddaApp,
    MessageTimeoutError,
    SyncWorkflowContext,
    WorkflowContext,
    activity,
    publish,
    receive,
    send_to,
    subscribe,
    unsubscribe,
    wait_event,
    workflow,
)
from edda_engine.channels import channel_message
from edda_engine.client import cancel_with
from edda_engine.events import event_message
from edda_engine.workflow import workflows
from tests.integration.engines import Gate, Tables, edda, run, storage, until
from tests.integration.talks import (
    KINDS,
    RARELY,
    asleep,
    begun,
    declare,
    ended_by_another,
    left_asleep,
    nothing_is_kept,
    send_behind,
    waiting_at,
)

LIMIT = 1_000_000


@workflow
async def takes_jobs(ctx: WorkflowContext, idle_seconds: float = 1.0) -> list[Any]:
    """Jobs, until there is none for a while."""
    await subscribe(ctx, "jobs", "competing")
    found = []
    while True:
        try:
            found.append((await receive(ctx, "jobs", idle_seconds)).data)
        except MessageTimeoutError:
            return found


@workflow
async def takes_one_job(ctx: WorkflowContext) -> Any:
    await subscribe(ctx, "jobs", "competing")
    return (await receive(ctx, "jobs")).data


def queued(tables: Tables) -> list[str]:
    """To whom the messages of the queue are assigned; '' for those that are nobody's yet."""
    return [row["receiver"] for row in tables.rows("SELECT receiver FROM edda_inbox WHERE name = 'jobs' ORDER BY seq")]


@pytest.mark.parametrize("max_parked", [0, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_each_message_is_received_exactly_once(database_url: str, kind: str, max_parked: int) -> None:
    """By subscribers in two workers, while messages are published."""

    def takes(ctx: Any) -> Any:
        yield subscribe(ctx, "jobs", "competing")
        found = []
        while True:
            message = yield receive(ctx, "jobs")
            if message.data == "stop":
                return found
            found.append(message.data)

    flow = declare(kind, takes)
    count = 30

    async def main() -> list[list[int]]:
        async with edda(database_url, max_parked=max_parked) as one, edda(database_url, max_parked=max_parked) as two:
            ids = [await one.start(flow) for _ in range(4)]
            await asleep(Tables(database_url), *ids)
            for number in range(count):
                await (one if number % 2 else two).publish("jobs", number)
            for _ in ids:
                await one.publish("jobs", "stop")
            return [await one.result(each, timeout=60) for each in ids]

    found = asyncio.run(main())
    assert sorted(job for jobs in found for job in jobs) == list(range(count))
    assert nothing_is_kept(Tables(database_url))


def test_the_one_that_waits_longest_is_served_first(database_url: str) -> None:
    tables = Tables(database_url)

    async def main() -> list[Any]:
        async with edda(database_url, poll_interval_seconds=RARELY) as app:
            ids = []
            for _ in range(3):
                ids.append(await app.start(takes_one_job))
                await asleep(tables, ids[-1])
            results = []
            for number, instance_id in enumerate(ids):
                await app.publish("jobs", number)
                results.append(await app.result(instance_id, timeout=20))
            return results

    assert asyncio.run(main()) == [0, 1, 2]


def test_what_is_published_before_there_is_any_subscriber_is_kept_in_order(database_url: str) -> None:
    tables = Tables(database_url)

    async def main() -> list[Any]:
        async with edda(database_url) as app:
            for number in range(5):
                await app.publish("jobs", number)
            await until(lambda: queued(tables) == [""] * 5)
            found = [await app.result(await app.start(takes_one_job), timeout=20) for _ in range(2)]
            assert tables.rows("SELECT * FROM edda_subscriptions") == []
            await app.publish("jobs", 5)
            found.append(await app.result(await app.start(takes_jobs), timeout=20))
            return found

    assert asyncio.run(main()) == [0, 1, [2, 3, 4, 5]]


def test_a_subscriber_that_does_something_else_keeps_no_message_from_the_others(database_url: str) -> None:
    gate = Gate()

    @activity
    def busy(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    def is_busy(ctx: SyncWorkflowContext) -> Any:
        subscribe(ctx, "jobs", "competing")
        busy(ctx)
        return receive(ctx, "jobs").data

    async def main() -> tuple[Any, Any]:
        async with edda(database_url) as app:
            busy_one = await app.start(is_busy)
            await gate.is_reached()
            for number in range(4):
                await app.publish("jobs", number)
            others = [await app.result(await app.start(takes_one_job), timeout=20) for _ in range(3)]
            gate.open()
            return others, await app.result(busy_one, timeout=20)

    assert asyncio.run(main()) == ([0, 1, 2], 3)


@pytest.mark.parametrize("ending", ["cancelled", "cancelled by its worker"])
def test_a_message_assigned_to_an_instance_that_is_cancelled_goes_to_another(database_url: str, ending: str) -> None:
    tables = Tables(database_url)

    async def main() -> Any:
        first = await left_asleep(database_url, takes_one_job)
        send_behind(database_url, channel_message("jobs", "job", None, max_payload_bytes=LIMIT))
        assert queued(tables) == [first]
        with storage(database_url) as database:
            if ending == "cancelled":
                assert run(database, lambda conn: cancel_with(conn, first, None))
                assert queued(tables) == [""]
        if ending != "cancelled":
            # Asked to stop while a worker had it, which then died: the next one ends it.
            tables.execute("UPDATE edda_instances SET cancel_requested_at = :now", now="2001-01-01 00:00:00.000")
        async with edda(database_url) as app:
            await until(lambda: tables.status(first) == "cancelled")
            return await app.result(await app.start(takes_one_job), timeout=20)

    assert asyncio.run(main()) == "job"
    assert nothing_is_kept(tables)


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_assigned_to_a_wait_that_loses_its_race_goes_to_another(database_url: str, kind: str) -> None:
    """Whichever comes first is taken; the message is received by one of the two, never by none or both."""

    def races(ctx: Any) -> Any:
        yield subscribe(ctx, "jobs", "competing")
        if kind == "plain":
            index, value = ctx.first_of(lambda: wait_event(ctx, "stop"), lambda: receive(ctx, "jobs"))
        else:
            index, value = yield ctx.first_of(wait_event(ctx, "stop"), receive(ctx, "jobs"))
        if index == 1:
            yield publish(ctx, "jobs", "job")  # passed on, so that there always is one for the other
        return [index, value.data]

    flow = declare(kind, races)
    tables = Tables(database_url)

    async def main() -> tuple[Any, Any]:
        first = await left_asleep(database_url, flow)
        send_behind(
            database_url,
            channel_message("jobs", "job", None, max_payload_bytes=LIMIT),
            event_message("stop", "test", "now", instance_id=first, max_payload_bytes=LIMIT),
        )
        assert queued(tables) == [first]
        result = await ended_by_another(database_url, first)
        async with edda(database_url) as app:
            return result, await app.result(await app.start(takes_one_job), timeout=20)

    result, other = asyncio.run(main())
    assert result in ([0, "now"], [1, "job"])
    assert other == "job"
    assert nothing_is_kept(tables)


def test_a_message_assigned_to_an_instance_that_leaves_the_channel_goes_to_another(database_url: str) -> None:
    gate = Gate()

    @activity
    def busy(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    async def leaves(ctx: WorkflowContext) -> str:
        await subscribe(ctx, "jobs", "competing")
        try:
            async with asyncio.timeout(0.2):
                await receive(ctx, "jobs")
        except TimeoutError:
            pass
        await busy(ctx)
        await unsubscribe(ctx, "jobs")
        await wait_event(ctx, "end")
        return "left"

    tables = Tables(database_url)

    async def main() -> tuple[Any, str]:
        async with edda(database_url) as app:
            first = await app.start(leaves)
            await gate.is_reached()
            await app.publish("jobs", "job")
            gate.open()
            await waiting_at(tables, first, "wait_event:1")
            taken = await app.result(await app.start(takes_one_job), timeout=20)
            await app.send_event("end", "test", None)
            return taken, await app.result(first, timeout=20)

    assert asyncio.run(main()) == ("job", "left")


def test_what_is_sent_to_one_of_them_is_for_that_one_alone(database_url: str) -> None:
    tables = Tables(database_url)

    async def main() -> tuple[Any, list[str]]:
        async with begun(database_url, takes_one_job) as (app, other):
            addressed = await app.start(takes_one_job)
            await asleep(tables, addressed)
            await app.send_to(addressed, "yours", channel="jobs")
            result = await app.result(addressed, timeout=20)
            await app.cancel(other)
            return result, queued(tables)

    assert asyncio.run(main()) == ("yours", [])


def test_an_instance_can_pass_a_job_to_a_sibling(database_url: str) -> None:
    @workflow
    async def passes_on(ctx: WorkflowContext, sibling: str) -> None:
        await subscribe(ctx, "jobs", "competing")
        message = await receive(ctx, "jobs")
        await send_to(ctx, sibling, [message.data, "passed on"])

    @workflow
    def gets(ctx: SyncWorkflowContext) -> Any:
        return receive(ctx).data

    async def main() -> Any:
        async with begun(database_url, gets) as (app, sibling):
            await app.publish("jobs", "job")
            await app.start(passes_on, sibling)
            return await app.result(sibling, timeout=20)

    assert asyncio.run(main()) == ["job", "passed on"]


def test_messages_of_very_many_channels_reach_their_one_subscriber(database_url: str) -> None:
    @workflow
    async def listens(ctx: WorkflowContext, channel: str) -> Any:
        await subscribe(ctx, channel, "competing")
        return (await receive(ctx, channel)).data

    channels = [f"jobs-{number}" for number in range(40)]

    async def main() -> list[Any]:
        async with edda(database_url) as app:
            ids = [await app.start(listens, channel) for channel in channels]
            await asleep(Tables(database_url), *ids)
            sent = [channel_message(channel, channel, None, max_payload_bytes=LIMIT) for channel in channels]
            send_behind(database_url, *sent, is_delivered=False)
            return [await app.result(each, timeout=20) for each in ids]

    assert asyncio.run(main()) == channels


@workflow
async def takes_one_job_in_old_code(ctx: WorkflowContext) -> Any:
    return await takes_one_job(ctx)


def test_a_job_is_handed_to_nobody_whose_code_is_gone_until_it_is_back(database_url: str) -> None:
    tables = Tables(database_url)
    everything = workflows.snapshot()
    without_old = {name: found for name, found in everything.items() if name != "takes_one_job_in_old_code"}

    async def main() -> list[Any]:
        async with edda(database_url) as app:
            old = await app.start(takes_one_job_in_old_code)
            await asleep(tables, old)
        workflows.restore(without_old)
        async with edda(database_url) as app:
            new = await app.start(takes_one_job)
            await asleep(tables, new)
            await app.publish("jobs", 1)
            taken = await app.result(new, timeout=20)
            await app.publish("jobs", 2)
            await until(lambda: queued(tables) == [""])
            workflows.restore(everything)  # its module is imported late
            return [taken, await app.result(old, timeout=20)]

    assert asyncio.run(main()) == [1, 2]


def test_a_job_that_came_while_no_worker_of_the_receivers_service_was_there_is_handed_to_it(sqlite_url: str) -> None:
    tables = Tables(sqlite_url)
    instance_id = asyncio.run(left_asleep(sqlite_url, takes_one_job))

    async def main() -> Any:
        async with EddaApp(service_name="another", db_url=sqlite_url, poll_interval_seconds=0.1) as other:
            await other.publish("jobs", 1)
            await until(lambda: queued(tables) == [""])
            async with edda(sqlite_url, poll_interval_seconds=RARELY) as app:
                return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == 1


def test_who_waits_for_an_event_of_a_queues_name_takes_nothing_from_the_queue(database_url: str) -> None:
    @workflow
    async def waits(ctx: WorkflowContext) -> Any:
        await subscribe(ctx, "jobs", "competing")
        return (await wait_event(ctx, "jobs")).data

    tables = Tables(database_url)

    async def main() -> Any:
        async with edda(database_url) as app:
            instance_id = await app.start(waits)
            await asleep(tables, instance_id)
            registered = [bool(row["is_competing"]) for row in tables.rows("SELECT is_competing FROM edda_waits")]
            await app.publish("jobs", "a job")
            await app.send_event("jobs", "test", "an event", instance_id=instance_id)
            return registered, await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == ([False], "an event")
    assert queued(tables) == [""]
