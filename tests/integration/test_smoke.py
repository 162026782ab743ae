"""The shortest way through everything: declare, start, run, ask."""

from __future__ import annotations

import asyncio

from edda_engine import EddaApp, WorkflowContext, activity, workflow


def test_a_workflow_runs_its_activities_and_returns_its_result(database_url: str) -> None:
    @activity
    def double(ctx: WorkflowContext, number: int) -> int:
        return number * 2

    @workflow
    async def double_twice(ctx: WorkflowContext, number: int) -> int:
        return await double(ctx, await double(ctx, number))

    async def main() -> tuple[int, list[str]]:
        async with EddaApp(service_name="smoke", db_url=database_url) as app:
            instance_id = await double_twice.start(number=3)
            result = await app.result(instance_id, timeout=20)
            return result, [event.activity_id for event in await app.history(instance_id)]

    assert asyncio.run(main()) == (12, ["double:1", "double:2"])
