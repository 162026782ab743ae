"""A shop whose orders do everything that can be interrupted: steps, retries, waits, messages, timers, races.

An order is reserved and charged, waits until another process tells that it is paid, sleeps, and hands itself over to
the packers by a competing channel; a packer tells it by a message that it is packed. Readers hear of all that are handed
over. Packers and readers go on for ever, until the shop is closed.

It runs under gunicorn and ``flask edda worker`` and is told everything by environment variables. Never import it in a
test: it declares workflows.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event, insert
from sqlalchemy.exc import IntegrityError

from edda_wsgi import (
    EddaFlask,
    EventTimeoutError,
    RetryPolicy,
    SyncWorkflowContext,
    WorkflowContext,
    activity,
    publish,
    receive,
    send_event_transactional,
    send_to,
    sleep,
    subscribe,
    wait_event,
    workflow,
)
from tests.chaos import story

db = SQLAlchemy()
edda = EddaFlask(db=db)

# Pauses of 0.1, 0.4 and 1.5 seconds: the last is long enough to give the lease back.
STUBBORN = RetryPolicy(
    max_attempts=None, max_duration=None, initial_interval=0.1, backoff_coefficient=4.0, max_interval=1.5, jitter=0.0
)


def write(number: int, what: str) -> None:
    db.session.execute(insert(story.entries).values(number=number, what=what, pid=os.getpid()))


def tell(ctx: WorkflowContext, number: int, event_type: str) -> None:
    """Through the outbox: what is told of one order arrives in order."""
    send_event_transactional(ctx, event_type, "chaos", {}, subject=str(number), ordering_key=str(number))


@activity
def reserve(ctx: WorkflowContext, number: int) -> str:
    write(number, "reserved")
    db.session.commit()  # saved with the step, or not at all
    return "reserved"


@activity
async def label(ctx: WorkflowContext, number: int) -> str:
    """Needs no session: its step shares a commit with those of others."""
    return f"label of {number}"


@activity(retry_policy=STUBBORN)
def charge(ctx: WorkflowContext, number: int) -> int:
    write(number, "charged")
    db.session.commit()
    if ctx.attempt <= story.failures(number):
        raise ConnectionError("the bank hung up")
    return 100 * number


@activity
def hand_over(ctx: WorkflowContext, number: int) -> None:
    """Rows, two messages and an event: one transaction."""
    write(number, "handed over")
    publish(ctx, story.PARCELS, number)
    publish(ctx, story.NEWS, number)
    tell(ctx, number, "order.handed_over")


@activity
def close(ctx: WorkflowContext, number: int, packer: str) -> None:
    write(number, "closed")
    tell(ctx, number, "order.closed")


@activity
def call_off(ctx: WorkflowContext, number: int) -> None:
    write(number, "called off")
    tell(ctx, number, "order.called_off")


@activity
def pack(ctx: WorkflowContext, number: int, packer: str) -> None:
    write(number, "packed")
    send_to(ctx, story.order_id(number), packer)


@activity
def note(ctx: WorkflowContext, number: int, reader: str) -> None:
    write(number, f"read by {reader}")


@workflow
async def chaos_order(ctx: WorkflowContext, number: int) -> str:
    await reserve(ctx, number)
    await asyncio.gather(label(ctx, number), charge(ctx, number))
    try:
        await wait_event(ctx, "chaos.paid", 86_400 if story.is_paid(number) else 1.0)
    except EventTimeoutError:
        await call_off(ctx, number)
        return "called off"
    await sleep(ctx, 0.2 + number % 5 / 4)
    await hand_over(ctx, number)
    _, message = await ctx.first_of(receive(ctx), sleep(ctx, 86_400))
    await close(ctx, number, message.data)
    return "closed"


@workflow
def chaos_packer(ctx: SyncWorkflowContext, name: str) -> str:
    """Packs what it can get hold of; every now and then it begins again with an empty history."""
    subscribe(ctx, story.PARCELS, mode="competing")
    for _ in range(20):
        number = receive(ctx, story.PARCELS).data
        if number == story.CLOSING:
            return "gone home"
        pack(ctx, number, name)
    return ctx.recur(name=name)


@workflow
async def chaos_reader(ctx: WorkflowContext, name: str) -> str:
    """Hears of every order."""
    await subscribe(ctx, story.NEWS)
    for _ in range(20):
        number = (await receive(ctx, story.NEWS)).data
        if number == story.CLOSING:
            return "gone home"
        await note(ctx, number, name)
    return ctx.recur(name=name)


def create_app() -> Flask:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(message)s")
    for chatterer in ("alembic", "httpx"):
        logging.getLogger(chatterer).setLevel(logging.WARNING)
    signal.signal(signal.SIGUSR2, _name_threads)
    app = Flask(__name__)
    url = os.environ["CHAOS_DATABASE_URL"]
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": story.POOL_SIZE, "max_overflow": 0}
    app.config["EDDA"] = {
        "LOCK_TIMEOUT_SECONDS": story.LOCK_SECONDS,
        "THREADS": story.THREADS,
        "MAX_RUNNING": 32,  # so much work is begun anew with each kill
        "OUTBOX": {"URL": os.environ["CHAOS_RECEIVER_URL"]},
    }
    db.init_app(app)
    edda.init_app(app)
    with app.app_context():
        if url.startswith("postgresql"):
            _name_connections()

    @app.get("/")
    def home() -> dict[str, int]:
        return {"pid": os.getpid()}

    @app.post("/staff")
    def hire() -> tuple[dict[str, Any], int]:
        """Hired again they are the same ones."""
        for name in story.PACKERS:
            chaos_packer.options(instance_id=name).start(name)
        for name in story.READERS:
            chaos_reader.options(instance_id=name).start(name)
        db.session.commit()
        return {}, 202

    @app.post("/orders/<int:number>")
    def place(number: int) -> tuple[dict[str, Any], int]:
        """The row and the start are one transaction; sent again, it is the same order."""
        if is_known(story.orders, number):
            return {}, 200
        chaos_order.options(instance_id=story.order_id(number)).start(number)
        db.session.commit()
        return {}, 202

    @app.post("/payments/<int:number>")
    def pay(number: int) -> tuple[dict[str, Any], int]:
        """The row and the event are one transaction; sent again, it is the same payment."""
        if is_known(story.payments, number):
            return {}, 200
        if number == story.CLOSING:
            for _ in story.PACKERS:
                edda.publish(story.PARCELS, number)
            edda.publish(story.NEWS, number)
        else:
            edda.send_event("chaos.paid", "bank", {"number": number}, instance_id=story.order_id(number))
        db.session.commit()
        return {}, 202

    def is_known(table: Any, number: int) -> bool:
        try:
            db.session.execute(insert(table).values(number=number))
        except IntegrityError:
            db.session.rollback()
            return True
        return False

    return app


def _name_threads(*_: Any) -> None:
    """Write down the names of all threads, for whoever looks for one that leaked."""
    made = Path(os.environ["CHAOS_FOLDER"]) / f"threads-{os.getpid()}"
    unfinished = made.with_suffix(".unfinished")
    unfinished.write_text("\n".join(thread.name for thread in threading.enumerate()))
    unfinished.rename(made)


def _name_connections() -> None:
    """Let the server tell whose connection is whose."""

    @event.listens_for(db.engine, "do_connect")
    def _say_who_we_are(_dialect: Any, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
        parameters["application_name"] = f"chaos {os.getpid()}"
