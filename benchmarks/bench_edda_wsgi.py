"""Ours, through a Flask application: ``start()`` in an app context, then ``edda.result()``.

    bench_edda_wsgi.py --db postgresql://... [--concurrency 16] [--opt body=async] [--opt start=view] [--opt profile=FOLDER]

``step``    ``plain`` (the default), or ``write``: each step inserts one row through ``db.session``.
``body``    ``def`` (the default; the very text of the other program) or ``async``.
``start``   ``own``: a transaction of its own (the default). ``view``: joins ``db.session``, which then commits.
``profile`` write a CPU profile of each thread there; figures of such a run are not throughput.
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Any

import profiling
from common import RESULT_TIMEOUT_SECONDS, arguments, fresh_database, leave, throughput, with_driver
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from edda_wsgi import EddaFlask, SyncWorkflowContext, WorkflowContext, activity, workflow

given = arguments("throughput")
db = SQLAlchemy()


@activity
def act(ctx: WorkflowContext, i: int) -> dict[str, Any]:
    return {"i": i, "ok": True}


class Row(db.Model):  # type: ignore[name-defined]
    """What a writing step leaves behind."""

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]


@activity
def insert(ctx: WorkflowContext, i: int) -> dict[str, Any]:
    db.session.add(Row(number=i))
    db.session.commit()
    return {"i": i, "ok": True}


step = insert if given.options.get("step") == "write" else act


@workflow
def chain(ctx: SyncWorkflowContext, steps: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for i in range(steps):
        found = step(ctx, i)
    return found


@workflow
async def chain_async(ctx: WorkflowContext, steps: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for i in range(steps):
        found = await step(ctx, i)
    return found


def main() -> None:
    logging.basicConfig(level=logging.ERROR)
    if not given.keep_db:
        fresh_database(given.db)
    app = Flask("bench")
    app.config["SQLALCHEMY_DATABASE_URI"] = with_driver(given.db)
    if given.pool:
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": given.pool, "max_overflow": 0}
    db.init_app(app)
    profiles = profiling.ThreadProfiles() if "profile" in given.options else None
    edda = EddaFlask(app, db=db, **({"probe": profiles.probe} if profiles else {}))
    with app.app_context():
        db.create_all()
    edda.start_worker()

    body = given.options.get("body", "def")
    start = given.options.get("start", "own")
    flow = chain_async if body == "async" else chain

    def one() -> Any:
        with app.app_context():
            if start == "view":
                instance_id = flow.start(given.steps)
                db.session.commit()
            else:
                instance_id = flow.options(session=None).start(given.steps)
            return edda.result(instance_id, timeout=RESULT_TIMEOUT_SECONDS)

    expected = {"i": given.steps - 1, "ok": True}
    throughput(
        one,
        expected=expected,
        given=given,
        system="edda",
        version=version("edda-wsgi"),
        mode=f"{body}, start={start}, step={given.options.get('step', 'plain')}",
    )
    if profiles is not None:
        edda.shutdown()
        profiles.write(given.options["profile"])
    leave()


if __name__ == "__main__":
    main()
