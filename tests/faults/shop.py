"""A shop small enough to see through, run by the tests in processes of its own, and killed and paused there.

It is told everything by environment variables: ``SHOP_DATABASE_URL``; ``SHOP_FOLDER``, where it notes each run of an
activity and looks for the gate; ``SHOP_PROBE`` (``"step.before_commit 1 kill"``), where and at which passing it is to
kill or to stop itself. Settings of edda come as ``FLASK_EDDA_<NAME>``.

Never import it in a test: it declares workflows.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import click
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import insert

from edda_engine.runtime.probes import POINTS, RELAY_POINTS
from edda_wsgi import (
    EddaFlask,
    RetryPolicy,
    SyncWorkflowContext,
    WorkflowContext,
    activity,
    send_event_transactional,
    workflow,
)
from tests.faults.ledger import entries

_POINT, _PASSING, _ACTION = (os.environ.get("SHOP_PROBE") or "nowhere 0 kill").split()
_passings = itertools.count(1)
_never = threading.Event()


def probe(point: str) -> None:
    assert point in POINTS + RELAY_POINTS, f"{point} is missing in POINTS, so no test kills there"
    if point == _POINT and next(_passings) == int(_PASSING):
        if _ACTION == "kill":
            os._exit(9)
        stop()


def stop() -> None:
    """Stop this process until the test resumes it for good; between, other threads may end what they are writing."""
    while not (folder() / "awake").exists():
        os.kill(os.getpid(), signal.SIGSTOP)
        take(0.02)


db = SQLAlchemy()
edda = EddaFlask(db=db, probe=probe)


def note(ctx: WorkflowContext, what: str) -> None:
    """Tell the test that an activity runs; unlike its rows this is not undone by anything."""
    with (folder() / "runs").open("a") as file:
        file.write(f"{what} {ctx.instance_id} {os.getpid()}\n")


def write(ctx: WorkflowContext, what: str) -> None:
    db.session.execute(insert(entries).values(instance_id=ctx.instance_id, what=what, pid=os.getpid()))


def folder() -> Path:
    return Path(os.environ["SHOP_FOLDER"])


def wait_at_the_gate() -> None:
    while not (folder() / "gate").exists():
        take(0.02)


def take(seconds: float) -> None:
    _never.wait(seconds)


@activity
def quote(ctx: WorkflowContext, order: int) -> int:
    """Needs no session."""
    note(ctx, "quote")
    return order * 100


@activity
def reserve(ctx: WorkflowContext, order: int) -> str:
    """Writes, and sends an event; commits in the middle as people do."""
    note(ctx, "reserve")
    send_event_transactional(ctx, "order.reserved", "shop", {"order": order})
    write(ctx, "reserved")
    db.session.commit()
    take(0.05)
    return "reserved"


@activity(retry_policy=RetryPolicy(max_attempts=20, initial_interval=0.05, backoff_coefficient=1.0))
def charge(ctx: WorkflowContext, order: int, cents: int) -> int:
    """Fails once, after it has written and committed."""
    note(ctx, "charge")
    write(ctx, "charged")
    db.session.commit()
    if ctx.attempt == 1:
        raise ConnectionError("the payment service hung up")
    return cents


@activity
def pack(ctx: WorkflowContext, order: int, parcel: int) -> int:
    note(ctx, f"pack-{parcel}")
    take(0.05)
    write(ctx, f"packed {parcel}")
    return parcel


@activity
async def label(ctx: WorkflowContext, order: int) -> str:
    """Needs no session, and sends an event."""
    note(ctx, "label")
    await send_event_transactional(ctx, "order.labelled", "shop", {"order": order})
    return "labelled"


@activity
def hold(ctx: WorkflowContext, order: int, write_first: bool) -> str:
    """Is under way until the test opens the gate."""
    if write_first:
        write(ctx, "held")
    note(ctx, "hold")
    wait_at_the_gate()
    if not write_first:
        write(ctx, "held")
    send_event_transactional(ctx, "order.held", "shop", {"order": order})
    return "held"


@activity
def think(ctx: WorkflowContext, order: int) -> int:
    """As hold(), and needs no session: its step is committed together with others."""
    note(ctx, "think")
    wait_at_the_gate()
    return order


@workflow
async def fulfil(ctx: WorkflowContext, order: int) -> dict[str, Any]:
    cents = await quote(ctx, order)
    await reserve(ctx, order)
    charged = await charge(ctx, order, cents)
    parcels = await asyncio.gather(pack(ctx, order, 1), pack(ctx, order, 2), label(ctx, order))
    return {"charged": charged, "parcels": parcels}


@workflow
def fulfil_plainly(ctx: SyncWorkflowContext, order: int) -> dict[str, Any]:
    cents = quote(ctx, order)
    reserve(ctx, order)
    charged = charge(ctx, order, cents)
    parcels = ctx.gather(
        lambda: pack(ctx, order, 1),
        lambda: pack(ctx, order, 2),
        lambda: label(ctx, order),
    )
    return {"charged": charged, "parcels": parcels}


@workflow
async def held(ctx: WorkflowContext, order: int, write_first: bool = False) -> str:
    await quote(ctx, order)
    found = await hold(ctx, order, write_first)
    await quote(ctx, order)
    return found


@workflow
async def thought(ctx: WorkflowContext, order: int) -> int:
    return await think(ctx, order)


KINDS = {"fulfil": fulfil, "fulfil_plainly": fulfil_plainly, "held": held, "thought": thought}


def place(kind: str, order: int, **arguments: Any) -> str:
    """Start one in the session, with a row of the application beside it."""
    instance_id = KINDS[kind].options(instance_id=f"{kind}-{order}").start(order=order, **arguments)
    db.session.execute(insert(entries).values(instance_id=instance_id, what="placed", pid=os.getpid()))
    return instance_id


def create_app() -> Flask:
    logging.basicConfig(level=logging.INFO, format="%(process)d %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["SHOP_DATABASE_URL"]
    app.config.from_prefixed_env()
    db.init_app(app)
    edda.init_app(app)

    @app.post("/orders/<kind>/<int:order>")
    def order_one(kind: str, order: int) -> tuple[dict[str, Any], int]:
        instance_id = place(kind, order)
        db.session.commit()
        return {"instance_id": instance_id, "pid": os.getpid()}, 202

    @app.get("/")
    def home() -> dict[str, int]:
        return {"pid": os.getpid()}

    @app.cli.command("place")
    @click.argument("orders", nargs=-1)
    def place_all(orders: tuple[str, ...]) -> None:
        """Place orders, each given as KIND:NUMBER or KIND:NUMBER:write_first, in one transaction."""
        for kind, number, *flags in (order.split(":") for order in orders):
            place(kind, int(number), **dict.fromkeys(flags, True))
        db.session.commit()

    @app.cli.command("work")
    @click.argument("orders", nargs=-1)
    def work(orders: tuple[str, ...]) -> None:
        """Place orders, then run workflows until SIGTERM."""
        place_all.callback(orders)
        edda.run_worker()

    if "SHOP_USES_DATABASE_BEFORE_FORK" in os.environ:
        with app.app_context():
            db.session.execute(insert(entries).values(instance_id="none", what="loaded", pid=os.getpid()))
            db.session.commit()
    return app
