"""``edda-framework``: what a replay and an idle process cost.

bench_framework_costs.py --db postgresql://... --bench replay --steps 10000
bench_framework_costs.py --db postgresql://... --bench idle [--opt seconds=60]
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

import psycopg
from common import arguments, emit, fresh_database, leave, plain_url
from costs_common import ENVIRONMENT_BEGAN, StatementCounter, launches, tell_seconds, told_seconds
from edda import WorkflowContext, activity, workflow
from framework import SYSTEM, VERSION, launch, wait_for

given = arguments("replay", "idle", "_replay_build", "_replay_go")


@activity
def act(ctx: WorkflowContext, i: int) -> dict[str, Any]:
    return {"i": i, "ok": True}


@activity
def last(ctx: WorkflowContext) -> None:
    if given.bench == "_replay_go":
        tell_seconds()
    os._exit(0)


@workflow
async def long_past(ctx: WorkflowContext, steps: int) -> None:
    for i in range(steps):
        await act(ctx, i)
    await last(ctx)


def replay() -> None:
    command = [sys.executable, __file__, "--db", given.db, "--steps", str(given.steps), "--keep-db"]
    subprocess.run([*command, "--bench", "_replay_build"], check=True)
    # The lock of the process that ended is over: what is measured is the replay, not how long it lasts.
    with psycopg.connect(plain_url(given.db), autocommit=True) as conn:
        conn.execute("UPDATE workflow_instances SET locked_by = NULL, locked_at = NULL, lock_expires_at = NULL")
    environment = {**os.environ, ENVIRONMENT_BEGAN: str(time.time())}
    done = subprocess.run(
        [*command, "--bench", "_replay_go"], check=True, capture_output=True, text=True, env=environment
    )
    emit(**about(), workflows=1, steps=given.steps, errors=0, **told_seconds(done.stdout))


def replay_process() -> None:
    launches()
    app = launch(given.db, given.pool)
    if given.bench == "_replay_build":
        wait_for(long_past.start(steps=given.steps))
        return
    with psycopg.connect(plain_url(given.db), autocommit=True) as conn:
        row = conn.execute("SELECT instance_id FROM workflow_instances").fetchone()
    assert row is not None
    wait_for(app.replay_engine.resume_by_name(row[0], "long_past"))
    threading.Event().wait(600)


def idle() -> None:
    launch(given.db, given.pool)
    time.sleep(5)
    seconds = float(given.options.get("seconds", 60))
    with StatementCounter() as counter:
        time.sleep(seconds)
    emit(**about(), workflows=0, errors=0, statements_a_minute=round(60 * counter.total / seconds, 1))


def about() -> dict[str, Any]:
    return {"system": SYSTEM, "version": VERSION, "bench": given.bench, "mode": "start"}


if __name__ == "__main__":
    if not given.keep_db:
        fresh_database(given.db)
    {"replay": replay, "idle": idle}.get(given.bench, replay_process)()
    leave()
