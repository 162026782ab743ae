"""Those who sleep: how little they hold, and what ends their sleep early or forbids it."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime

import pytest
from sqlalchemy import Connection

from edda_engine import (
    SyncWorkflowContext,
    UsageError,
    WorkflowCancelledError,
    WorkflowContext,
    activity,
    sleep,
    sleep_until,
    wait_timer,
    wait_until,
    workflow,
)
from edda_engine.core.ports import NewInstance
from edda_engine.storage.starts import insert_instance
from tests.integration.engines import NEVER_AGAIN, SERVICE, Tables, edda, run, storage, until
from tests.integration.talks import PAST, RARELY, begun, nothing_is_kept, run_once, waits_of

NOON_2099 = datetime(2099, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(("max_parked", "count"), [(0, 200), (2000, 1000)])
def test_many_that_sleep_hold_no_thread_and_all_go_on_when_due_at_once(
    database_url: str, max_parked: int, count: int
) -> None:
    done: list[int] = []

    @workflow
    async def naps(ctx: WorkflowContext, number: int) -> None:
        await sleep(ctx, 3600)
        done.append(number)

    @workflow
    def naps_too(ctx: SyncWorkflowContext, number: int) -> None:
        sleep(ctx, 3600)
        done.append(number)

    def start_all(conn: Connection) -> None:
        for number in range(count):
            name = ("naps", "naps_too")[number % 2]
            text = f'{{"number": {number}}}'
            insert_instance(conn, NewInstance(f"i{number}", name, SERVICE, text, "hash", lock_timeout_seconds=60))

    tables = Tables(database_url)

    def are_all(status: str) -> bool:
        found = tables.value("SELECT count(*) FROM edda_instances WHERE status = :status", status=status)
        return bool(found == count)

    async def main() -> tuple[int, int, int]:
        async with edda(database_url, max_parked=max_parked, max_running=200, threads=4) as app:
            await until(lambda: True)
            before = threading.active_count()
            await asyncio.to_thread(run_in_storage)
            await until(lambda: are_all("waiting_for_timer"), timeout=120)
            held = tables.value("SELECT count(*) FROM edda_instances WHERE locked_by IS NOT NULL")
            during = threading.active_count()
            tables.execute("UPDATE edda_waits SET expires_at = :past", past=PAST)
            tables.execute("UPDATE edda_instances SET wake_at = :past WHERE locked_by IS NULL", past=PAST)
            await until(lambda: are_all("completed"), timeout=120)
            assert app.worker_id
            return before, during, held

    def run_in_storage() -> None:
        with storage(database_url) as database:
            run(database, start_all)

    before, during, held = asyncio.run(main())
    assert held == 0
    assert during <= before + 4
    assert sorted(done) == list(range(count))
    assert nothing_is_kept(tables)


def test_a_sleeping_instance_is_cancelled_at_once(database_url: str) -> None:
    @workflow
    async def naps(ctx: WorkflowContext) -> None:
        await sleep(ctx, 3600)

    tables = Tables(database_url)

    async def main() -> str:
        async with begun(database_url, naps, poll_interval_seconds=RARELY) as (app, instance_id):
            assert await app.cancel(instance_id, "not needed")
            with pytest.raises(WorkflowCancelledError, match="not needed"):
                await app.result(instance_id, timeout=0)
            return instance_id

    instance_id = asyncio.run(main())
    assert waits_of(tables, instance_id) == []
    assert tables.instance(instance_id)["wake_at"] is None


def test_sleeping_in_an_activity_is_refused_with_a_way_out(database_url: str) -> None:
    @activity(retry_policy=NEVER_AGAIN)
    def naps(ctx: WorkflowContext) -> list[str]:
        problems = []
        for call, when in ((sleep, 1), (wait_timer, 1), (sleep_until, NOON_2099), (wait_until, NOON_2099)):
            with pytest.raises(UsageError) as caught:
                call(ctx, when)
            problems.append(str(caught.value))
        return problems

    @workflow
    async def asks(ctx: WorkflowContext) -> list[str]:
        return await naps(ctx)

    problems = asyncio.run(run_once(database_url, asks))
    assert len(problems) == 4
    for problem in problems:
        assert "in activity 'naps:1'" in problem
        assert "the workflow's body" in problem
        assert "In an activity" in problem
