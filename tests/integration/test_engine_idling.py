"""A body counts as idle only when it has done all that it can do with what it was told."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from edda_engine import WorkflowContext, activity, receive, sleep, workflow
from tests.integration.engines import Tables, edda
from tests.integration.talks import asleep


def test_a_body_whose_race_has_just_been_won_is_not_parked_however_late_the_loop_is(database_url: str) -> None:
    stalled = threading.Event()

    def stall_when_the_message_is_taken(point: str) -> None:
        """The machine has no time for the loop just now: for longer than a body may be idle."""
        if point == "take.after_commit" and tables.value("SELECT count(*) FROM edda_history"):
            asyncio.get_running_loop().call_soon(stalled.wait, 0.1)

    @activity
    async def close(ctx: WorkflowContext, said: Any) -> Any:
        return said

    @workflow
    async def race(ctx: WorkflowContext) -> Any:
        _, message = await ctx.first_of(receive(ctx), sleep(ctx, 86_400))
        return await close(ctx, message.data)

    tables = Tables(database_url)

    async def main() -> Any:
        async with edda(database_url, probe=stall_when_the_message_is_taken) as app:
            instance_id = await app.start(race)
            await asleep(tables, instance_id)
            before = tables.instance(instance_id)["lock_epoch"]
            await app.send_to(instance_id, "said")
            result = await app.result(instance_id, timeout=20)
            return result, tables.instance(instance_id)["lock_epoch"] - before

    assert asyncio.run(main()) == ("said", 1)
