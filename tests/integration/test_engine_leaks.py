"""Thousands of activities leave nothing behind: no connection, no thread, no task."""

from __future__ import annotations

import asyncio
import threading

from edda_engine import SyncWorkflowContext, WorkflowContext, activity, workflow
from tests.integration.engines import Tables, edda, until, write_note, write_note_async
from tests.support import eventually

INSTANCES, INSTANCES_SQLITE, ROUNDS = 50, 10, 50  # four activities a round


def test_thousands_of_activities_leak_no_connection_no_thread_and_no_task(database_url: str) -> None:
    tables = Tables(database_url)
    instances = INSTANCES_SQLITE if database_url.startswith("sqlite") else INSTANCES
    tables.make_notes()

    @activity
    def writes(ctx: WorkflowContext) -> None:
        write_note(ctx, "sync")

    @activity
    async def writes_async(ctx: WorkflowContext) -> None:
        await write_note_async(ctx, "async")

    @activity
    def thinks(ctx: WorkflowContext) -> int:
        return 1

    @activity
    async def thinks_async(ctx: WorkflowContext) -> int:
        return 1

    @workflow
    async def busy(ctx: WorkflowContext) -> None:
        for _ in range(ROUNDS):
            await asyncio.gather(writes(ctx), writes_async(ctx), thinks(ctx), thinks_async(ctx))

    @workflow
    def busy_plainly(ctx: SyncWorkflowContext) -> None:
        for _ in range(ROUNDS):
            writes(ctx)
            writes_async(ctx)
            thinks(ctx)
            thinks_async(ctx)

    before = set(threading.enumerate())  # other tests leave worlds behind on purpose

    async def main() -> None:
        async with edda(database_url, threads=4) as app:
            engine = app._engine
            assert engine is not None
            ids = [await app.start(busy if number % 2 else busy_plainly) for number in range(instances)]
            for each in ids:
                await app.result(each, timeout=240)
            await until(lambda: not engine.executor.held)
            assert app._database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
            made = engine._async_engines._made
            assert made is not None
            assert made.pool.checkedout() == 0  # type: ignore[attr-defined]
            named = [
                thread.name
                for thread in threading.enumerate()
                if thread not in before and thread.name.startswith("edda-")
            ]
            assert len([name for name in named if name.startswith("edda-activity")]) <= 4
            # And the committer, the service thread, the watch over the loop, and the sign of life or the watch over the file.
            assert len(named) <= 4 + 4
            assert len(asyncio.all_tasks()) <= 1 + 4  # this one, and the engine's services

    asyncio.run(main())
    assert tables.value("SELECT count(*) FROM notes") == 2 * instances * ROUNDS
    assert tables.value("SELECT count(*) FROM edda_history") == 4 * instances * ROUNDS


def test_a_stopped_application_leaves_no_thread_and_no_connection(database_url: str) -> None:
    @workflow
    async def quick(ctx: WorkflowContext) -> None: ...

    before = set(threading.enumerate())

    async def main() -> None:
        async with edda(database_url) as app:
            await app.result(await app.start(quick), timeout=20)
        await until(lambda: not [each for each in set(threading.enumerate()) - before if each.name.startswith("edda-")])
        assert app._database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]

    asyncio.run(main())
    tables = Tables(database_url)
    if not tables.is_sqlite:
        # The server may need a moment to see that a connection was closed.
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        eventually(lambda: tables.value(query) == 1)
