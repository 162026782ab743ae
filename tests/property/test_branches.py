"""Branches on the real engine: whatever the timing was, a replay gives each call its own answer.

The body ends with an activity that fails at first; `retry` then replays everything before it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from edda_engine import (
    EddaApp,
    SyncWorkflowContext,
    TerminalError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    workflow,
)


def live_and_replayed(url: str, body: Any, *, gated: str, opened_by: str, is_async: bool = True) -> tuple[Any, Any]:
    """What *body* gathered when it ran, and when it was replayed; *gated* calls end only once *opened_by* has run."""
    seen: list[Any] = []

    async def main() -> None:
        opened = asyncio.Event()

        @activity
        async def work(ctx: WorkflowContext, name: str) -> str:
            if name.startswith(gated):
                await opened.wait()
            if name.startswith(opened_by):
                opened.set()
            return name

        @activity
        async def fail_at_first(ctx: WorkflowContext) -> None:
            if len(seen) == 1:
                raise TerminalError("first")

        if is_async:

            @workflow(name="branches")
            async def branches(ctx: WorkflowContext) -> None:
                seen.append(await body(ctx, work))
                await fail_at_first(ctx)
        else:

            @workflow(name="branches")
            def branches(ctx: SyncWorkflowContext) -> None:
                seen.append(body(ctx, work))
                fail_at_first(ctx)

        async with EddaApp(service_name="branches", db_url=url) as app:
            instance_id = await app.start(branches)
            try:
                await app.result(instance_id, timeout=10)
            except WorkflowFailedError:
                await app.retry(instance_id)
            await app.result(instance_id, timeout=10)

    asyncio.run(main())
    return seen[0], seen[1]


def test_gathers_within_gathers_replay_the_same_when_their_branches_call_nothing_themselves(sqlite_url: str) -> None:
    async def body(ctx: WorkflowContext, work: Any) -> list[Any]:
        async def leaf(name: str) -> str:
            return str(await work(ctx, name))

        async def order(name: str) -> list[str]:
            first = await asyncio.gather(leaf(f"{name}-1a"), leaf(f"{name}-1b"))
            second = await asyncio.gather(leaf(f"{name}-2a"), leaf(f"{name}-2b"))
            return first + second

        return list(await asyncio.gather(order("slow"), order("quick")))

    live, replayed = live_and_replayed(sqlite_url, body, gated="slow-1", opened_by="quick-2")
    assert live == [[f"{name}-{part}" for part in ("1a", "1b", "2a", "2b")] for name in ("slow", "quick")]
    assert replayed == live


def test_gathers_within_gathers_of_a_plain_body_replay_the_same(sqlite_url: str) -> None:
    def body(ctx: SyncWorkflowContext, work: Any) -> list[Any]:
        def order(name: str) -> list[str]:
            first = ctx.gather(lambda: work(ctx, f"{name}-1a"), lambda: work(ctx, f"{name}-1b"))
            return first + ctx.gather(lambda: work(ctx, f"{name}-2a"), lambda: work(ctx, f"{name}-2b"))

        return ctx.gather(lambda: order("slow"), lambda: order("quick"))

    live, replayed = live_and_replayed(sqlite_url, body, gated="slow-1", opened_by="quick-2", is_async=False)
    assert live == [[f"{name}-{part}" for part in ("1a", "1b", "2a", "2b")] for name in ("slow", "quick")]
    assert replayed == live


def test_a_task_beside_the_body_replays_the_same_when_it_only_gathers(sqlite_url: str) -> None:
    async def body(ctx: WorkflowContext, work: Any) -> list[Any]:
        async def leaf(name: str) -> str:
            return str(await work(ctx, name))

        async def outer() -> list[str]:
            return list(await asyncio.gather(leaf("x"), leaf("y")))

        early = asyncio.create_task(outer())
        await work(ctx, "step")
        late = asyncio.create_task(leaf("late"))
        return [await early, await late]

    live, replayed = live_and_replayed(sqlite_url, body, gated="-", opened_by="step")
    assert live == [["x", "y"], "late"]
    assert replayed == live
