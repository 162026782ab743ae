"""The three places where a lock timeout can be given."""

from __future__ import annotations

from edda_engine import EddaApp, WorkflowContext, workflow


# decorator
@workflow(lock_timeout_seconds=120)
async def quick(ctx: WorkflowContext) -> str:
    return "done"


@workflow
async def ordinary(ctx: WorkflowContext) -> str:
    return "done"


# setting
def make_app(db_url: str) -> EddaApp:
    return EddaApp("locks", db_url, lock_timeout_seconds=600)


# start
async def start_them() -> list[str]:
    return [
        await quick.start(lock_timeout_seconds=30),
        await quick.start(),
        await ordinary.start(),
    ]
