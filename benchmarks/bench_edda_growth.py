"""Ours: whether things become slower as their tables, histories and channels grow, and what it costs to prune them.

bench_edda_growth.py --db postgresql://... --bench finished [--workflows 1000000] [--concurrency 64]
bench_edda_growth.py --db postgresql://... --bench long [--steps 10000]
bench_edda_growth.py --db postgresql://... --bench backlog [--workflows 100000]
bench_edda_growth.py --db postgresql://... --bench prune [--workflows 100000]
"""

from __future__ import annotations

import itertools
import logging
import time
from importlib.metadata import version
from typing import Any

from common import RESULT_TIMEOUT_SECONDS, arguments, distribution, drive, emit, fresh_database, leave, with_driver
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text

from edda_engine.storage import pruning
from edda_wsgi import EddaFlask, SyncWorkflowContext, WorkflowContext, activity, receive, subscribe, workflow

given = arguments("finished", "long", "backlog", "prune")
db = SQLAlchemy()
ran_at: list[float] = []

MEASURED = 1000
"""Workflows, steps or messages of each half of a comparison."""
TAKERS = 16
CHANNEL = "work"


@activity
def act(ctx: WorkflowContext, i: int) -> dict[str, Any]:
    ran_at.append(time.perf_counter())
    return {"i": i, "ok": True}


@workflow
def chain(ctx: SyncWorkflowContext, steps: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for i in range(steps):
        found = act(ctx, i)
    return found


@workflow
def take(ctx: SyncWorkflowContext, messages: int) -> int:
    subscribe(ctx, CHANNEL, mode="competing")
    for _ in range(messages):
        receive(ctx, CHANNEL)
    return messages


def application() -> tuple[Flask, EddaFlask]:
    app = Flask("bench")
    app.config["SQLALCHEMY_DATABASE_URI"] = with_driver(given.db)
    if given.pool:
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": given.pool, "max_overflow": 0}
    db.init_app(app)
    edda = EddaFlask(app, db=db)
    edda.start_worker()
    return app, edda


def finished() -> None:
    """Throughput beside as many finished instances of five steps as were asked for, against none."""
    app, edda = application()

    def one() -> Any:
        with app.app_context():
            return edda.result(chain.options(session=None).start(5), timeout=RESULT_TIMEOUT_SECONDS)

    def steps_per_s(workflows: int) -> float:
        done = drive(one, expected={"i": 4, "ok": True}, workflows=workflows, concurrency=given.concurrency)
        assert not done.errors, done.errors[0]
        return round(workflows * 5 / done.wall_seconds, 1)

    with app.app_context():
        steps_per_s(2 * given.concurrency)
        empty = steps_per_s(2 * MEASURED)
        make_finished(given.workflows)
        steps_per_s(2 * given.concurrency)
        full = steps_per_s(2 * MEASURED)
    emit(**about(), workflows=given.workflows, errors=0, steps_per_s_empty=empty, steps_per_s_full=full)


def long() -> None:
    """One instance of so many steps: the time of each of its first ones and of its last ones."""
    app, edda = application()
    with app.app_context():
        edda.result(chain.options(session=None).start(100), timeout=RESULT_TIMEOUT_SECONDS)
        ran_at.clear()
        edda.result(chain.options(session=None).start(given.steps), timeout=RESULT_TIMEOUT_SECONDS * 5)
    spans = [later - earlier for earlier, later in itertools.pairwise(ran_at)]
    emit(
        **about(), workflows=1, steps=given.steps, errors=0,
        first_ms=distribution(spans[:MEASURED]), last_ms=distribution(spans[-MEASURED:]),
    )  # fmt: skip


def backlog() -> None:
    """A competing channel: messages a second that so many subscribers take, with a short queue and with a long one."""
    app, edda = application()
    with app.app_context():
        taken_per_s(edda, MEASURED)
        short = taken_per_s(edda, MEASURED)
        publish(edda, given.workflows)
        long_queue = taken_per_s(edda, 0)
        left = db.session.execute(text("SELECT count(*) FROM edda_inbox")).scalar()
    assert left == given.workflows - MEASURED, left
    emit(**about(), workflows=given.workflows, errors=0, taken_per_s_short=short, taken_per_s_long=long_queue)


def taken_per_s(edda: EddaFlask, publish_first: int) -> float:
    publish(edda, publish_first)
    each = MEASURED // TAKERS
    counts = [each + (1 if taker < MEASURED % TAKERS else 0) for taker in range(TAKERS)]
    began = time.perf_counter()
    takers = [take.options(session=None).start(count) for count in counts]
    assert [edda.result(taker, timeout=RESULT_TIMEOUT_SECONDS * 4) for taker in takers] == counts
    return round(MEASURED / (time.perf_counter() - began), 1)


def publish(edda: EddaFlask, messages: int) -> None:
    for first in range(0, messages, MEASURED):
        for number in range(first, min(first + MEASURED, messages)):
            edda.publish(CHANNEL, {"number": number})
        db.session.commit()


def prune() -> None:
    """Delete so many finished instances, batch by batch."""
    app, _edda = application()
    with app.app_context():
        make_finished(given.workflows)
        took, deleted = [], 0
        while True:
            at = time.perf_counter()
            batch = pruning.prune_instances(db.session.connection(), older_than_seconds=86_400)
            db.session.commit()
            took.append(time.perf_counter() - at)
            deleted += batch
            if batch == 0:
                break
    assert deleted == given.workflows, deleted
    emit(
        **about(), workflows=given.workflows, errors=0,
        pruned_per_s=round(deleted / sum(took), 1), batch_ms=distribution(took),
    )  # fmt: skip


def make_finished(count: int) -> None:
    """Instances of five steps that ended two days ago, as they are after a run and a vacuum."""
    db.session.execute(
        text(
            "INSERT INTO edda_instances (instance_id, workflow_name, service, status, input, output, source_hash,"
            " lock_timeout_seconds, lock_epoch, created_at, started_at, updated_at, completed_at)"
            " SELECT md5(CAST(n AS text)), 'chain', 'edda', 'completed', CAST(:input AS json), CAST(:output AS json), '',"
            " 300, 1, at, at, at, at"
            " FROM (SELECT n, now() - interval '2 days' - n * interval '1 millisecond' AS at"
            " FROM generate_series(1, :count) n) AS made"
        ),
        {"input": '{"steps":5}', "output": '{"i":4,"ok":true}', "count": count},
    )
    db.session.execute(
        text(
            "INSERT INTO edda_history (instance_id, activity_id, seq, branch, position, event_type, event_data, format,"
            " created_at) SELECT md5(CAST(n AS text)), 'act:' || step, step, '', step, 'ActivityCompleted',"
            " CAST(:event AS json), 1, now() - interval '2 days'"
            " FROM generate_series(1, :count) n, generate_series(1, 5) step"
        ),
        {"event": '{"activity_name":"act","input":{"i":1},"result":{"i":1,"ok":true}}', "count": count},
    )
    db.session.commit()
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(text("VACUUM ANALYZE edda_instances, edda_history"))
        conn.execute(text("CHECKPOINT"))


def about() -> dict[str, Any]:
    return {"system": "edda", "version": version("edda-wsgi"), "bench": given.bench, "mode": "def"}


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    if not given.keep_db:
        fresh_database(given.db)
    {"finished": finished, "long": long, "backlog": backlog, "prune": prune}[given.bench]()
    leave()
