"""A body that is thrown out of memory while it waits: what its ``finally`` may do."""

from __future__ import annotations

from edda_engine import WorkflowContext, activity, wait_event, workflow

watched: set[str] = set()
letters: list[str] = []


@activity
def write_to(ctx: WorkflowContext, user: str) -> None:
    letters.append(user)


# finally
@workflow
async def review(ctx: WorkflowContext, user: str) -> str:
    watched.add(ctx.instance_id)  # of this process: how many bodies it has in memory
    try:
        answer = await wait_event(ctx, "review.answered")
    finally:
        watched.discard(ctx.instance_id)  # runs at each eviction, and at the end
    await write_to(ctx, user)  # once: it is a step
    return str(answer.data)


# end
