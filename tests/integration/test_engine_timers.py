"""Timers: the due time is fixed once, holds across restarts, and is waited for without holding anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import make_url

from edda_engine import (
    SyncWorkflowContext,
    WorkflowContext,
    activity,
    sleep,
    sleep_until,
    workflow,
)
from tests.integration.engines import Gate, Tables, edda, interrupted_at, until
from tests.integration.talks import (
    KINDS,
    RARELY,
    asleep,
    begun,
    declare,
    ended_by_another,
    expire,
    instant,
    left_asleep,
    make_due,
    nothing_is_kept,
    run_once,
    steps_of,
    waits_of,
)

NOON_2099 = datetime(2099, 1, 1, 12, tzinfo=UTC)


def due_times(tables: Tables, instance_id: str) -> tuple[datetime, datetime]:
    """When the one timer of an instance ends, and when the instance is due."""
    expires_at = tables.value("SELECT expires_at FROM edda_waits WHERE instance_id = :id", id=instance_id)
    return instant(expires_at), instant(tables.instance(instance_id)["wake_at"])


SECONDS: list[Any] = [0.05, 0.3, timedelta(seconds=0.3), 1.2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_timer_fires_after_its_seconds_and_not_before(database_url: str, kind: str) -> None:
    """By the clock of the process too: it is no earlier than what passed here."""
    passed: list[float] = []

    def naps(ctx: Any) -> Any:
        loop = asyncio.get_running_loop()
        for seconds in SECONDS:
            started = loop.time()
            yield sleep(ctx, seconds)
            passed.append(loop.time() - started)

    asyncio.run(run_once(database_url, declare(kind, naps)))
    for seconds, found in zip(SECONDS, passed, strict=True):
        least = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
        assert found >= least - 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_a_timer_fires_by_itself_and_not_at_the_next_poll(database_url: str, kind: str) -> None:
    def naps(ctx: Any) -> Any:
        yield sleep(ctx, 0.3)
        yield sleep_until(ctx, ctx.now() + timedelta(seconds=0.3))
        return "slept"

    flow = declare(kind, naps)
    assert asyncio.run(run_once(database_url, flow, poll_interval_seconds=RARELY)) == "slept"


def test_a_timer_of_a_worker_that_is_gone_fires_by_itself_and_not_at_the_next_poll(database_url: str) -> None:
    @workflow
    async def naps(ctx: WorkflowContext) -> str:
        await sleep(ctx, 1.5)
        return "slept"

    async def main() -> str:
        instance_id = await left_asleep(database_url, naps)
        return await ended_by_another(database_url, instance_id, poll_interval_seconds=RARELY)

    assert asyncio.run(main()) == "slept"


def test_a_timer_is_in_history_under_its_id(database_url: str) -> None:
    @workflow
    async def naps(ctx: WorkflowContext) -> None:
        await sleep(ctx, 0.01)
        await sleep(ctx, 0.01, timer_id="between")
        await sleep_until(ctx, ctx.now())
        await sleep(ctx, 0.01)

    async def main() -> list[Any]:
        async with edda(database_url) as app:
            instance_id = await app.start(naps)
            await app.result(instance_id, timeout=20)
            return [event for event in await app.history(instance_id) if event.event_type == "TimerFired"]

    events = asyncio.run(main())
    assert [event.activity_id for event in events] == ["sleep:1", "between", "sleep_until:1", "sleep:2"]
    assert [event.event_data["activity_name"] for event in events] == ["sleep", "sleep", "sleep_until", "sleep"]
    assert nothing_is_kept(Tables(database_url))


def test_an_instance_that_sleeps_shows_until_when(database_url: str) -> None:
    @workflow
    def naps(ctx: SyncWorkflowContext) -> None:
        sleep(ctx, 3600)

    async def main() -> Any:
        async with begun(database_url, naps) as (app, instance_id):
            return await app.get(instance_id)

    found = asyncio.run(main())
    assert found.status == "waiting_for_timer"
    assert (found.locked_by, found.lock_expires_at) == (None, None)
    assert 3590 < (found.wake_at - found.created_at).total_seconds() < 3630


# Fixed once.


@pytest.mark.parametrize("kind", KINDS)
def test_the_due_time_does_not_move_when_the_body_is_repeated(database_url: str, kind: str) -> None:
    def naps(ctx: Any) -> Any:
        yield sleep(ctx, 3600)
        return "slept"

    flow = declare(kind, naps)
    tables = Tables(database_url)

    async def main() -> tuple[str, list[tuple[datetime, datetime]]]:
        instance_id = await left_asleep(database_url, flow)
        times = [due_times(tables, instance_id)]
        for _ in range(2):
            epoch = tables.instance(instance_id)["lock_epoch"]
            make_due(tables, instance_id)
            async with edda(database_url):
                await until(lambda before=epoch: tables.instance(instance_id)["lock_epoch"] > before)
                await asleep(tables, instance_id)
                times.append(due_times(tables, instance_id))
        expire(tables, instance_id)
        return await ended_by_another(database_url, instance_id), times

    result, times = asyncio.run(main())
    assert result == "slept"
    assert len({expires_at for expires_at, _ in times}) == 1
    for expires_at, wake_at in times:
        assert abs((wake_at - expires_at).total_seconds()) < 1


def test_a_timer_whose_time_passed_while_nobody_worked_fires_at_once(database_url: str) -> None:
    @workflow
    async def naps(ctx: WorkflowContext) -> str:
        await sleep(ctx, 3600)
        return "slept"

    async def main() -> tuple[str, str]:
        instance_id = await left_asleep(database_url, naps)
        expire(Tables(database_url), instance_id)
        return instance_id, await ended_by_another(database_url, instance_id, poll_interval_seconds=RARELY)

    instance_id, result = asyncio.run(main())
    assert result == "slept"
    assert steps_of(Tables(database_url), instance_id) == [("sleep:1", "TimerFired")]


def test_a_timer_that_has_fired_is_not_waited_for_again(database_url: str) -> None:
    gate = Gate()

    @activity
    def after(ctx: WorkflowContext) -> str:
        gate.hold()
        return "after"

    @workflow
    async def naps(ctx: WorkflowContext) -> str:
        await sleep(ctx, 3600)
        return await after(ctx)

    tables = Tables(database_url)

    async def main() -> tuple[str, str]:
        instance_id = await left_asleep(database_url, naps)
        expire(tables, instance_id)
        async with edda(database_url) as app:
            await interrupted_at(gate, app)
        return instance_id, await ended_by_another(database_url, instance_id)

    instance_id, result = asyncio.run(main())
    assert result == "after"
    assert steps_of(tables, instance_id) == [("sleep:1", "TimerFired"), ("after:1", "ActivityCompleted")]


@pytest.mark.parametrize("max_parked", [0, 1000])
def test_the_databases_clock_decides_also_where_the_process_thinks_it_too_early(
    database_url: str, max_parked: int
) -> None:
    """As after a machine was suspended for a while: its own clock stood still."""

    @workflow
    async def naps(ctx: WorkflowContext) -> str:
        await sleep(ctx, 3600)
        return "slept"

    async def main() -> str:
        async with begun(database_url, naps, max_parked=max_parked) as (app, instance_id):
            expire(Tables(database_url), instance_id)
            result: str = await app.result(instance_id, timeout=20)
            return result

    assert asyncio.run(main()) == "slept"


def test_the_instant_of_sleep_until_is_that_of_the_first_run(database_url: str) -> None:
    """The body asks for another one each time; what was fixed first counts."""
    asked: list[datetime] = []

    @workflow
    async def naps(ctx: WorkflowContext) -> str:
        asked.append(NOON_2099 + timedelta(days=len(asked)))
        await sleep_until(ctx, asked[-1])
        return "slept"

    tables = Tables(database_url)

    async def main() -> tuple[datetime, datetime]:
        instance_id = await left_asleep(database_url, naps)
        make_due(tables, instance_id)
        async with edda(database_url):
            await until(lambda: len(asked) == 2)
            await asleep(tables, instance_id)
        return due_times(tables, instance_id)

    expires_at, wake_at = asyncio.run(main())
    assert expires_at == NOON_2099
    assert abs((wake_at - NOON_2099).total_seconds()) < 1


# Instants.


@pytest.mark.parametrize("session_zone", ["UTC", "Asia/Tokyo"])
def test_sleep_until_means_the_same_instant_in_every_zone(database_url: str, session_zone: str) -> None:
    url = database_url
    if make_url(url).get_backend_name() == "postgresql":
        url = make_url(url).update_query_dict({"options": f"-c timezone={session_zone}"}).render_as_string(False)
    zones = [UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-8))]

    @workflow
    def naps(ctx: SyncWorkflowContext) -> None:
        ctx.gather(*(lambda zone=zone: sleep_until(ctx, NOON_2099.astimezone(zone)) for zone in zones))

    tables = Tables(database_url)

    async def main() -> str:
        async with edda(url) as app:
            instance_id = await app.start(naps)
            await until(lambda: len(waits_of(tables, instance_id)) == len(zones))
            await asleep(tables, instance_id)
            return instance_id

    instance_id = asyncio.run(main())
    found = tables.rows("SELECT expires_at FROM edda_waits")
    assert {instant(row["expires_at"]) for row in found} == {NOON_2099}
    assert abs((instant(tables.instance(instance_id)["wake_at"]) - NOON_2099).total_seconds()) < 1


OVER_ALREADY: list[Callable[[Any], Any]] = [
    lambda ctx: sleep(ctx, 0),
    lambda ctx: sleep(ctx, -5),
    lambda ctx: sleep(ctx, timedelta(days=-1)),
    lambda ctx: sleep_until(ctx, datetime(1999, 1, 1, tzinfo=UTC)),
    lambda ctx: sleep_until(ctx, datetime.min.replace(tzinfo=UTC)),
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_over_already_is_recorded_at_once(database_url: str, kind: str) -> None:
    def naps(ctx: Any) -> Any:
        for ask in OVER_ALREADY:
            yield ask(ctx)
        return ctx.instance_id

    flow = declare(kind, naps)
    instance_id = asyncio.run(run_once(database_url, flow, poll_interval_seconds=RARELY))
    assert [kind for _, kind in steps_of(Tables(database_url), instance_id)] == ["TimerFired"] * len(OVER_ALREADY)


NO_TIMES: list[Callable[[Any], Any]] = [
    lambda ctx: sleep(ctx, float("nan")),
    lambda ctx: sleep(ctx, float("inf")),
    lambda ctx: sleep(ctx, float("-inf")),
    lambda ctx: sleep(ctx, 1e300),
    lambda ctx: sleep(ctx, timedelta.max),
    lambda ctx: sleep(ctx, "5"),
    lambda ctx: sleep(ctx, True),
    lambda ctx: sleep(ctx, None),
    lambda ctx: sleep_until(ctx, datetime(2099, 1, 1)),
    lambda ctx: sleep_until(ctx, datetime(9001, 1, 1, tzinfo=UTC)),
    lambda ctx: sleep_until(ctx, datetime.max.replace(tzinfo=UTC)),
    lambda ctx: sleep_until(ctx, "2099-01-01"),
    lambda ctx: sleep_until(ctx, 5),
    lambda ctx: sleep(ctx, 10**400),
    lambda ctx: sleep_until(ctx, datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))),
    lambda ctx: sleep_until(ctx, datetime(9000, 12, 31, 23, tzinfo=timezone(timedelta(hours=-14)))),
]


def test_what_is_no_time_is_a_value_error_and_the_body_goes_on(database_url: str) -> None:
    @workflow
    async def naps(ctx: WorkflowContext) -> list[str]:
        problems = []
        for ask in NO_TIMES:
            try:
                await ask(ctx)
            except ValueError as error:
                problems.append(str(error))
        await sleep(ctx, -(10**400))
        await sleep_until(ctx, datetime(1, 1, 1, 14, tzinfo=timezone(timedelta(hours=14))))
        await sleep(ctx, 0.01)
        return problems

    problems = asyncio.run(run_once(database_url, naps))
    assert len(problems) == len(NO_TIMES)
    assert all(problem.startswith("sleep") for problem in problems)
    assert "has no zone" in problems[8]


def test_a_century_can_be_slept(database_url: str) -> None:
    century = 36525 * 86400

    @workflow
    async def naps(ctx: WorkflowContext) -> None:
        await sleep(ctx, century)

    @workflow
    def naps_till_the_end(ctx: SyncWorkflowContext) -> None:
        sleep_until(ctx, datetime(9000, 12, 31, tzinfo=UTC))

    tables = Tables(database_url)

    async def main() -> tuple[timedelta, datetime]:
        async with begun(database_url, naps) as (app, first):
            second = await app.start(naps_till_the_end)
            await asleep(tables, second)
            created_at = (await app.get(first)).created_at
            assert await app.cancel(second)
            return due_times(tables, first)[0] - created_at, due_times(tables, first)[1]

    slept, wake_at = asyncio.run(main())
    assert abs(slept.total_seconds() - century) < 60
    assert wake_at.year > 2100
