"""Waiting for several things at once: the first of them, or all."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from edda_engine import (
    SyncWorkflowContext,
    WorkflowContext,
    activity,
    receive,
    sleep,
    subscribe,
    wait_event,
    workflow,
)

TERM = timedelta(days=30)


@activity
def close_account(ctx: WorkflowContext, reason: str) -> str:
    return f"closed: {reason}"


# first
@workflow
async def subscription(ctx: WorkflowContext) -> str:
    index, event = await ctx.first_of(
        wait_event(ctx, "renewed"),
        wait_event(ctx, "terminated"),
        sleep(ctx, TERM),
    )
    if index == 0:
        return f"renewed by {event.source}"
    return await close_account(ctx, "terminated" if index == 1 else "run out")


# plain
@workflow
def plain_subscription(ctx: SyncWorkflowContext) -> str:
    index, event = ctx.first_of(lambda: wait_event(ctx, "renewed"), lambda: sleep(ctx, TERM))
    return f"renewed by {event.source}" if index == 0 else close_account(ctx, "run out")


# stretch
@workflow
async def application(ctx: WorkflowContext) -> str:
    async def documents() -> int:
        pages = 0
        for name in ("passport", "photograph", "signature"):
            pages += (await wait_event(ctx, f"{name}.received")).data["pages"]
        return pages

    index, pages = await ctx.first_of(documents(), sleep(ctx, TERM))
    return f"complete, {pages} pages" if index == 0 else "withdrawn"


# all
@workflow
async def meeting(ctx: WorkflowContext) -> list[str]:
    answers = await asyncio.gather(*(wait_event(ctx, f"{guest}.answered") for guest in ("ada", "grace")))
    return [answer.data for answer in answers]


# plain all
@workflow
def plain_meeting(ctx: SyncWorkflowContext) -> list[str]:
    answers = ctx.gather(*(lambda guest=guest: wait_event(ctx, f"{guest}.answered") for guest in ("ada", "grace")))
    return [answer.data for answer in answers]


# loop
@workflow
async def thermostat(ctx: WorkflowContext, readings: int) -> list[float]:
    await subscribe(ctx, "temperatures")
    seen: list[float] = []
    while len(seen) < readings:
        index, message = await ctx.first_of(receive(ctx, "temperatures"), wait_event(ctx, "switch.off"))
        if index == 1:
            break
        seen.append(message.data)
    return seen


# end
