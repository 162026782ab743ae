"""DBOS Transact: what a start, a replay and an idle process cost.

bench_dbos_costs.py --db postgresql://... --bench start [--workflows 200]
bench_dbos_costs.py --db postgresql://... --bench replay --steps 10000
bench_dbos_costs.py --db postgresql://... --bench idle [--opt seconds=60]
bench_dbos_costs.py --db sqlite:////path/to/file --bench throughput --concurrency 64
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from typing import Any

from common import arguments, distribution, drive, emit, fresh_database, leave, with_driver
from costs_common import (
    ENVIRONMENT_BEGAN,
    START_PAUSE_SECONDS,
    STARTS_BEFORE,
    StatementCounter,
    is_sqlite,
    launches,
    tell_seconds,
    told_seconds,
)
from dbos import DBOS

given = arguments("start", "replay", "idle", "throughput", "_replay_build", "_replay_go")
began: dict[int, float] = {}


@DBOS.step()
def note(key: int) -> int:
    began[key] = time.perf_counter()
    return key


@DBOS.step()
def act(i: int) -> dict[str, Any]:
    return {"i": i, "ok": True}


@DBOS.step()
def last() -> None:
    if given.bench == "_replay_go":
        tell_seconds()
    os._exit(0)


@DBOS.workflow()
def one_step(key: int) -> int:
    return note(key)


@DBOS.workflow()
def chain(steps: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for i in range(steps):
        found = act(i)
    return found


@DBOS.workflow()
def long_past(steps: int) -> None:
    for i in range(steps):
        act(i)
    last()


def launch() -> None:
    config: dict[str, Any] = {
        "name": "bench",
        "system_database_url": given.db if is_sqlite(given.db) else with_driver(given.db),
        "application_version": "1",
        "executor_id": "bench",
        "log_level": "ERROR",
        "console_log_level": "ERROR",
        "run_admin_server": False,
    }
    if given.pool and not is_sqlite(given.db):
        config["sys_db_pool_size"] = given.pool
    DBOS(config=config)
    DBOS.launch()


def start() -> None:
    launch()
    for key in range(-STARTS_BEFORE, 0):
        DBOS.start_workflow(one_step, key).get_result()
    call, first = [], []
    for key in range(given.workflows):
        time.sleep(START_PAUSE_SECONDS)
        at = time.perf_counter()
        handle = DBOS.start_workflow(one_step, key)
        call.append(time.perf_counter() - at)
        handle.get_result()
        first.append(began[key] - at)
    emit(
        **about(), workflows=given.workflows, errors=0,
        start_call_ms=distribution(call), first_step_ms=distribution(first),
    )  # fmt: skip


def replay() -> None:
    command = [sys.executable, __file__, "--db", given.db, "--steps", str(given.steps), "--keep-db"]
    subprocess.run([*command, "--bench", "_replay_build"], check=True)
    environment = {**os.environ, ENVIRONMENT_BEGAN: str(time.time())}
    done = subprocess.run(
        [*command, "--bench", "_replay_go"], check=True, capture_output=True, text=True, env=environment
    )
    emit(**about(), workflows=1, steps=given.steps, errors=0, **told_seconds(done.stdout))


def replay_process() -> None:
    launches()
    launch()
    if given.bench == "_replay_build":
        DBOS.start_workflow(long_past, given.steps)
    threading.Event().wait(600)


def idle() -> None:
    launch()
    time.sleep(5)
    seconds = float(given.options.get("seconds", 60))
    with StatementCounter() as counter:
        time.sleep(seconds)
    emit(**about(), workflows=0, errors=0, statements_a_minute=round(60 * counter.total / seconds, 1))


def throughput() -> None:
    launch()

    def one() -> Any:
        return DBOS.start_workflow(chain, given.steps).get_result()

    expected = {"i": given.steps - 1, "ok": True}
    warm = drive(one, expected=expected, workflows=given.warmup, concurrency=given.concurrency)
    done = drive(one, expected=expected, workflows=given.workflows, concurrency=given.concurrency)
    emit(
        **about(), workflows=given.workflows, errors=len(warm.errors + done.errors),
        first_error=next(iter(warm.errors + done.errors), None),
        steps_per_s=round(given.workflows * given.steps / done.wall_seconds, 1),
    )  # fmt: skip


def about() -> dict[str, Any]:
    return {"system": "dbos", "version": version("dbos"), "bench": given.bench, "mode": "start_workflow"}


if __name__ == "__main__":
    if not given.keep_db and not is_sqlite(given.db):
        fresh_database(given.db)
    benches = {"start": start, "replay": replay, "idle": idle, "throughput": throughput}
    benches.get(given.bench, replay_process)()
    leave()
