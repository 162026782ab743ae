"""A small shop that takes signed events, for the tests that run it under gunicorn."""

from __future__ import annotations

import os
from pathlib import Path

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from edda_wsgi import EddaFlask, ReceivedEvent, WorkflowContext, activity, wait_event, workflow


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)


class Note(db.Model):  # type: ignore[name-defined,misc]
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


def die_once(name: str) -> None:
    """End the process at the point that the environment names, the first time that any process comes there."""
    if name == os.environ.get("SHOP_DIES_AT"):
        try:
            (Path(os.environ["SHOP_FOLDER"]) / "died").touch(exist_ok=False)
        except FileExistsError:
            return
        os._exit(9)


edda = EddaFlask(probe=die_once)


@activity
def note_served(ctx: WorkflowContext, words: str) -> None:
    db.session.add(Note(text=words))


@workflow(event_handler=True, name="served.order")
async def on_served_order(ctx: WorkflowContext, order_id: int) -> None:
    await note_served(ctx, f"placed {order_id}")


@workflow
async def await_served_payment(ctx: WorkflowContext) -> None:
    paid = await wait_event(ctx, "order.paid")
    await note_served(ctx, f"received {paid.data}")


@edda.on_event("order.paid")
def on_order_paid(event: ReceivedEvent[object]) -> None:
    db.session.add(Note(text=f"handled {event.data}"))


def create_app() -> Flask:
    app = Flask("events shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["SHOP_DATABASE_URL"]
    app.config["EDDA"] = {
        "EVENTS": {
            "URL_PREFIX": "/events",
            "AUTH": "edda_wsgi.auth.check_signature",
            "SECRET": os.environ["SHOP_SECRET"],
            "MAX_BYTES": 100_000,
        }
    }
    db.init_app(app)
    edda.init_app(app, db=db)
    return app
