"""Parking: a waiting body stays suspended where it is, or is thrown away without a trace and repeated."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from edda_engine import (
    SyncWorkflowContext,
    WorkflowCancelledError,
    WorkflowContext,
    activity,
    publish,
    receive,
    send_event,
    send_to,
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
    declare,
    ended_by_another,
    left_asleep,
    nothing_is_kept,
    steps_of,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_parked", [0, 1000])
def test_a_body_woken_here_goes_on_where_it_was_if_there_was_room_for_it(
    database_url: str, kind: str, max_parked: int
) -> None:
    bodies: list[bool] = []

    def waits(ctx: Any) -> Any:
        bodies.append(ctx.is_replaying)
        event = yield wait_event(ctx, "paid")
        yield sleep(ctx, 0.2)
        message = yield receive(ctx)
        return [event.data, message.data]

    flow = declare(kind, waits)
    tables = Tables(database_url)

    async def main() -> Any:
        async with begun(database_url, flow, max_parked=max_parked) as (app, instance_id):
            await app.send_event("paid", "test", 1)
            await until(lambda: len(steps_of(tables, instance_id)) == 2)
            await asleep(tables, instance_id)
            await app.send_to(instance_id, 2)
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == [1, 2]
    if max_parked:
        assert bodies == [False]
    else:
        assert bodies[0] is False
        assert len(bodies) >= 3
        assert all(bodies[2:])


def test_the_one_that_waits_longest_makes_room(database_url: str) -> None:
    bodies: list[str] = []

    @workflow
    async def waits(ctx: WorkflowContext, name: str) -> Any:
        bodies.append(name)
        return (await wait_event(ctx, "paid")).data

    tables = Tables(database_url)

    async def main() -> list[Any]:
        async with edda(database_url, max_parked=2) as app:
            ids = []
            for name in ("first", "second", "third"):
                ids.append(await app.start(waits, name))
                await asleep(tables, ids[-1])
            results = []
            for instance_id in reversed(ids):
                await app.send_event("paid", "test", len(results), instance_id=instance_id)
                results.append(await app.result(instance_id, timeout=20))
            return results

    assert asyncio.run(main()) == [0, 1, 2]
    assert bodies == ["first", "second", "third", "first"]


# Nothing is left behind.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["evicted", "stopped"])
def test_the_finally_of_a_body_that_is_thrown_away_has_no_effect(database_url: str, kind: str, way: str) -> None:
    done: list[str] = []
    bodies: list[str] = []

    @activity
    def note(ctx: WorkflowContext, word: str) -> str:
        done.append(word)
        return word

    def waits(ctx: Any) -> Any:
        bodies.append(ctx.instance_id)
        try:
            try:
                yield wait_event(ctx, "paid")
            except Exception:
                yield note(ctx, "except")
            finally:
                yield note(ctx, "finally")
                yield send_to(ctx, ctx.instance_id, "finally")
                yield publish(ctx, "news", "finally")
                yield send_event("over", "test", "finally", instance_id=ctx.instance_id)
        except BaseException:
            yield note(ctx, "after")
            raise
        message = yield receive(ctx)
        over = yield wait_event(ctx, "over")
        return [message.data, over.data]

    flow = declare(kind, waits)
    tables = Tables(database_url)

    async def main() -> Any:
        if way == "stopped":
            instance_id = await left_asleep(database_url, flow)
        else:
            async with begun(database_url, flow, max_parked=1) as (app, instance_id):
                other = await app.start(flow)
                await asleep(tables, other)
                gc.collect()
                assert await app.cancel(other)
        assert done == []
        assert steps_of(tables, instance_id) == []
        assert tables.rows("SELECT * FROM edda_messages") == []
        async with edda(database_url) as app:
            await app.send_event("paid", "test", None)
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == ["finally", "finally"]
    assert done == ["finally"]
    assert len(bodies) == (2 if way == "stopped" else 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_that_is_thrown_away_is_thrown_away(database_url: str, kind: str) -> None:
    class Large:
        """What a body holds on to while it waits."""

    held: list[weakref.ref[Large]] = []

    def waits(ctx: Any) -> Any:
        large = Large()
        held.append(weakref.ref(large))
        yield wait_event(ctx, "paid")
        return large is not None

    flow = declare(kind, waits)
    tables = Tables(database_url)

    async def main() -> Any:
        async with begun(database_url, flow, max_parked=0) as (app, instance_id):

            def is_gone() -> bool:
                gc.collect()
                return held[0]() is None

            await until(is_gone)
            await app.send_event("paid", "test", None)
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) is True
    assert steps_of(tables, tables.value("SELECT instance_id FROM edda_instances")) != []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_parked", [0, 1000])
def test_the_finally_of_a_cancelled_body_has_no_effect(database_url: str, kind: str, max_parked: int) -> None:
    done: list[str] = []

    @activity
    def note(ctx: WorkflowContext, word: str) -> str:
        done.append(word)
        return word

    def waits(ctx: Any) -> Any:
        yield subscribe(ctx, "news")
        try:
            yield receive(ctx, "news")
        finally:
            yield note(ctx, "finally")
            yield publish(ctx, "news", "finally")

    flow = declare(kind, waits)
    tables = Tables(database_url)

    async def main() -> str:
        async with begun(database_url, flow, max_parked=max_parked) as (app, instance_id):
            assert await app.cancel(instance_id)
            with pytest.raises(WorkflowCancelledError):
                await app.result(instance_id, timeout=20)
            await app.publish("news", "too late")
            await until(lambda: nothing_is_kept(tables))
            return instance_id

    instance_id = asyncio.run(main())
    assert done == []
    assert steps_of(tables, instance_id) == [("subscribe:1", "Subscribed")]


def test_a_waiting_instance_that_is_cancelled_while_it_works_stops_at_its_next_step(database_url: str) -> None:
    gate = Gate()
    done: list[str] = []

    @activity
    def at_the_gate(ctx: WorkflowContext) -> None:
        gate.hold()

    @activity
    def note(ctx: WorkflowContext) -> None:
        done.append("after")

    @workflow
    async def waits(ctx: WorkflowContext) -> None:
        await asyncio.gather(at_the_gate(ctx), wait_event(ctx, "paid"))
        await note(ctx)

    tables = Tables(database_url)

    async def main() -> str:
        async with edda(database_url) as app:
            instance_id = await app.start(waits)
            await gate.is_reached()
            assert await app.cancel(instance_id)
            gate.open()
            with pytest.raises(WorkflowCancelledError):
                await app.result(instance_id, timeout=20)
            return instance_id

    asyncio.run(main())
    assert done == []
    assert nothing_is_kept(tables)


# Several workers.


def test_a_body_parked_here_is_thrown_away_when_another_worker_went_on(database_url: str) -> None:
    """And parked there it does not come back here by mistake."""
    bodies: list[str] = []
    tables = Tables(database_url)

    @workflow
    async def waits(ctx: WorkflowContext) -> list[Any]:
        bodies.append(ctx.worker_id)
        found = []
        for _ in range(3):
            found.append((await wait_event(ctx, "paid")).data)
        return found

    async def main() -> tuple[Any, str, str]:
        async with begun(database_url, waits, poll_interval_seconds=RARELY, listen=False) as (first, instance_id):
            async with edda(database_url) as second:
                # The second one looks often and is told; the first one is asleep for a minute.
                for number in range(2):
                    await second.send_event("paid", "test", number, instance_id=instance_id)
                    await until(lambda count=number + 1: len(steps_of(tables, instance_id)) == count)
                    await asleep(tables, instance_id)
                second_id = second.worker_id
                await second.shutdown()
            await first.send_event("paid", "test", 2, instance_id=instance_id)
            return await first.result(instance_id, timeout=20), first.worker_id, second_id

    result, first_id, second_id = asyncio.run(main())
    assert result == [0, 1, 2]
    assert set(bodies) <= {first_id, second_id}
    assert bodies[0] == first_id


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_parked", [0, 1000])
def test_two_workers_exchange_messages(database_url: str, kind: str, max_parked: int) -> None:
    count = 15

    def plays(ctx: Any, serves: bool) -> Any:
        other = (yield receive(ctx)).data
        found = []
        if serves:
            yield send_to(ctx, other, 0, channel="table")
        yield subscribe(ctx, "table", "direct")
        while len(found) < count:
            ball = (yield receive(ctx, "table", 30)).data
            found.append(ball)
            yield send_to(ctx, other, ball + 1, channel="table")
        return found

    flow = declare(kind, plays)

    async def main() -> tuple[Any, Any]:
        options = {"max_parked": max_parked}
        async with edda(database_url, **options) as one, edda(database_url, **options) as two:
            left, right = await one.start(flow, True), await two.start(flow, False)
            await one.send_to(left, right)
            await two.send_to(right, left)
            return await one.result(left, timeout=60), await two.result(right, timeout=60)

    left, right = asyncio.run(main())
    assert right == list(range(0, 2 * count, 2))
    assert left == list(range(1, 2 * count, 2))
    assert nothing_is_kept(Tables(database_url))


def test_a_failed_instance_that_is_taken_up_again_has_its_subscriptions_again(database_url: str) -> None:
    broken = [True]

    @workflow
    async def reads(ctx: WorkflowContext) -> list[Any]:
        await subscribe(ctx, "news")
        await subscribe(ctx, "jobs", "competing")
        found = [(await receive(ctx, "news")).data]
        if broken:
            raise ValueError("broken")
        found.append((await receive(ctx, "news")).data)
        return [*found, (await receive(ctx, "jobs")).data, (await receive(ctx)).data]

    tables = Tables(database_url)

    async def main() -> Any:
        async with begun(database_url, reads) as (app, instance_id):
            await app.publish("news", 1)
            await until(lambda: tables.status(instance_id) == "failed")
            await app.publish("news", "while it was down")
            broken.clear()
            assert await app.retry(instance_id)
            await asleep(tables, instance_id)
            await app.publish("news", 2)
            await app.publish("jobs", 3)
            await app.send_to(instance_id, 4)
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == [1, 2, 3, 4]
    assert nothing_is_kept(tables)


def test_a_plain_body_holds_no_thread_and_no_lease_while_it_waits(database_url: str) -> None:
    @activity
    def note(ctx: WorkflowContext) -> str:
        return "through"

    @workflow
    def waits(ctx: SyncWorkflowContext) -> None:
        wait_event(ctx, "paid")

    @workflow
    def passes(ctx: SyncWorkflowContext) -> str:
        return note(ctx)

    tables = Tables(database_url)

    async def main() -> tuple[Any, list[Any]]:
        async with edda(database_url, threads=1, max_running=2) as app:
            ids = [await app.start(waits) for _ in range(6)]
            await asleep(tables, *ids)
            result = await app.result(await app.start(passes), timeout=20)
            return result, [tables.instance(each)["locked_by"] for each in ids]

    assert asyncio.run(main()) == ("through", [None] * 6)


def test_a_worker_that_stops_hands_its_waiting_bodies_over(database_url: str) -> None:
    @workflow
    async def waits(ctx: WorkflowContext) -> Any:
        return (await wait_event(ctx, "paid")).data

    async def main() -> Any:
        instance_id = await left_asleep(database_url, waits)
        async with edda(database_url) as app:
            await app.send_event("paid", "test", 1)
        return await ended_by_another(database_url, instance_id)

    assert asyncio.run(main()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_sleep_keeps_its_place_while_half_of_them_are_free(database_url: str, kind: str) -> None:
    epochs: list[int] = []
    tables = Tables(database_url)

    def sleeps(ctx: Any) -> Any:
        epochs.append(tables.instance(ctx.instance_id)["lock_epoch"])
        yield sleep(ctx, 0.4)
        epochs.append(tables.instance(ctx.instance_id)["lock_epoch"])
        yield sleep(ctx, 1.2)
        epochs.append(tables.instance(ctx.instance_id)["lock_epoch"])

    flow = declare(kind, sleeps)

    async def main() -> None:
        async with edda(database_url) as app:
            await app.result(await app.start(flow), timeout=20)

    asyncio.run(main())
    assert epochs[0] == epochs[1] < epochs[2]
