"""Ours: what a start, a replay, an idle process and a million sleepers cost.

bench_edda_costs.py --db postgresql://... --bench start [--workflows 200]
bench_edda_costs.py --db postgresql://... --bench replay --steps 10000
bench_edda_costs.py --db postgresql://... --bench forked --steps 10000
bench_edda_costs.py --db postgresql://... --bench idle [--opt seconds=60]
bench_edda_costs.py --db postgresql://... --bench asleep [--workflows 1000000]
bench_edda_costs.py --db sqlite:////path/to/file --bench throughput --concurrency 64
bench_edda_costs.py --db postgresql://... --bench processes --concurrency 64 [--opt processes=4]
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from statistics import median
from typing import Any

from common import RESULT_TIMEOUT_SECONDS, arguments, distribution, drive, emit, fresh_database, leave, with_driver
from costs_common import (
    ENVIRONMENT_BEGAN,
    START_PAUSE_SECONDS,
    STARTS_BEFORE,
    LockWatch,
    StatementCounter,
    is_sqlite,
    launches,
    tell_seconds,
    told_seconds,
)
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event, text
from sqlalchemy.orm import Mapped, mapped_column

from edda_engine.storage.claim_at_once import claim_at_once
from edda_engine.storage.database import Database
from edda_wsgi import EddaFlask, SyncWorkflowContext, WorkflowContext, activity, workflow

given = arguments(
    "start",
    "replay",
    "forked",
    "idle",
    "asleep",
    "throughput",
    "processes",
    "_replay_build",
    "_replay_go",
    "_replay_go_forked",
    "_process",
)
db = SQLAlchemy()
began: dict[int, float] = {}


class Row(db.Model):  # type: ignore[name-defined]
    """What a request writes beside the start."""

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]


@activity
def note(ctx: WorkflowContext, key: int) -> int:
    began[key] = time.perf_counter()
    return key


CLAIM: dict[str, Any] = {"worker_id": "bench", "service": "edda", "names": ["one_step"], "limit": 64}

_IMPORT_OTHERS = "import flask, flask_sqlalchemy, psycopg, sqlalchemy.dialects.postgresql.psycopg"
"""What any process of such an application has to do first."""


@activity
def act(ctx: WorkflowContext, i: int) -> dict[str, Any]:
    return {"i": i, "ok": True}


@activity
def last(ctx: WorkflowContext) -> None:
    if given.bench.startswith("_replay_go"):
        tell_seconds()
    os._exit(0)


@workflow
def one_step(ctx: SyncWorkflowContext, key: int) -> int:
    return note(ctx, key)


@workflow
def chain(ctx: SyncWorkflowContext, steps: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for i in range(steps):
        found = act(ctx, i)
    return found


@workflow
def long_past(ctx: SyncWorkflowContext, steps: int) -> None:
    for i in range(steps):
        act(ctx, i)
    last(ctx)


def application() -> tuple[Flask, EddaFlask]:
    app = Flask("bench")
    app.config["SQLALCHEMY_DATABASE_URI"] = given.db if is_sqlite(given.db) else with_driver(given.db)
    if given.pool and not is_sqlite(given.db):
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": given.pool, "max_overflow": 0}
    db.init_app(app)
    edda = EddaFlask(app, db=db)
    with app.app_context():
        db.create_all()
    return app, edda


def start() -> None:
    """A start that commits at once, then one in a request's transaction; and the time until the first activity runs."""
    app, edda = application()
    edda.start_worker()
    for key in range(-STARTS_BEFORE, 0):
        with app.app_context():
            edda.result(one_step.options(session=None).start(key), timeout=RESULT_TIMEOUT_SECONDS)
    at_once, first_of_own, call, alone, together, first = [], [], [], [], [], []
    for key in range(given.workflows):
        time.sleep(START_PAUSE_SECONDS)
        with app.app_context():
            at = time.perf_counter()
            instance_id = one_step.options(session=None).start(key)
            at_once.append(time.perf_counter() - at)
            edda.result(instance_id, timeout=RESULT_TIMEOUT_SECONDS)
        first_of_own.append(began[key] - at)
        time.sleep(START_PAUSE_SECONDS)
        with app.app_context():
            db.session.add(Row(number=key))
            db.session.flush()
            at = time.perf_counter()
            db.session.commit()
            alone.append(time.perf_counter() - at)
        time.sleep(START_PAUSE_SECONDS)
        with app.app_context():
            db.session.add(Row(number=key))
            db.session.flush()
            at = time.perf_counter()
            instance_id = one_step.start(key)
            called = time.perf_counter()
            db.session.commit()
            committed = time.perf_counter()
            edda.result(instance_id, timeout=RESULT_TIMEOUT_SECONDS)
        call.append(called - at)
        together.append(committed - at)
        first.append(began[key] - at)
    emit(
        **about(), workflows=given.workflows, errors=0,
        start_call_ms=distribution(at_once),
        first_step_ms=distribution(first_of_own),
        joined_call_ms=distribution(call),
        beyond_commit_ms=round(1000 * (median(together) - median(alone)), 3),
        joined_first_step_ms=distribution(first),
    )  # fmt: skip


def replay() -> None:
    """A process is ended after so many steps; the time from the start of the next one to its next step."""
    command = _with_past()
    began = time.time()
    subprocess.run([sys.executable, "-c", _IMPORT_OTHERS], check=True)
    imports_seconds = time.time() - began
    environment = {**os.environ, ENVIRONMENT_BEGAN: str(time.time())}
    done = subprocess.run(
        [*command, "--bench", "_replay_go"], check=True, capture_output=True, text=True, env=environment
    )
    seconds = told_seconds(done.stdout)
    emit(
        **about(), workflows=1, steps=given.steps, errors=0, **seconds,
        beyond_imports_seconds=round(seconds["replay_seconds"] - imports_seconds, 3),
    )  # fmt: skip


def forked() -> None:
    """The same in a process that is forked from one which has the application loaded."""
    done = subprocess.run([*_with_past(), "--bench", "_replay_go_forked"], check=True, capture_output=True, text=True)
    emit(**about(), workflows=1, steps=given.steps, errors=0, **told_seconds(done.stdout))


def _with_past() -> list[str]:
    """The command line of a process that finds so many steps recorded, by another one that has ended since."""
    command = [sys.executable, __file__, "--db", given.db, "--steps", str(given.steps), "--keep-db"]
    subprocess.run([*command, "--bench", "_replay_build"], check=True)
    return command


def replay_process() -> None:
    launches()
    app, edda = application()
    if given.bench == "_replay_go_forked":
        with app.app_context():
            db.engine.dispose()
        os.environ[ENVIRONMENT_BEGAN] = str(time.time())
        launches()
        if child := os.fork():
            os.waitpid(child, 0)
            return
    edda.start_worker()
    if given.bench == "_replay_build":
        with app.app_context():
            long_past.options(session=None).start(given.steps)
    threading.Event().wait(600)


def idle() -> None:
    """Statements of a process that has nothing to do."""
    _app, edda = application()
    edda.start_worker()
    time.sleep(5)
    seconds = float(given.options.get("seconds", 60))
    with StatementCounter() as counter:
        time.sleep(seconds)
    emit(**about(), workflows=0, errors=0, statements_a_minute=round(60 * counter.total / seconds, 1))


def asleep() -> None:
    """Claims beside a million instances that sleep."""
    app, edda = application()
    edda.start_worker()
    with app.app_context():
        edda.result(one_step.options(session=None).start(-1), timeout=RESULT_TIMEOUT_SECONDS)
        edda.shutdown()
        db.session.execute(
            text(
                "INSERT INTO edda_instances (instance_id, workflow_name, service, status, input, source_hash, wake_at,"
                " lock_timeout_seconds, created_at, updated_at) SELECT 's' || n, 'one_step', 'edda', 'waiting_for_timer',"
                " '{}', '', now() + interval '30 days' + n * interval '1 second', 300, now(), now()"
                f" FROM generate_series(1, {given.workflows}) n"
            )
        )
        db.session.commit()
        db.session.execute(text("ANALYZE edda_instances"))
        db.session.commit()
        database = Database(db.engine)
        took = []
        for key in range(100):
            one_step.start(key)
            db.session.commit()
            at = time.perf_counter()
            claimed = claim_at_once(database.execute_alone, **CLAIM)
            took.append(time.perf_counter() - at)
            assert len(claimed.leases) == 1
        plan = _plan_of_claim(database)
    is_by_index = "using ix_edda_instances_due" in plan and "Seq Scan on edda_instances" not in plan
    emit(
        **about(), workflows=given.workflows, errors=int(not is_by_index), claim_ms=distribution(took),
        **({} if is_by_index else {"first_error": plan}),
    )  # fmt: skip


def _plan_of_claim(database: Database) -> str:
    """How the server makes it out."""
    asked: list[tuple[str, Any]] = []
    event.listen(database.service, "before_cursor_execute", lambda *args: asked.append((args[2], args[3])))
    claim_at_once(database.execute_alone, **CLAIM)
    statement, parameters = asked[-1]
    return "\n".join(db.session.connection().exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars())


def throughput(keep: bool = False) -> None:
    """As ``bench_edda_wsgi.py``, also on SQLite."""
    app, edda = application()
    edda.start_worker()

    def one() -> Any:
        with app.app_context():
            return edda.result(chain.options(session=None).start(given.steps), timeout=RESULT_TIMEOUT_SECONDS)

    expected = {"i": given.steps - 1, "ok": True}
    warm = drive(one, expected=expected, workflows=given.warmup, concurrency=given.concurrency)
    if "gate" in given.options:
        print("ready", flush=True)
        sys.stdin.readline()
    done = drive(one, expected=expected, workflows=given.workflows, concurrency=given.concurrency)
    emit(
        **about(), workflows=given.workflows, errors=len(warm.errors + done.errors),
        first_error=next(iter(warm.errors + done.errors), None),
        steps_per_s=round(given.workflows * given.steps / done.wall_seconds, 1),
    )  # fmt: skip


def processes() -> None:
    """So many processes on one database, against one: the sum of their throughput."""
    of_one = _side_by_side(1)
    with LockWatch(given.db) as locks:
        of_several = _side_by_side(int(given.options.get("processes", 4)))
    emit(
        **about(), workflows=given.workflows, errors=0, cores=multiprocessing.cpu_count(),
        steps_per_s_of_one=of_one, steps_per_s_of_several=of_several, **locks.figures,
    )  # fmt: skip


def _side_by_side(count: int) -> float:
    command = [
        sys.executable, __file__, "--db", given.db, "--bench", "throughput", "--keep-db", "--pool", str(given.pool),
        "--workflows", str(given.workflows), "--concurrency", str(given.concurrency), "--opt", "gate=yes",
    ]  # fmt: skip
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    began_all = time.perf_counter()
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        assert process.wait(600) == 0
    return round(count * given.workflows * given.steps / (time.perf_counter() - began_all), 1)


def about() -> dict[str, Any]:
    return {"system": "edda", "version": version("edda-wsgi"), "bench": given.bench, "mode": "def"}


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    if not given.keep_db and not is_sqlite(given.db):
        fresh_database(given.db)
    benches = {
        "start": start,
        "replay": replay,
        "forked": forked,
        "idle": idle,
        "asleep": asleep,
        "throughput": throughput,
        "processes": processes,
    }
    benches.get(given.bench, replay_process)()
    leave()
