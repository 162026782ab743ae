"""``edda-framework``, the same work: ``start()``, which returns when the workflow has ended, then its result.

    bench_framework.py --db postgresql://... [--concurrency 16]

Its workflows are coroutines; the steps are plain functions, which it runs on threads.
"""

from __future__ import annotations

from typing import Any

from common import arguments, fresh_database, leave, throughput
from edda import WorkflowContext, activity, workflow
from framework import SYSTEM, VERSION, launch, result_of, wait_for

given = arguments("throughput")


@activity
def act(ctx: WorkflowContext, i: int) -> dict[str, Any]:
    return {"i": i, "ok": True}


@workflow
async def chain(ctx: WorkflowContext, steps: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for i in range(steps):
        found = await act(ctx, i)
    return found


def main() -> None:
    if not given.keep_db:
        fresh_database(given.db)
    app = launch(given.db, given.pool)

    async def run() -> Any:
        return await result_of(app, await chain.start(steps=given.steps))

    wait_for(run())  # the first starts of a workflow may not meet each other
    expected = {"i": given.steps - 1, "ok": True}
    throughput(lambda: wait_for(run()), expected=expected, given=given, system=SYSTEM, version=VERSION, mode="start")
    leave()


if __name__ == "__main__":
    main()
