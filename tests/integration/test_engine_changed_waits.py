"""Code that changes while an instance waits: what it waited for is kept while it is blocked, and given up once it goes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from edda_engine import EddaApp, WorkflowContext, activity, receive, sleep, subscribe, wait_event, workflow
from tests.integration.engines import Tables, edda, until
from tests.integration.talks import asleep, expire, instant, left_asleep, make_due, waits_of

AN_HOUR = 3600.0
code = {"version": 1}


@pytest.fixture(autouse=True)
def first_version() -> None:
    code["version"] = 1


@activity
async def old_step(ctx: WorkflowContext) -> None: ...


@activity
async def new_step(ctx: WorkflowContext) -> None: ...


async def step(ctx: WorkflowContext) -> None:
    await (old_step(ctx) if code["version"] == 1 else new_step(ctx))


@workflow
async def sleeps(ctx: WorkflowContext) -> str:
    await step(ctx)
    await sleep(ctx, AN_HOUR)
    return "slept"


@workflow
async def awaits_news(ctx: WorkflowContext) -> Any:
    await step(ctx)
    return (await wait_event(ctx, "news", AN_HOUR)).data


@workflow
async def works(ctx: WorkflowContext) -> Any:
    await subscribe(ctx, "jobs", "competing")
    await step(ctx)
    return (await receive(ctx, "jobs", AN_HOUR)).data


async def is_blocked(tables: Tables, *instance_ids: str) -> None:
    await until(lambda: all(tables.instance(each)["error"] for each in instance_ids))


def deadlines(tables: Tables) -> dict[tuple[str, str], datetime]:
    found = tables.rows("SELECT instance_id, activity_id, expires_at FROM edda_waits")
    return {(row["instance_id"], row["activity_id"]): instant(row["expires_at"]) for row in found}


async def block(app: EddaApp, tables: Tables, *instance_ids: str) -> None:
    """Deploy code that does not fit, and look at the sleeping instances with it."""
    code["version"] = 2
    for instance_id in instance_ids:
        make_due(tables, instance_id)
    app_id = await app.start(sleeps)  # wakes the claimer
    await is_blocked(tables, *instance_ids)
    await app.cancel(app_id)


def test_a_blocked_instance_keeps_its_deadlines_and_gets_the_events_that_come_meanwhile(database_url: str) -> None:
    tables = Tables(database_url)

    async def main() -> tuple[Any, Any, Any, Any]:
        async with edda(database_url) as app:
            sleeper, reader, worker = [await app.start(flow) for flow in (sleeps, awaits_news, works)]
            await asleep(tables, sleeper, reader, worker)
        before = deadlines(tables)
        async with edda(database_url) as app:
            await block(app, tables, sleeper, reader, worker)
            assert {key: due for key, due in deadlines(tables).items() if key in before} == before
            await app.send_event("news", "test", "meanwhile")
            await until(lambda: tables.value("SELECT count(*) FROM edda_inbox WHERE receiver = :id", id=reader))
            code["version"] = 1
            for each in (sleeper, reader, worker):
                assert await app.retry(each) is True
            news = await app.result(reader, timeout=20)
            await asleep(tables, sleeper, worker)
            left = {key: due for key, due in before.items() if key[0] != reader}
            return (
                news,
                left,
                {key: due for key, due in deadlines(tables).items() if key in left},
                tables.status(sleeper),
            )

    news, before, after, status = asyncio.run(main())
    assert news == "meanwhile"
    assert after == before
    assert status == "waiting_for_timer"


def test_a_blocked_receiver_leaves_jobs_to_others_and_takes_them_again_once_it_goes_on(database_url: str) -> None:
    tables = Tables(database_url)

    async def main() -> tuple[Any, Any]:
        async with edda(database_url) as app:
            blocked = await app.start(works)
            await asleep(tables, blocked)
        async with edda(database_url) as app:
            await block(app, tables, blocked)
            other = await app.start(works)
            await asleep(tables, other)
            await app.publish("jobs", 1)
            taken = await app.result(other, timeout=20)
            await app.publish("jobs", 2)
            code["version"] = 1
            assert await app.retry(blocked) is True
            return taken, await app.result(blocked, timeout=20)

    assert asyncio.run(main()) == (1, 2)


@workflow
async def changes_its_mind(ctx: WorkflowContext) -> str:
    """What it waits for is not part of its history yet: the new version may wait for something else."""
    await subscribe(ctx, "jobs", "competing")
    if code["version"] == 1:
        await asyncio.gather(wait_event(ctx, "news", 60), receive(ctx, "jobs"))
    await sleep(ctx, AN_HOUR)
    return "slept"


def test_a_wait_that_the_code_makes_no_more_neither_wakes_its_instance_nor_keeps_jobs(sqlite_url: str) -> None:
    tables = Tables(sqlite_url)
    instance_id = asyncio.run(left_asleep(sqlite_url, changes_its_mind))
    code["version"] = 2
    expire(tables, instance_id)

    async def main() -> None:
        async with edda(sqlite_url) as app:
            await until(lambda: any("sleep" in wait for wait in waits_of(tables, instance_id)))
            await asleep(tables, instance_id)
            await app.publish("jobs", 1)
            await until(lambda: tables.value("SELECT count(*) FROM edda_messages WHERE is_new") == 0)

    asyncio.run(main())
    assert instant(tables.instance(instance_id)["wake_at"]) > datetime.now(UTC) + timedelta(minutes=30)
    assert [row["receiver"] for row in tables.rows("SELECT receiver FROM edda_inbox")] == [""]
    assert [wait for wait in waits_of(tables, instance_id) if "receive" in wait] == []
