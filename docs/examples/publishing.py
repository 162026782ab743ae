"""Events for other services: sent from a view and an activity, published by whatever OUTBOX names."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from edda_engine import OutboxRelayer, PublishLaterError, PublishRefusedError
from edda_engine.outbox.publishers import OutgoingEvent
from edda_wsgi import EddaFlask, WorkflowContext, activity, send_event_transactional, workflow

db = SQLAlchemy()
edda = EddaFlask()


class Order(db.Model):  # type: ignore[name-defined]
    number: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str]


# activity
@activity
def ship(ctx: WorkflowContext, number: str) -> None:
    order = db.session.get_one(Order, number)
    order.status = "shipped"
    send_event_transactional(ctx, "order.shipped", "/shop", {"number": number}, subject=number, ordering_key=number)


# workflow
@workflow
async def fulfil(ctx: WorkflowContext, number: str) -> None:
    await ship(ctx, number)


# view
def add_views(app: Flask) -> None:
    @app.post("/orders/<number>")
    def place(number: str) -> dict[str, str]:
        db.session.add(Order(number=number, status="placed"))
        edda.send_event_transactional("order.placed", "/shop", {"number": number}, ordering_key=number)
        fulfil.start(number=number)
        db.session.commit()  # the order, the event and the start: all of them, or none
        return {"number": number}


# function
outbox_of_a_function = {
    "BACKEND": "edda_engine.outbox.publishers.CallablePublisher",
    "FUNCTION": "publishing.append_to_file",
}

journal = Path("journal.jsonl")


def append_to_file(event: OutgoingEvent) -> None:
    with journal.open("a") as file:
        file.write(json.dumps({"id": event.event_id, "type": event.type, "data": event.data}) + "\n")


# class
class QueuePublisher:
    def __init__(self, *, room: int) -> None:  # OUTBOX = {"BACKEND": "publishing.QueuePublisher", "ROOM": 100}
        self.queue: asyncio.Queue[OutgoingEvent] = asyncio.Queue(room)

    async def publish(self, event: OutgoingEvent) -> None:
        if event.content_type != "application/json":
            raise PublishRefusedError(f"only JSON is taken, not {event.content_type}")
        try:
            self.queue.put_nowait(event)
        except asyncio.QueueFull:
            raise PublishLaterError("the queue is full", retry_after_seconds=30) from None

    async def close(self) -> None:
        pass


# relayer
async def relay(db_url: str, broker_url: str) -> None:
    async with OutboxRelayer(db_url, broker_url=broker_url) as relayer:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, relayer.stop)
        await relayer.run()


async def relay_once(db_url: str, broker_url: str) -> int:
    async with OutboxRelayer(db_url, broker_url=broker_url) as relayer:
        return await relayer.publish_due()


# end
def create_app(config: dict[str, Any]) -> Flask:
    app = Flask(__name__)
    app.config.update(config)
    db.init_app(app)
    edda.init_app(app, db=db)
    add_views(app)
    with app.app_context():
        db.create_all()
    return app
