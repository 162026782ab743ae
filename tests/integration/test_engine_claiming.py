"""What is claimed when: priority, delay, order of waiting, and what nobody here can run."""

from __future__ import annotations

import asyncio
import logging
import threading
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from edda_engine import EddaApp, UsageError, WorkflowContext, activity, workflow
from edda_engine.core.status import Status
from tests.integration.engines import Gate, Tables, edda, until


def test_a_higher_priority_is_claimed_first_then_the_longest_waiting(database_url: str) -> None:
    gate = Gate()
    order: list[str] = []

    @activity
    def wait_here(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    async def occupies(ctx: WorkflowContext) -> None:
        await wait_here(ctx)

    @workflow
    async def told(ctx: WorkflowContext, name: str) -> None:
        order.append(name)

    async def main() -> None:
        async with edda(database_url, max_running=1) as app:
            await occupies.start()
            await gate.is_reached()
            ids = [
                await told.start("first"),
                await told.start("second"),
                await told.options(priority=-1).start("low"),
                await told.options(priority=5).start("high"),
                await told.options(priority=5).start("high too"),
            ]
            gate.open()
            for each in ids:
                await app.result(each, timeout=20)

    asyncio.run(main())
    assert order == ["high", "high too", "first", "second", "low"]


def test_what_begins_at_its_start_does_not_take_the_place_that_a_claim_under_way_may_fill(database_url: str) -> None:
    claiming, is_started = threading.Event(), threading.Event()

    def hold_the_claim(point: str) -> None:
        if point == "claim.before_commit" and not is_started.is_set():
            claiming.set()
            assert is_started.wait(20)

    @workflow
    async def told(ctx: WorkflowContext) -> str:
        return "done"

    async def main() -> None:
        async with edda(database_url, max_running=1, probe=hold_the_claim) as app:
            await app.publish("news", 1)  # something to look for, on SQLite too
            assert await asyncio.to_thread(claiming.wait, 20)
            starting = asyncio.create_task(told.start())
            if not Tables(database_url).is_sqlite:  # where the claim has the one lock to write
                assert Tables(database_url).instance(await starting)["locked_by"] is None
            is_started.set()
            assert await app.result(await starting, timeout=20) == "done"

    asyncio.run(main())


@pytest.mark.parametrize("max_running", [1, 3])
def test_a_worker_never_holds_more_instances_than_max_running(database_url: str, max_running: int) -> None:
    gate = Gate()

    @activity
    async def wait_here(ctx: WorkflowContext) -> None:
        await gate.hold_async()

    @workflow
    async def occupies(ctx: WorkflowContext) -> None:
        await wait_here(ctx)

    async def main() -> int:
        tables = Tables(database_url)
        locked = "SELECT count(*) FROM edda_instances WHERE locked_by IS NOT NULL"
        async with edda(database_url):
            ids = [await occupies.options(delay=3600).start() for _ in range(12)]
        tables.execute("UPDATE edda_instances SET wake_at = '2001-01-01 00:00:00.000'")
        async with edda(database_url, max_running=max_running) as app:
            await gate.is_reached()
            await until(lambda: tables.value(locked) >= max_running)
            held = tables.value(locked)
            gate.open()
            for each in ids:
                await app.result(each, timeout=20)
            return int(held)

    assert asyncio.run(main()) == max_running


def test_a_delayed_start_is_not_claimed_before_its_time(database_url: str) -> None:
    @workflow
    async def later(ctx: WorkflowContext) -> None: ...

    async def main() -> Any:
        async with edda(database_url) as app:
            instance_id = await later.options(delay=timedelta(seconds=0.7)).start()
            before = await app.get(instance_id)
            await app.result(instance_id, timeout=20)
            return before, await app.get(instance_id)

    before, after = asyncio.run(main())
    assert before.status is Status.PENDING
    assert 0.69 <= (before.wake_at - before.created_at).total_seconds() <= 0.71
    assert 0.69 <= (after.started_at - after.created_at).total_seconds() < 5


def test_start_at_takes_an_aware_time_of_any_zone(database_url: str) -> None:
    @workflow
    async def at_noon(ctx: WorkflowContext) -> None: ...

    noon = datetime(2099, 1, 1, 12, tzinfo=timezone(timedelta(hours=9)))

    async def main() -> Any:
        async with edda(database_url) as app:
            return await app.get(await at_noon.options(start_at=noon).start())

    found = asyncio.run(main())
    assert found.wake_at == datetime(2099, 1, 1, 3, tzinfo=UTC)
    assert found.wake_at.utcoffset() == timedelta(0)
    assert found.status is Status.PENDING


def test_a_start_at_in_the_past_is_due_at_once(database_url: str) -> None:
    @workflow
    async def overdue(ctx: WorkflowContext) -> str:
        return "ran"

    async def main() -> Any:
        async with edda(database_url) as app:
            return await app.result(
                await overdue.options(start_at=datetime(2001, 1, 1, tzinfo=UTC)).start(), timeout=20
            )

    assert asyncio.run(main()) == "ran"


def test_a_naive_start_at_is_refused(database_url: str) -> None:
    @workflow
    async def at_noon(ctx: WorkflowContext) -> None: ...

    async def main() -> None:
        async with edda(database_url):
            await at_noon.options(start_at=datetime(2099, 1, 1)).start()

    with pytest.raises(ValueError, match="a time without a zone is ambiguous"):
        asyncio.run(main())
    assert Tables(database_url).rows("SELECT * FROM edda_instances") == []


@pytest.mark.parametrize(
    "options",
    [
        {"delay": -1},
        {"delay": 1, "start_at": datetime(2099, 1, 1, tzinfo=UTC)},
        {"priority": 40000},
        {"priority": "high"},
        {"instance_id": ""},
        {"instance_id": "x" * 256},
    ],
)
def test_options_without_a_meaning_are_refused_and_start_nothing(database_url: str, options: dict[str, Any]) -> None:
    @workflow
    async def never(ctx: WorkflowContext) -> None: ...

    async def main() -> None:
        async with edda(database_url):
            await never.options(**options).start()

    with pytest.raises(UsageError):
        asyncio.run(main())
    assert Tables(database_url).rows("SELECT * FROM edda_instances") == []


def test_instances_of_an_unknown_workflow_starve_nobody_and_are_shown_and_logged(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    @workflow
    async def known(ctx: WorkflowContext) -> str:
        return "done"

    async def main() -> tuple[str, Any, Any]:
        tables = Tables(database_url)
        async with edda(database_url, max_running=2) as app:
            for number in range(100):
                await known.options(instance_id=f"old-{number}", delay=3600, priority=10).start()
            tables.execute(
                "UPDATE edda_instances SET workflow_name = 'of_another_deploy', wake_at = '2001-01-01 00:00:00.000'"
            )
            instance_id = await known.start()
            result = await app.result(instance_id, timeout=10)
            await until(lambda: "of_another_deploy" in caplog.text)
            return result, await app.get("old-7"), await app.get(instance_id)

    result, stranded, finished = asyncio.run(main())
    assert result == "done"
    assert (stranded.status, stranded.is_runnable) == (Status.PENDING, False)
    assert finished.is_runnable is True
    (warning,) = [record for record in caplog.records if "of_another_deploy" in record.getMessage()]
    assert warning.getMessage().startswith("100 instances of workflow 'of_another_deploy' are due, but no worker")


def test_a_worker_claims_only_instances_of_its_own_service(database_url: str) -> None:
    @workflow
    async def told(ctx: WorkflowContext) -> str:
        return ctx.worker_id

    async def main() -> tuple[str, str]:
        other = EddaApp(service_name="other", db_url=database_url, poll_interval_seconds=0.05)
        async with edda(database_url) as ours, other:
            ids = [await ours.start(told) for _ in range(20)]
            workers = {await ours.result(each, timeout=20) for each in ids}
            assert (await other.find_instances()).instances == ()
            return ",".join(workers), ours.worker_id

    worker_ids, ours = asyncio.run(main())
    assert worker_ids == ours
