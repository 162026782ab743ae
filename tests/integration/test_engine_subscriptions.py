"""Subscriptions: begun once, ended with their instance or on purpose, in one mode a channel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from edda_engine import (
    ChannelModeConflictError,
    MessageTimeoutError,
    SyncWorkflowContext,
    UsageError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    receive,
    sleep,
    subscribe,
    unsubscribe,
    workflow,
)
from tests.integration.engines import NEVER_AGAIN, Gate, Tables, edda, until
from tests.integration.talks import (
    KINDS,
    RARELY,
    asleep,
    begun,
    declare,
    in_two_lives,
    left_asleep,
    nothing_is_kept,
    repeated,
    run_once,
    steps_of,
)

MODES = ("broadcast", "competing", "direct")


@workflow
async def follows(ctx: WorkflowContext, channel: str, count: int, mode: str = "broadcast") -> list[Any]:
    """The first so many messages since its subscription."""
    await subscribe(ctx, channel, mode)
    return [(await receive(ctx, channel)).data for _ in range(count)]


def subscriptions(tables: Tables) -> list[tuple[str, str]]:
    found = tables.rows("SELECT mailbox, channel FROM edda_subscriptions ORDER BY mailbox, channel")
    return [(row["mailbox"], row["channel"]) for row in found]


def test_subscribing_twice_doubles_nothing(database_url: str) -> None:
    @workflow
    async def subscribes(ctx: WorkflowContext) -> list[Any]:
        for _ in range(3):
            await subscribe(ctx, "news")
        return [(await receive(ctx, "news")).data for _ in range(2)]

    async def main() -> Any:
        async with begun(database_url, subscribes) as (app, instance_id):
            await app.publish("news", 1)
            await app.publish("news", 2)
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == [1, 2]
    assert nothing_is_kept(Tables(database_url))


@pytest.mark.parametrize("kind", KINDS)
def test_after_unsubscribing_nothing_comes_and_what_was_unread_is_gone(database_url: str, kind: str) -> None:
    gate = Gate()

    @activity
    def busy(ctx: WorkflowContext) -> None:
        gate.hold()

    def subscribes(ctx: Any) -> Any:
        yield unsubscribe(ctx, "news")  # not subscribed: nothing to end
        yield subscribe(ctx, "news")
        yield busy(ctx)
        yield unsubscribe(ctx, "news")
        yield subscribe(ctx, "news")
        message = yield receive(ctx, "news")
        return message.data

    flow = declare(kind, subscribes)

    async def main() -> Any:
        async with edda(database_url) as app:
            instance_id = await app.start(flow)
            await gate.is_reached()
            await app.publish("news", "unread")
            gate.open()
            await asleep(Tables(database_url), instance_id)
            await app.publish("news", "new")
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == "new"
    assert nothing_is_kept(Tables(database_url))


@pytest.mark.parametrize("ending", ["completed", "failed", "cancelled", "cancelled asleep"])
def test_a_subscription_ends_with_its_instance_and_what_it_had_not_read_is_gone(database_url: str, ending: str) -> None:
    gate = Gate()

    @activity
    def busy(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    async def subscribes(ctx: WorkflowContext) -> None:
        await subscribe(ctx, "news")
        await subscribe(ctx, "jobs", "competing")
        await subscribe(ctx, "letters", "direct")
        await busy(ctx)
        if ending == "failed":
            raise ValueError("broken")
        if ending == "cancelled asleep":
            await sleep(ctx, 3600)

    tables = Tables(database_url)

    async def main() -> None:
        async with edda(database_url) as app:
            instance_id = await app.start(subscribes)
            await gate.is_reached()
            assert subscriptions(tables) == [(instance_id, "jobs"), (instance_id, "letters"), (instance_id, "news")]
            await app.publish("news", "unread")
            await app.send_to(instance_id, "unread", channel="letters")
            await app.send_to(instance_id, "unread")
            await app.send_event("paid", "test", "unread", instance_id=instance_id)
            await until(lambda: len(tables.rows("SELECT * FROM edda_inbox")) == 4)
            if ending == "cancelled":
                await app.cancel(instance_id)
            gate.open()
            if ending == "cancelled asleep":
                await asleep(tables, instance_id)
                await app.cancel(instance_id)
            await until(lambda: tables.status(instance_id) == ending.split()[0])
            await app.publish("news", "for nobody")
            await until(lambda: nothing_is_kept(tables))

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_receiving_without_a_subscription_is_refused_live_and_on_replay(database_url: str, kind: str) -> None:
    gate = Gate()
    seen: list[tuple[type, str]] = []

    @activity
    def at_the_gate(ctx: WorkflowContext) -> None:
        gate.hold()

    def receives(ctx: Any) -> Any:
        try:
            yield receive(ctx, "news")
        except UsageError as error:
            seen.append((type(error), str(error)))
        yield at_the_gate(ctx)
        return "went on"

    flow = declare(kind, receives)
    assert asyncio.run(in_two_lives(database_url, gate, flow)) == "went on"
    _, message = repeated(seen)
    assert "not subscribed" in message
    assert "subscribe(ctx, 'news'" in message
    assert nothing_is_kept(Tables(database_url))


@pytest.mark.parametrize("kind", KINDS)
def test_another_mode_is_a_conflict_that_names_both_live_and_on_replay(database_url: str, kind: str) -> None:
    gate = Gate()
    seen: list[tuple[type, str, Any, Any, Any]] = []

    @activity
    def at_the_gate(ctx: WorkflowContext) -> None:
        gate.hold()

    def subscribes(ctx: Any) -> Any:
        try:
            yield subscribe(ctx, "news", "competing")
        except ChannelModeConflictError as error:
            seen.append((type(error), str(error), error.channel, error.recorded, error.requested))
        yield subscribe(ctx, "news", "broadcast")
        yield at_the_gate(ctx)
        return "went on"

    flow = declare(kind, subscribes)

    async def main() -> Any:
        await left_asleep(database_url, follows, "news", 1)
        return await in_two_lives(database_url, gate, flow)

    assert asyncio.run(main()) == "went on"
    _, message, channel, recorded, requested = repeated(seen)
    assert (channel, recorded, requested) == ("news", "broadcast", "competing")
    assert "'broadcast'" in message
    assert "'competing'" in message


def test_every_two_modes_are_a_conflict_as_long_as_the_channel_is_in_use(database_url: str) -> None:
    @workflow
    async def tries(ctx: WorkflowContext, channel: str) -> list[list[str]]:
        found = []
        for mode in MODES:
            try:
                await subscribe(ctx, channel, mode)
            except ChannelModeConflictError as error:
                found.append([error.recorded, error.requested])
        return found

    tables = Tables(database_url)

    async def main() -> dict[str, Any]:
        async with edda(database_url) as app:
            users = [await app.start(follows, mode, 1, mode) for mode in MODES]
            await asleep(tables, *users)
            found = {mode: await app.result(await app.start(tries, mode), timeout=20) for mode in MODES}
            for user in users:
                await app.cancel(user)
            free = await app.start(follows, "broadcast", 1, "competing")
            await asleep(tables, free)
            return found

    found = asyncio.run(main())
    for mode in MODES:
        assert found[mode] == [[mode, other] for other in MODES if other != mode]


def test_a_conflict_that_nobody_catches_fails_the_workflow(database_url: str) -> None:
    async def main() -> None:
        async with begun(database_url, follows, "news", 1) as (app, _):
            with pytest.raises(WorkflowFailedError) as caught:
                await app.result(await app.start(follows, "news", 1, "direct"), timeout=20)
            assert isinstance(caught.value.__cause__, ChannelModeConflictError)
            assert caught.value.__cause__.recorded == "broadcast"

    asyncio.run(main())


@pytest.mark.parametrize("kind", KINDS)
def test_a_deadline_is_a_timeout_error_live_and_on_replay(database_url: str, kind: str) -> None:
    gate = Gate()
    seen: list[Any] = []

    @activity
    def at_the_gate(ctx: WorkflowContext) -> None:
        gate.hold()

    def receives(ctx: Any) -> Any:
        try:
            yield receive(ctx, timeout_seconds=0.2)
        except TimeoutError as error:
            seen.append((type(error), str(error), vars(error)))
        yield at_the_gate(ctx)
        return ctx.instance_id

    flow = declare(kind, receives)
    instance_id = asyncio.run(in_two_lives(database_url, gate, flow))
    kind_of_error, message, attributes = repeated(seen)
    assert kind_of_error is MessageTimeoutError
    assert attributes == {"channel": "__direct__", "timeout_seconds": 0.2}
    assert "MessageTimeoutError" in message
    assert steps_of(Tables(database_url), instance_id)[0] == ("receive:1", "WaitTimedOut")


def test_no_time_at_all_only_looks(database_url: str) -> None:
    @workflow
    def looks(ctx: SyncWorkflowContext) -> list[Any]:
        found: list[Any] = [receive(ctx).data]
        for _ in range(2):
            try:
                found.append(receive(ctx, timeout_seconds=0).data)
            except MessageTimeoutError:
                found.append("nothing")
        return found

    async def main() -> Any:
        async with edda(database_url, poll_interval_seconds=RARELY) as app:
            instance_id = await looks.options(delay=0.5).start()
            await app.send_to(instance_id, 1)
            await app.send_to(instance_id, 2)
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == [1, 2, "nothing"]


REFUSED: list[Callable[[Any], Any]] = [
    lambda ctx: receive(ctx, ""),
    lambda ctx: receive(ctx, "a\0b"),
    lambda ctx: receive(ctx, "x" * 256),
    lambda ctx: receive(ctx, None),
    lambda ctx: receive(ctx, timeout_seconds=float("nan")),
    lambda ctx: receive(ctx, timeout_seconds="5"),
    lambda ctx: receive(ctx, message_id=""),
    lambda ctx: receive(ctx, message_id="a\0b"),
    lambda ctx: subscribe(ctx, ""),
    lambda ctx: subscribe(ctx, "\ud800"),
    lambda ctx: subscribe(ctx, 7),
    lambda ctx: subscribe(ctx, "news", "loud"),
    lambda ctx: subscribe(ctx, "news", ""),
    lambda ctx: subscribe(ctx, "news", None),
    lambda ctx: unsubscribe(ctx, ""),
    lambda ctx: unsubscribe(ctx, None),
]


def test_what_cannot_be_received_or_subscribed_to_is_refused_and_the_body_goes_on(database_url: str) -> None:
    @workflow
    async def asks(ctx: WorkflowContext) -> list[str]:
        problems = []
        for ask in REFUSED:
            try:
                await ask(ctx)
            except (UsageError, ValueError) as error:
                problems.append(str(error))
        await subscribe(ctx, "news")
        return problems

    problems = asyncio.run(run_once(database_url, asks))
    assert len(problems) == len(REFUSED)
    assert all(problem.startswith(("receive(", "subscribe(", "unsubscribe(")) for problem in problems), problems
    assert "'broadcast', 'competing', 'direct'" in problems[11]


def test_talking_in_an_activity_is_refused_with_a_way_out(database_url: str) -> None:
    @activity(retry_policy=NEVER_AGAIN)
    def talks(ctx: WorkflowContext) -> list[str]:
        problems = []
        for call in (lambda: receive(ctx), lambda: subscribe(ctx, "news"), lambda: unsubscribe(ctx, "news")):
            with pytest.raises(UsageError) as caught:
                call()
            problems.append(str(caught.value))
        return problems

    @workflow
    async def asks(ctx: WorkflowContext) -> list[str]:
        return await talks(ctx)

    problems = asyncio.run(run_once(database_url, asks))
    for call, problem in zip(("receive()", "subscribe()", "unsubscribe()"), problems, strict=True):
        assert problem.startswith(f"{call} was called in activity 'talks:1'")
        assert "the workflow's body" in problem
    assert "as an argument" in problems[0]
