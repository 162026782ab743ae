"""Ours, waiting: ``sleep`` and ``wait_event`` in a Flask application; the sender is another one of role ``client``.

    bench_edda_waiting.py --db postgresql://... --bench event [--workflows 200] [--opt body=async] [--opt parked=10000]

``body``    ``def`` (the default) or ``async``.
``parked``  the setting MAX_PARKED, its default if left out.
``pause``   seconds between two events, instead of a few hundredths.
``profile`` write a CPU profile of each thread there; figures of such a run do not count.
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Any

import profiling
from common import RESULT_TIMEOUT_SECONDS, arguments, fresh_database, leave, with_driver
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from waits import BENCHES, Library, Notes, in_batches, run, sender

from edda_wsgi import EddaFlask, SyncWorkflowContext, WorkflowContext, activity, sleep, wait_event, workflow

EVENT = "bench.arrived"

given = arguments(*BENCHES)
db = SQLAlchemy()
notes = Notes()


@activity
def steps(ctx: WorkflowContext, key: int) -> int:
    return notes.steps(key)


@activity
def arrives(ctx: WorkflowContext, key: int, sent_at: float) -> int:
    return notes.arrives(key, sent_at)


@workflow
def sleeper(ctx: SyncWorkflowContext, key: int, seconds: float) -> int:
    sleep(ctx, notes.asks(key, seconds))
    notes.wakes(key)
    return steps(ctx, key)


@workflow
async def sleeper_async(ctx: WorkflowContext, key: int, seconds: float) -> int:
    await sleep(ctx, notes.asks(key, seconds))
    notes.wakes(key)
    return await steps(ctx, key)


@workflow
def receiver(ctx: SyncWorkflowContext, key: int) -> int:
    event = wait_event(ctx, EVENT)
    return arrives(ctx, key, event.data["sent_at"])


@workflow
async def receiver_async(ctx: WorkflowContext, key: int) -> int:
    event = await wait_event(ctx, EVENT)
    return await arrives(ctx, key, event.data["sent_at"])


def application(**settings: Any) -> tuple[Flask, EddaFlask]:
    app = Flask("bench")
    app.config["SQLALCHEMY_DATABASE_URI"] = with_driver(given.db)
    if given.pool:
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": given.pool, "max_overflow": 0}
    db.init_app(app)
    return app, EddaFlask(app, db=db, **settings)


def send_for_others() -> None:
    app, edda = application(role="client")

    def send(instance_id: str, sent_at: float) -> None:
        with app.app_context():
            edda.send_event(EVENT, "bench", {"sent_at": sent_at}, instance_id=instance_id)
            db.session.commit()

    sender(send)


def main() -> None:
    logging.basicConfig(level=logging.ERROR)
    if given.bench == "sender":
        send_for_others()
        return
    if not given.keep_db:
        fresh_database(given.db)
    settings: dict[str, Any] = {"max_parked": int(given.options["parked"])} if "parked" in given.options else {}
    profiles = profiling.ThreadProfiles() if "profile" in given.options else None
    app, edda = application(**settings, **({"probe": profiles.probe} if profiles else {}))
    edda.start_worker()

    body = given.options.get("body", "def")
    sleeping, receiving = (sleeper_async, receiver_async) if body == "async" else (sleeper, receiver)

    def start_sleeper(key: int, seconds: float) -> str:
        with app.app_context():
            return sleeping.options(session=None).start(key, seconds)

    def start_receivers(keys: range) -> list[str]:
        started = []
        for batch in in_batches(keys, 100):
            with app.app_context():
                started += [receiving.start(key) for key in batch]
                db.session.commit()
        return started

    library = Library(
        system="edda",
        version=version("edda-wsgi"),
        body=body,
        notes=notes,
        start_sleeper=start_sleeper,
        start_receivers=start_receivers,
        result=lambda instance_id: edda.result(instance_id, timeout=RESULT_TIMEOUT_SECONDS),
        address=lambda instance_id: instance_id,
        waiting_query="SELECT count(*) FROM edda_instances WHERE status = 'waiting_for_event' AND locked_by IS NULL",
    )
    run(library, given)
    if profiles is not None:
        edda.shutdown()
        profiles.write(given.options["profile"])
    leave()


if __name__ == "__main__":
    main()
