"""What has come for a suspended body, and is recorded by the claim itself: the body goes on with it, or it goes back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edda_engine import WorkflowContext, activity, receive, send_to, wait_event, workflow
from tests.integration.engines import Tables, edda, until
from tests.integration.probing import Points
from tests.integration.talks import KINDS, asleep, begun, declare, nothing_is_kept, steps_of


@pytest.mark.parametrize("kind", KINDS)
def test_a_suspended_body_goes_on_without_asking(postgres_url: str, kind: str) -> None:
    points, bodies = Points(), []

    @activity
    def step(ctx: WorkflowContext, data: Any) -> Any:
        return data

    def waits(ctx: Any) -> Any:
        bodies.append(ctx.is_replaying)
        event = yield wait_event(ctx, "paid")
        yield step(ctx, event.data)
        message = yield receive(ctx)
        return [event.data, event.source, message.data]

    flow = declare(kind, waits)
    tables = Tables(postgres_url)

    async def main() -> Any:
        async with begun(postgres_url, flow, probe=points) as (app, instance_id):
            points.passed.clear()
            await app.send_event("paid", "test", {"n": 1}, instance_id=instance_id)
            await until(lambda: len(steps_of(tables, instance_id)) == 2)
            await asleep(tables, instance_id)
            assert points.passed.count("take.before_commit") == 1  # only to say that it waits for the message
            await send_to(app, instance_id, "m")
            result = await app.result(instance_id, timeout=20)
            assert points.passed.count("take.before_commit") == 1
            return result

    assert asyncio.run(main()) == [{"n": 1}, "test", "m"]
    assert bodies == [False]
    assert nothing_is_kept(tables)


def test_a_claim_of_which_nobody_came_to_know_has_recorded_it_for_the_next_one(postgres_url: str) -> None:
    tables, points = Tables(postgres_url), Points()

    @workflow
    async def waits(ctx: WorkflowContext) -> Any:
        return (await wait_event(ctx, "paid")).data

    recorded: list[Any] = []

    async def main() -> Any:
        async with begun(postgres_url, waits, probe=points) as (app, instance_id):

            def lose_the_answer() -> bool:
                recorded.extend(steps_of(tables, instance_id))
                if not recorded:
                    return False
                raise RuntimeError("the answer is lost")

            points.at["claim.after_commit"] = lose_the_answer
            points.passed.clear()
            await app.send_event("paid", "test", "once", instance_id=instance_id)
            result = await app.result(instance_id, timeout=20)
            assert "take.before_commit" not in points.passed
            return result

    assert asyncio.run(main()) == "once"
    assert recorded == [("wait_event:1", "EventReceived")]
    assert nothing_is_kept(tables)


def test_without_room_for_its_body_it_is_replayed_with_what_has_come(postgres_url: str) -> None:
    bodies: list[bool] = []
    tables = Tables(postgres_url)

    @workflow
    async def waits(ctx: WorkflowContext) -> Any:
        bodies.append(ctx.is_replaying)
        return (await wait_event(ctx, "paid")).data

    async def main() -> Any:
        async with begun(postgres_url, waits, max_parked=0) as (app, instance_id):
            await app.send_event("paid", "test", "once", instance_id=instance_id)
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == "once"
    assert len(bodies) == 2
    assert nothing_is_kept(tables)


def test_who_wakes_for_nothing_is_told_all_the_same(postgres_url: str) -> None:
    """Claimed and given back in between, its wait is of an older lease: it asks, as it did before."""
    tables, points = Tables(postgres_url), Points()

    @workflow
    async def waits(ctx: WorkflowContext) -> Any:
        return (await wait_event(ctx, "paid")).data

    async def main() -> Any:
        async with begun(postgres_url, waits, probe=points, poll_interval_seconds=0.05) as (app, instance_id):
            tables.execute("UPDATE edda_instances SET wake_at = now()")
            await until(lambda: tables.value("SELECT lock_epoch FROM edda_instances") > 1)
            await asleep(tables, instance_id)
            points.passed.clear()
            await app.send_event("paid", "test", "late", instance_id=instance_id)
            result = await app.result(instance_id, timeout=20)
            assert points.passed.count("take.before_commit") == 1
            return result

    assert asyncio.run(main()) == "late"
    assert nothing_is_kept(tables)


def test_a_worker_that_has_not_the_body_asks(postgres_url: str) -> None:
    tables = Tables(postgres_url)

    @workflow
    async def waits(ctx: WorkflowContext) -> Any:
        return (await wait_event(ctx, "paid")).data

    async def main() -> Any:
        async with begun(postgres_url, waits) as (_, instance_id):
            pass
        points = Points()
        async with edda(postgres_url, probe=points) as app:
            await app.send_event("paid", "test", "once", instance_id=instance_id)
            result = await app.result(instance_id, timeout=20)
            assert "take.before_commit" in points.passed
            return result

    assert asyncio.run(main()) == "once"
    assert nothing_is_kept(tables)
