"""Workflows that go on for ever, without a history that grows for ever."""

from __future__ import annotations

from datetime import timedelta

from edda_engine import (
    SyncWorkflowContext,
    WorkflowContext,
    activity,
    receive,
    sleep,
    subscribe,
    workflow,
)

EVERY = timedelta(hours=1)
MESSAGES_A_RUN = 100

swept: list[int] = []


@activity
def sweep(ctx: WorkflowContext, sweeps: int) -> None:
    swept.append(sweeps)


# cron
@workflow
async def sweeper(ctx: WorkflowContext, sweeps: int = 0) -> None:
    await sweep(ctx, sweeps + 1)
    await sleep(ctx, EVERY)
    ctx.recur(sweeps=sweeps + 1)


# channel
@workflow
def counter(ctx: SyncWorkflowContext, total: int = 0) -> int:
    subscribe(ctx, "numbers")  # kept by every successor; saying it again changes nothing
    for _ in range(MESSAGES_A_RUN):
        number = receive(ctx, "numbers").data
        if number is None:
            return total
        total += number
    return ctx.recur(total=total)


# end
