"""Races: whichever comes first is recorded, the rest are withdrawn, and no message is lost by losing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from edda_engine import (
    EventTimeoutError,
    SyncWorkflowContext,
    UsageError,
    WorkflowContext,
    activity,
    receive,
    sleep,
    subscribe,
    wait_event,
    workflow,
)
from edda_engine.channels import channel_message
from edda_engine.events import event_message
from tests.integration.engines import NEVER_AGAIN, Gate, Tables, edda, until
from tests.integration.talks import (
    KINDS,
    RARELY,
    asleep,
    begun,
    declare,
    ended_by_another,
    in_two_lives,
    left_asleep,
    nothing_is_kept,
    repeated,
    run_once,
    send_behind,
    sending,
    steps_of,
    waits_of,
)

LIMIT = 1_000_000


def race(ctx: Any, *calls: Callable[[], Any]) -> Any:
    """``ctx.first_of()`` as each kind of body calls it."""
    if isinstance(ctx, SyncWorkflowContext):
        return ctx.first_of(*calls)
    return ctx.first_of(*(call() for call in calls))


def event_to(instance_id: str, event_type: str, data: Any) -> Any:
    return event_message(event_type, "test", data, instance_id=instance_id, max_payload_bytes=LIMIT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", ["event", "message", "timer"])
def test_the_first_to_come_wins_and_the_others_are_withdrawn(database_url: str, kind: str, first: str) -> None:
    gate = Gate()
    seen: list[Any] = []

    @activity
    def at_the_gate(ctx: WorkflowContext) -> None:
        gate.hold()

    def races(ctx: Any) -> Any:
        index, value = yield race(
            ctx,
            lambda: wait_event(ctx, "paid"),
            lambda: receive(ctx),
            lambda: sleep(ctx, 0.3 if first == "timer" else 3600),
        )
        seen.append((index, value))
        yield at_the_gate(ctx)
        return ctx.instance_id

    flow = declare(kind, races)
    tables = Tables(database_url)

    async def come(app: Any, instance_id: str) -> None:
        await until(lambda: len(waits_of(tables, instance_id)) == 3 or gate.reached.is_set())
        if first == "event":
            await app.send_event("paid", "test", "event")
        elif first == "message":
            await app.send_to(instance_id, "message")

    options = {"poll_interval_seconds": RARELY}
    instance_id = asyncio.run(in_two_lives(database_url, gate, flow, meanwhile=come, **options))
    index, value = repeated(seen)
    assert index == ["event", "message", "timer"].index(first)
    assert (value if value is None else value.data) == {"timer": None}.get(first, first)
    kinds = [event_type for _, event_type in steps_of(tables, instance_id)]
    assert kinds.count("WaitWithdrawn") == 2
    assert kinds.count("ValueRecorded") == 1
    assert nothing_is_kept(tables)


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_for_a_loser_later_is_there_for_the_next_wait(database_url: str, kind: str) -> None:
    def races(ctx: Any) -> Any:
        index, value = yield race(ctx, lambda: wait_event(ctx, "paid"), lambda: wait_event(ctx, "shipped"))
        other = yield wait_event(ctx, ("shipped", "paid")[index])
        return [index, value.data, other.data]

    flow = declare(kind, races)

    async def main() -> Any:
        async with begun(database_url, flow) as (app, instance_id):
            await app.send_event("shipped", "test", 1, instance_id=instance_id)
            await app.send_event("paid", "test", 2, instance_id=instance_id)
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) in ([1, 1, 2], [0, 2, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_that_a_loser_has_taken_already_goes_back_to_where_it_lay(database_url: str, kind: str) -> None:
    """All are there when the body asks: the first branch wins, the others' messages keep their places."""
    gate = Gate()
    seen: list[Any] = []

    @activity
    def at_the_gate(ctx: WorkflowContext) -> None:
        gate.hold()

    def races(ctx: Any) -> Any:
        index, value = yield race(ctx, lambda: wait_event(ctx, "a"), lambda: wait_event(ctx, "b"), lambda: receive(ctx))
        found = [[index, value.data]]
        yield at_the_gate(ctx)
        for event_type in ("a", "b", "b"):
            if event_type == "a" and index == 0:
                continue
            event = yield wait_event(ctx, event_type)
            found.append([event_type, event.data])
        message = yield receive(ctx)
        found.append(["direct", message.data])
        seen.append(found)
        return found

    flow = declare(kind, races)
    tables = Tables(database_url)

    async def main() -> Any:
        instance_id = await left_asleep(database_url, flow)
        events = [event_to(instance_id, name, data) for name, data in (("b", 1), ("a", 2), ("b", 3))]
        send_behind(database_url, *events)
        async with edda(database_url) as app:
            await app.send_to(instance_id, 4)
            await gate.is_reached()
            await app.shutdown(timeout=0)
        gate.open()
        return await ended_by_another(database_url, instance_id)

    found = asyncio.run(main())
    assert found[0] == [0, 2]
    assert found[1:] == [["b", 1], ["b", 3], ["direct", 4]]
    assert nothing_is_kept(tables)


@pytest.mark.parametrize("max_parked", [0, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_in_a_loop_of_races_everything_comes_once_and_in_order(database_url: str, kind: str, max_parked: int) -> None:
    count = 12

    def races(ctx: Any) -> Any:
        yield subscribe(ctx, "jobs", "competing")
        found: list[Any] = [[], [], []]
        for _ in range(3 * count):
            index, value = yield race(
                ctx, lambda: wait_event(ctx, "paid"), lambda: receive(ctx), lambda: receive(ctx, "jobs")
            )
            found[index].append(value.data)
        return found

    flow = declare(kind, races)

    async def main() -> Any:
        options = {"max_parked": max_parked}
        async with edda(database_url, **options) as app:
            instance_id = await app.start(flow)
            for number in range(count // 2):
                await app.send_event("paid", "test", number, instance_id=instance_id)
                await app.send_to(instance_id, number)
                await app.publish("jobs", number)
        async with edda(database_url, **options) as app:
            for number in range(count // 2, count):
                await app.send_event("paid", "test", number, instance_id=instance_id)
                await app.send_to(instance_id, number)
                await app.publish("jobs", number)
            return await app.result(instance_id, timeout=60)

    assert asyncio.run(main()) == [list(range(count))] * 3
    assert nothing_is_kept(Tables(database_url))


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_the_first_is_raised_live_and_on_replay(database_url: str, kind: str) -> None:
    gate = Gate()
    seen: list[Any] = []

    @activity
    def at_the_gate(ctx: WorkflowContext) -> None:
        gate.hold()

    def races(ctx: Any) -> Any:
        try:
            yield race(ctx, lambda: sleep(ctx, 3600), lambda: wait_event(ctx, "paid", 0.2))
        except EventTimeoutError as error:
            seen.append(str(error))
        yield at_the_gate(ctx)
        return "went on"

    flow = declare(kind, races)
    assert asyncio.run(in_two_lives(database_url, gate, flow)) == "went on"
    assert "'paid'" in repeated(seen)


def test_branches_of_several_steps_race_and_replay(database_url: str) -> None:
    gate = Gate()
    seen: list[Any] = []
    done: list[str] = []

    @activity
    def note(ctx: WorkflowContext, word: str) -> str:
        done.append(word)
        return word

    @activity
    def at_the_gate(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    async def races(ctx: WorkflowContext) -> str:
        async def paid() -> list[str]:
            first = await note(ctx, "asked for payment")
            event = await wait_event(ctx, "paid")
            return [first, event.data, await note(ctx, "thanked")]

        async def reminded() -> str:
            await sleep(ctx, 0.2)
            await note(ctx, "reminded")
            await sleep(ctx, 3600)
            return await note(ctx, "never")

        seen.append(await ctx.first_of(paid(), reminded()))
        await at_the_gate(ctx)
        return ctx.instance_id

    async def come(app: Any, instance_id: str) -> None:
        await until(lambda: "reminded" in done)
        await asleep(Tables(database_url), instance_id)
        await app.send_event("paid", "test", "in full")

    asyncio.run(in_two_lives(database_url, gate, races, meanwhile=come))
    assert repeated(seen) == (0, ["asked for payment", "in full", "thanked"])
    assert done == ["asked for payment", "reminded", "thanked"]
    assert nothing_is_kept(Tables(database_url))


def test_a_plain_body_races_branches_of_several_steps_too(database_url: str) -> None:
    gate = Gate()
    seen: list[Any] = []

    @activity
    def at_the_gate(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    def races(ctx: SyncWorkflowContext) -> str:
        def both() -> list[Any]:
            return [wait_event(ctx, "a").data, wait_event(ctx, "b").data]

        def never() -> None:
            sleep(ctx, 0.05)
            sleep(ctx, 3600)

        seen.append(ctx.first_of(never, both))
        at_the_gate(ctx)
        return ctx.instance_id

    both = sending(("b", 2), ("a", 1))
    asyncio.run(in_two_lives(database_url, gate, races, meanwhile=both))
    assert repeated(seen) == (1, [1, 2])


def test_an_activity_can_win_and_can_lose(database_url: str) -> None:
    gate = Gate()

    @activity
    async def quick(ctx: WorkflowContext) -> str:
        return "quick"

    @activity(retry_policy=NEVER_AGAIN)
    async def slow(ctx: WorkflowContext) -> str:
        await gate.hold_async()
        return "slow"

    @workflow
    async def races(ctx: WorkflowContext) -> list[Any]:
        won = await ctx.first_of(quick(ctx), wait_event(ctx, "never"))
        lost = await ctx.first_of(slow(ctx), sleep(ctx, 0.1))
        return [list(won), list(lost), await quick(ctx)]

    async def main() -> Any:
        async with edda(database_url) as app:
            instance_id = await app.start(races)
            result = await app.result(instance_id, timeout=20)
            gate.open()
            return result

    assert asyncio.run(main()) == [[0, "quick"], [1, None], "quick"]


def test_races_can_be_nested(database_url: str) -> None:
    gate = Gate()
    seen: list[Any] = []

    @activity
    def at_the_gate(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    async def races(ctx: WorkflowContext) -> str:
        inner = ctx.first_of(wait_event(ctx, "a"), wait_event(ctx, "b"))
        index, value = await ctx.first_of(sleep(ctx, 3600), inner)
        seen.append((index, value[0], value[1].data))
        await at_the_gate(ctx)
        return ctx.instance_id

    asyncio.run(in_two_lives(database_url, gate, races, meanwhile=sending(("b", 7))))
    assert repeated(seen) == (1, 1, 7)
    assert nothing_is_kept(Tables(database_url))


def test_what_cannot_race_is_refused_and_the_body_goes_on(database_url: str) -> None:
    @workflow
    async def races(ctx: WorkflowContext) -> list[str]:
        problems = []
        for branches in ((), (1,), (lambda: sleep(ctx, 1),)):
            try:
                await ctx.first_of(*branches)
            except UsageError as error:
                problems.append(str(error))
        await sleep(ctx, 0.01)
        return problems

    @workflow
    def races_plainly(ctx: SyncWorkflowContext) -> list[str]:
        problems = []
        for branches in ((), (1,)):
            try:
                ctx.first_of(*branches)
            except UsageError as error:
                problems.append(str(error))
        sleep(ctx, 0.01)
        return problems

    found = asyncio.run(run_once(database_url, races))
    assert len(found) == 3
    assert "at least one branch" in found[0]
    assert "takes calls and other awaitables, not 1" in found[1]
    plainly = asyncio.run(run_once(database_url, races_plainly))
    assert "at least one branch" in plainly[0]
    assert "lambda" in plainly[1]


def test_a_message_for_a_race_of_one_reaches_a_subscriber_once(database_url: str) -> None:
    @workflow
    async def races(ctx: WorkflowContext) -> Any:
        await subscribe(ctx, "news")
        _, message = await ctx.first_of(receive(ctx, "news"))
        return message.data

    async def main() -> Any:
        async with begun(database_url, races) as (app, instance_id):
            send_behind(database_url, channel_message("news", 1, None, max_payload_bytes=LIMIT), is_delivered=False)
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == 1
