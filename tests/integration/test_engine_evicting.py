"""A body for which there is no room any more: what it waited for is written all the same."""

from __future__ import annotations

import asyncio
from functools import partial

from sqlalchemy import Connection, text

from edda_engine import WorkflowContext, activity, sleep, wait_event, workflow
from tests.integration.engines import Tables, edda, storage, until
from tests.integration.probing import Points
from tests.support import eventually


def test_a_body_that_is_evicted_before_its_pause_is_written_pauses_all_the_same(postgres_url: str) -> None:
    points, tables = Points(), Tables(postgres_url)

    @activity
    def act(ctx: WorkflowContext) -> None:
        eventually(lambda: tables.value("SELECT count(*) FROM edda_waits") == 2)  # both calls before have asked

    @workflow
    async def gives_up_and_sleeps(ctx: WorkflowContext) -> None:
        asleep = asyncio.create_task(sleep(ctx, 3600))
        listening = asyncio.create_task(wait_event(ctx, "never.sent"))
        await act(ctx)
        listening.cancel()  # which is written before its lease is given back
        await asleep

    @workflow
    async def sleeps(ctx: WorkflowContext) -> None:
        await sleep(ctx, 3600)

    def nothing_is_written_for_it(elsewhere: Connection) -> None:
        elsewhere.execute(text("SELECT 1 FROM edda_instances WHERE workflow_name = 'gives_up_and_sleeps' FOR UPDATE"))

    def sleepers() -> list[str]:
        found = tables.rows("SELECT instance_id FROM edda_instances WHERE status = 'waiting_for_timer'")
        return [row["instance_id"] for row in found]

    async def main(elsewhere: Connection) -> None:
        async with edda(postgres_url, probe=points, max_parked=0) as app:
            assert app._engine is not None
            executor = app._engine.executor
            points.at["step.after_commit"] = partial(nothing_is_written_for_it, elsewhere)
            first = await app.start(gives_up_and_sleeps)
            await until(lambda: executor.has_body(first) and first not in executor.held)
            second = await app.start(sleeps)
            await until(lambda: not executor.has_body(first))
            assert sleepers() == [second]
            elsewhere.rollback()
            await until(lambda: len(sleepers()) == 2)
            (row,) = tables.rows(
                "SELECT lock_epoch, wake_at > now() + interval '3000 s' AS sleeps"
                " FROM edda_instances WHERE instance_id = :first",
                first=first,
            )
            assert row == {"lock_epoch": 1, "sleeps": True}

    with storage(postgres_url) as database, database.engine.connect() as elsewhere:
        asyncio.run(main(elsewhere))
