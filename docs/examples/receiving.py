"""A shop that takes CloudEvents over HTTP: signed ones, which start a workflow, wake one, or are handled by a function."""

from __future__ import annotations

import json
import os
from typing import Any

import httpx
from flask import Flask, Request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from edda_wsgi import EddaFlask, ReceivedEvent, TerminalError, WorkflowContext, wait_event, workflow
from edda_wsgi.auth import sign

db = SQLAlchemy()
edda = EddaFlask()


class Payment(db.Model):  # type: ignore[name-defined]
    id: Mapped[str] = mapped_column(primary_key=True)
    order: Mapped[str]


# start
@workflow(event_handler=True, name="order.placed")
async def on_order_placed(ctx: WorkflowContext, number: str, amount: int) -> str:
    paid = await wait_event(ctx, "order.paid", timeout_seconds=86_400)
    return f"{number}: {paid.data['amount']} of {amount}"


# handler
@edda.on_event("order.paid")
def note_payment(event: ReceivedEvent[Any]) -> None:
    if event.subject is None:
        raise TerminalError("A payment without a subject belongs to no order.")
    db.session.add(Payment(id=event.id, order=event.subject))


# factory
def create_app(database_uri: str) -> Flask:
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = database_uri
    app.config["EDDA"] = {
        "EVENTS": {
            "URL_PREFIX": "/events",
            "AUTH": "edda_wsgi.auth.check_signature",
            "SECRET": os.environ["SHOP_EVENTS_SECRET"],
        }
    }
    db.init_app(app)
    edda.init_app(app, db=db)
    with app.app_context():
        db.create_all()
    return app


# check
def may_deliver(request: Request) -> bool:
    return request.headers.get("X-Forwarded-User") == "broker"


# send
def deliver(client: httpx.Client, secret: str, event: dict[str, Any]) -> httpx.Response:
    body = json.dumps(event).encode()
    headers = {"Content-Type": "application/cloudevents+json"}
    signature = sign(secret, path="/events", headers=headers, body=body)
    return client.post("/events", content=body, headers={**headers, **signature})


# end
