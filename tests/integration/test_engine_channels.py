"""Channels in broadcast and direct mode: who gets what, in which order, from when on, until when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from edda_engine import (
    ChannelMessage,
    SyncWorkflowContext,
    WorkflowContext,
    activity,
    publish,
    receive,
    subscribe,
    workflow,
)
from tests.integration.engines import Gate, Tables, edda
from tests.integration.talks import (
    KINDS,
    RARELY,
    asleep,
    begun,
    declare,
    in_two_lives,
    nothing_is_kept,
    repeated,
    steps_of,
)


@workflow
async def reads_channel(ctx: WorkflowContext, channel: str, count: int, mode: str = "broadcast") -> list[Any]:
    """The first so many messages since its subscription."""
    await subscribe(ctx, channel, mode)
    return [(await receive(ctx, channel)).data for _ in range(count)]


# Broadcast.


@pytest.mark.parametrize("kind", KINDS)
def test_every_subscriber_gets_every_message_in_order(database_url: str, kind: str) -> None:
    def subscribes(ctx: Any, count: int) -> Any:
        yield subscribe(ctx, "news")
        found = []
        for _ in range(count):
            message = yield receive(ctx, "news")
            found.append(message.data)
        return found

    flow = declare(kind, subscribes)
    tables = Tables(database_url)

    async def main() -> list[Any]:
        async with edda(database_url, poll_interval_seconds=RARELY) as app:
            ids = [await app.start(flow, 10) for _ in range(3)]
            await asleep(tables, *ids)
            for number in range(10):
                await app.publish("news", number)
            return [await app.result(each, timeout=20) for each in ids]

    assert asyncio.run(main()) == [list(range(10))] * 3
    assert nothing_is_kept(tables)


def test_a_subscriber_gets_what_is_published_after_its_subscription_and_nothing_older(database_url: str) -> None:
    """Also on a channel that nobody knew before."""
    tables = Tables(database_url)

    async def main() -> tuple[list[Any], list[Any]]:
        async with edda(database_url) as app:
            await app.publish("news", "before anybody")
            first = await app.start(reads_channel, "news", 4)
            await asleep(tables, first)
            await app.publish("news", 1)
            await app.publish("news", 2)
            second = await app.start(reads_channel, "news", 2)
            await asleep(tables, second)
            await app.publish("news", 3)
            await app.publish("news", 4)
            return await app.result(first, timeout=20), await app.result(second, timeout=20)

    assert asyncio.run(main()) == ([1, 2, 3, 4], [3, 4])


def test_nothing_is_skipped_while_a_subscriber_does_something_else(database_url: str) -> None:
    gate = Gate()

    @activity
    def busy(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    def subscribes(ctx: SyncWorkflowContext) -> list[Any]:
        subscribe(ctx, "news")
        busy(ctx)
        return [receive(ctx, "news").data for _ in range(20)]

    async def main() -> Any:
        async with edda(database_url) as app:
            instance_id = await app.start(subscribes)
            await gate.is_reached()
            for number in range(20):
                await app.publish("news", number)
            gate.open()
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == list(range(20))


def test_nothing_is_skipped_when_many_publish_at_once(database_url: str) -> None:
    """Each sender's messages in its order, and all subscribers the same."""
    count, senders = 15, 6

    @activity
    def tell(ctx: WorkflowContext, sender: int, number: int) -> None:
        publish(ctx, "news", [sender, number])

    @workflow
    async def tells(ctx: WorkflowContext, sender: int) -> None:
        for number in range(count):
            await tell(ctx, sender, number)

    tables = Tables(database_url)

    async def main() -> list[Any]:
        async with edda(database_url) as app, edda(database_url) as other:
            ids = [await app.start(reads_channel, "news", count * senders) for _ in range(3)]
            await asleep(tables, *ids)
            for sender in range(senders):
                await (app if sender % 2 else other).start(tells, sender)
            return [await app.result(each, timeout=60) for each in ids]

    first, second, third = asyncio.run(main())
    assert first == second == third
    for sender in range(senders):
        assert [number for who, number in first if who == sender] == list(range(count))


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_arrives_with_everything_and_equal_on_replay(database_url: str, kind: str) -> None:
    gate = Gate()
    seen: list[ChannelMessage] = []
    sent: list[str] = []

    @activity
    def at_the_gate(ctx: WorkflowContext) -> None:
        gate.hold()

    def subscribes(ctx: Any) -> Any:
        yield subscribe(ctx, "news")
        seen.append((yield receive(ctx, "news", 60, message_id="first")))
        yield at_the_gate(ctx)
        return ctx.instance_id

    flow = declare(kind, subscribes)
    tables = Tables(database_url)

    async def send(app: Any, instance_id: str) -> None:
        await asleep(tables, instance_id)
        sent.append(await app.publish("news", {"a": [1, None]}, {"by": "me", "n": 1}))

    before = datetime.now(UTC)
    instance_id = asyncio.run(in_two_lives(database_url, gate, flow, meanwhile=send))
    message = repeated(seen)
    assert [message.id] == sent
    assert (message.channel, message.data, dict(message.metadata)) == ("news", {"a": [1, None]}, {"by": "me", "n": 1})
    assert message.published_at.utcoffset() == timedelta(0)
    assert before - timedelta(seconds=5) <= message.published_at <= datetime.now(UTC) + timedelta(seconds=5)
    assert steps_of(tables, instance_id)[:2] == [("subscribe:1", "Subscribed"), ("first", "MessageReceived")]


def test_a_message_is_immutable(database_url: str) -> None:
    refusals: list[type[Exception]] = []

    @workflow
    async def subscribes(ctx: WorkflowContext) -> None:
        message = await receive(ctx)
        changes: list[Callable[[], Any]] = [
            lambda: setattr(message, "data", 1),
            lambda: setattr(message, "channel", "mine"),
            lambda: message.metadata.__setitem__("a", 1),  # type: ignore[attr-defined]
            lambda: setattr(message, "anything", 1),
        ]
        for change in changes:
            try:
                change()
            except (AttributeError, TypeError) as error:
                refusals.append(type(error))
        assert message in {message}

    async def main() -> None:
        async with begun(database_url, subscribes) as (app, instance_id):
            await app.send_to(instance_id, {"a": 1})
            await app.result(instance_id, timeout=20)

    asyncio.run(main())
    assert len(refusals) == 4


def test_data_of_any_kind_arrives_as_it_was_published(database_url: str) -> None:
    published = [{"a": {"b": [1.5, None]}}, [1, 2], "", "text", 7, 5.0, 10**30, True, None, b"\x00\xff", b""]
    tables = Tables(database_url)

    @workflow
    async def subscribes(ctx: WorkflowContext) -> list[str]:
        await subscribe(ctx, "news")
        return [repr((await receive(ctx, "news")).data) for _ in published]

    async def main() -> Any:
        async with edda(database_url) as app:
            instance_id = await app.start(subscribes)
            await asleep(tables, instance_id)
            for data in published:
                await app.publish("news", data)
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == [repr(data) for data in published]


# Direct.


def test_every_instance_can_be_sent_messages_without_a_subscription(database_url: str) -> None:
    @workflow
    async def receives(ctx: WorkflowContext) -> list[Any]:
        found = [await receive(ctx), await receive(ctx)]
        return [[message.channel, message.data, dict(message.metadata)] for message in found]

    async def main() -> tuple[Any, str]:
        async with begun(database_url, receives) as (app, instance_id):
            other = await app.start(receives)
            await asleep(Tables(database_url), other)
            await app.send_to(instance_id, 1)
            await app.send_to(instance_id, 2, metadata={"a": 1})
            return await app.result(instance_id, timeout=20), (await app.get(other)).status

    found, status = asyncio.run(main())
    assert found == [["__direct__", 1, {}], ["__direct__", 2, {"a": 1}]]
    assert status == "waiting_for_message"


def test_a_message_to_one_instance_waits_until_it_subscribes_and_asks(database_url: str) -> None:
    gate = Gate()

    @activity
    def busy(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    async def receives(ctx: WorkflowContext) -> list[Any]:
        await busy(ctx)
        await subscribe(ctx, "letters", "direct")
        return [(await receive(ctx, "letters")).data for _ in range(2)]

    async def main() -> Any:
        async with edda(database_url) as app:
            instance_id = await app.start(receives)
            await app.send_to(instance_id, 1, channel="letters")
            await gate.is_reached()
            await app.send_to(instance_id, 2, channel="letters")
            gate.open()
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == [1, 2]


def test_publishing_reaches_nobody_in_direct_mode_and_one_instance_can_be_addressed_in_any_mode(
    database_url: str,
) -> None:
    tables = Tables(database_url)

    async def main() -> list[Any]:
        async with edda(database_url) as app:
            direct, broadcast, competing = [
                await app.start(reads_channel, mode, 1, mode) for mode in ("direct", "broadcast", "competing")
            ]
            bystander = await app.start(reads_channel, "broadcast", 1, "broadcast")
            await asleep(tables, direct, broadcast, competing, bystander)
            await app.publish("direct", "to all")
            for receiver, channel in ((direct, "direct"), (broadcast, "broadcast"), (competing, "competing")):
                await app.send_to(receiver, "to you", channel=channel)
            results = [await app.result(each, timeout=20) for each in (direct, broadcast, competing)]
            return [*results, str((await app.get(bystander)).status)]

    assert asyncio.run(main()) == [["to you"], ["to you"], ["to you"], "waiting_for_message"]
