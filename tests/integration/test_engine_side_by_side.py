"""Several waits and activities at once: gather, timeouts of asyncio, tasks of the body's own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edda_engine import (
    EventTimeoutError,
    SyncWorkflowContext,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    receive,
    sleep,
    subscribe,
    wait_event,
    workflow,
)
from tests.integration.engines import Gate, Tables, edda, until
from tests.integration.talks import (
    KINDS,
    RARELY,
    asleep,
    begun,
    ended_by_another,
    in_two_lives,
    left_asleep,
    nothing_is_kept,
    repeated,
    sending,
    steps_of,
    waiting_at,
    waits_of,
)


@pytest.mark.parametrize("max_parked", [0, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gather_of_waits_and_activities_gives_all_in_order(database_url: str, kind: str, max_parked: int) -> None:
    done: list[str] = []

    @activity
    def note(ctx: WorkflowContext, word: str) -> str:
        done.append(word)
        return word

    if kind == "async":

        @workflow
        async def gathers(ctx: WorkflowContext) -> list[Any]:
            event, message, _, word = await asyncio.gather(
                wait_event(ctx, "paid"), receive(ctx), sleep(ctx, 0.2), note(ctx, "x")
            )
            return [event.data, message.data, word, await note(ctx, "y")]
    else:

        @workflow
        def gathers(ctx: SyncWorkflowContext) -> list[Any]:
            event, message, _, word = ctx.gather(
                lambda: wait_event(ctx, "paid"),
                lambda: receive(ctx),
                lambda: sleep(ctx, 0.2),
                lambda: note(ctx, "x"),
            )
            return [event.data, message.data, word, note(ctx, "y")]

    async def main() -> Any:
        async with begun(database_url, gathers, max_parked=max_parked) as (app, instance_id):
            await app.send_to(instance_id, "message")
            await app.send_event("paid", "test", "event")
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == ["event", "message", "x", "y"]
    assert done == ["x", "y"]
    assert nothing_is_kept(Tables(database_url))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sender", ["itself", "another worker"])
def test_what_comes_while_an_activity_is_under_way_reaches_the_other_branch_at_once(
    database_url: str, kind: str, sender: str
) -> None:
    gate = Gate()

    @activity
    def long_work(ctx: WorkflowContext) -> str:
        gate.hold()
        return "worked"

    if kind == "async":

        @workflow
        async def gathers(ctx: WorkflowContext) -> list[Any]:
            event, word = await asyncio.gather(wait_event(ctx, "paid"), long_work(ctx))
            return [event.data, word]
    else:

        @workflow
        def gathers(ctx: SyncWorkflowContext) -> list[Any]:
            event, word = ctx.gather(lambda: wait_event(ctx, "paid"), lambda: long_work(ctx))
            return [event.data, word]

    tables = Tables(database_url)

    async def main() -> Any:
        interval = RARELY if sender == "itself" else 0.1
        async with edda(database_url, poll_interval_seconds=interval) as app:
            instance_id = await app.start(gathers)
            await gate.is_reached()
            await until(lambda: waits_of(tables, instance_id))
            assert tables.status(instance_id) == "running"
            if sender == "itself":
                await app.send_event("paid", "test", "event")
                await until(lambda: [kind for _, kind in steps_of(tables, instance_id)] == ["EventReceived"])
            else:
                async with edda(database_url) as other:
                    await other.send_event("paid", "test", "event", instance_id=instance_id)
                    await until(lambda: [kind for _, kind in steps_of(tables, instance_id)] == ["EventReceived"])
            gate.open()
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == ["event", "worked"]


def test_two_waits_for_one_type_get_one_event_each(database_url: str) -> None:
    @workflow
    def gathers(ctx: SyncWorkflowContext) -> list[Any]:
        found = ctx.gather(*(lambda: wait_event(ctx, "paid").data for _ in range(3)))
        return sorted(found)

    tables = Tables(database_url)

    async def main() -> Any:
        async with begun(database_url, gathers) as (app, instance_id):
            for number in range(3):
                await app.send_event("paid", "test", number, instance_id=instance_id)
                if number < 2:
                    await until(lambda left=2 - number: len(waits_of(tables, instance_id)) == left)
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == [0, 1, 2]


def test_very_many_branches_wait_in_one_body(database_url: str) -> None:
    count = 60

    @workflow
    async def gathers(ctx: WorkflowContext) -> list[Any]:
        events = await asyncio.gather(*(wait_event(ctx, f"paid.{number}") for number in range(count)))
        return [event.data for event in events]

    async def main() -> Any:
        tables = Tables(database_url)
        async with edda(database_url) as app:
            instance_id = await app.start(gathers)
            await until(lambda: len(waits_of(tables, instance_id)) == count)
            await asleep(tables, instance_id)
            for number in reversed(range(count)):
                await app.send_event(f"paid.{number}", "test", number)
            return await app.result(instance_id, timeout=60)

    assert asyncio.run(main()) == list(range(count))
    assert nothing_is_kept(Tables(database_url))


def test_one_branch_that_fails_ends_the_body_and_the_others_waits(database_url: str) -> None:
    tables = Tables(database_url)

    @workflow
    async def gathers(ctx: WorkflowContext) -> None:
        await subscribe(ctx, "jobs", "competing")
        await asyncio.gather(wait_event(ctx, "paid", 0.2), receive(ctx, "jobs"), sleep(ctx, 3600))

    async def main() -> None:
        async with edda(database_url) as app:
            instance_id = await app.start(gathers)
            with pytest.raises(WorkflowFailedError) as caught:
                await app.result(instance_id, timeout=20)
            assert isinstance(caught.value.__cause__, EventTimeoutError)

    asyncio.run(main())
    assert nothing_is_kept(tables)


def test_errors_can_be_gathered_beside_values(database_url: str) -> None:
    @workflow
    async def gathers(ctx: WorkflowContext) -> list[str]:
        found = await asyncio.gather(wait_event(ctx, "a", 0.1), receive(ctx), return_exceptions=True)
        return [type(each).__name__ for each in found]

    @workflow
    def gathers_plainly(ctx: SyncWorkflowContext) -> list[str]:
        found = ctx.gather(lambda: wait_event(ctx, "a", 0.1), lambda: receive(ctx), return_exceptions=True)
        return [type(each).__name__ for each in found]

    async def main() -> list[Any]:
        async with edda(database_url) as app:
            ids = [await app.start(gathers), await app.start(gathers_plainly)]
            for each in ids:
                await app.send_to(each, 1)
            return [await app.result(each, timeout=20) for each in ids]

    assert asyncio.run(main()) == [["EventTimeoutError", "ChannelMessage"]] * 2


# Calls in tasks of their own.


@pytest.mark.parametrize("way", ["wait_for", "task", "shield", "gather", "task group"])
@pytest.mark.parametrize("max_parked", [0, 1000])
def test_a_call_that_a_task_carries_out_numbers_no_branch(database_url: str, way: str, max_parked: int) -> None:
    done: list[int] = []

    @activity
    def do(ctx: WorkflowContext, number: int) -> int:
        done.append(number)
        return number

    async def first(ctx: WorkflowContext) -> Any:
        if way == "wait_for":
            return await asyncio.wait_for(do(ctx, 1), 30)
        if way == "task":
            return await asyncio.create_task(do(ctx, 1))
        if way == "shield":
            return await asyncio.shield(do(ctx, 1))
        if way == "gather":
            return (await asyncio.gather(do(ctx, 1)))[0]
        async with asyncio.TaskGroup() as group:
            task = group.create_task(do(ctx, 1))
        return task.result()

    async def branch(ctx: WorkflowContext) -> list[int]:
        before = await do(ctx, 2)
        await wait_event(ctx, "go on")
        return [before, await do(ctx, 3)]

    @workflow
    async def flow(ctx: WorkflowContext) -> Any:
        return [await first(ctx), *await asyncio.create_task(branch(ctx))]

    tables = Tables(database_url)

    async def main() -> Any:
        async with edda(database_url, max_parked=max_parked) as app:
            instance_id = await app.start(flow)
            await asleep(tables, instance_id)
        async with edda(database_url, max_parked=max_parked) as app:
            await app.send_event("go on", "test", None, instance_id=instance_id)
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == [1, 2, 3]
    assert done == [1, 2, 3], "an activity was done again on replay"
    assert {row["branch"] for row in tables.rows("SELECT branch FROM edda_history")} == {"", "1"}


# Timeouts of asyncio around waits.


@pytest.mark.parametrize("way", ["timeout", "wait_for", "cancelled task", "task group"])
def test_a_wait_that_the_body_gives_up_is_withdrawn_live_and_on_replay(database_url: str, way: str) -> None:
    gate = Gate()
    seen: list[str] = []

    @activity
    def at_the_gate(ctx: WorkflowContext) -> None:
        gate.hold()

    async def give_up(ctx: WorkflowContext) -> None:
        if way == "timeout":
            async with asyncio.timeout(0.3):
                await wait_event(ctx, "paid")
        elif way == "wait_for":
            await asyncio.wait_for(wait_event(ctx, "paid"), 0.3)
        elif way == "task group":
            async with asyncio.timeout(0.3), asyncio.TaskGroup() as group:
                group.create_task(wait_event(ctx, "paid"))
                group.create_task(receive(ctx))
        else:
            task = asyncio.create_task(wait_event(ctx, "paid"))
            await sleep(ctx, 0.3)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                raise TimeoutError from None

    @workflow
    async def waits(ctx: WorkflowContext) -> Any:
        try:
            await give_up(ctx)
        except TimeoutError:
            seen.append("given up")
        await at_the_gate(ctx)
        return (await wait_event(ctx, "paid")).data

    tables = Tables(database_url)

    async def main() -> tuple[Any, list[str]]:
        async with edda(database_url, poll_interval_seconds=RARELY) as app:
            instance_id = await app.start(waits)
            await gate.is_reached()
            left = waits_of(tables, instance_id)
            await app.send_event("paid", "test", "later", instance_id=instance_id)
            await app.shutdown(timeout=0)
        gate.open()
        return await ended_by_another(database_url, instance_id), left

    result, left = asyncio.run(main())
    assert result == "later"
    assert left == []
    assert repeated(seen) == "given up"
    assert nothing_is_kept(tables)


def test_a_parked_body_that_gives_up_a_wait_without_deadline_goes_on(database_url: str) -> None:
    """The instance is due never by itself: the body must ask for its lease back."""

    @activity
    def note(ctx: WorkflowContext) -> str:
        return "noted"

    @workflow
    async def waits(ctx: WorkflowContext) -> str:
        try:
            async with asyncio.timeout(1.0):
                await wait_event(ctx, "paid")
        except TimeoutError:
            return await note(ctx)
        return "paid"

    async def main() -> Any:
        async with begun(database_url, waits, poll_interval_seconds=RARELY) as (app, instance_id):
            assert Tables(database_url).instance(instance_id)["wake_at"] is None
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == "noted"


def test_a_wait_that_ends_in_time_is_not_disturbed_by_its_timeout(database_url: str) -> None:
    gate = Gate()
    seen: list[Any] = []

    @activity
    def at_the_gate(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    async def waits(ctx: WorkflowContext) -> None:
        async with asyncio.timeout(60):
            seen.append((await wait_event(ctx, "paid")).data)
        await at_the_gate(ctx)

    asyncio.run(in_two_lives(database_url, gate, waits, meanwhile=sending(("paid", 5))))
    assert repeated(seen) == 5


def test_a_branch_still_waiting_when_the_body_ends_is_no_obstacle(database_url: str) -> None:
    tables = Tables(database_url)
    tasks: list[Any] = []

    @workflow
    async def leaves(ctx: WorkflowContext) -> str:
        tasks.append(asyncio.create_task(wait_event(ctx, "never")))
        await wait_event(ctx, "paid")
        return "left"

    async def main() -> Any:
        instance_id = await left_asleep(database_url, leaves)
        async with edda(database_url) as app:
            await waiting_at(tables, instance_id, "wait_event:2")
            await app.send_event("paid", "test", None)
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == "left"
    assert nothing_is_kept(tables)
