"""Sending events and messages: from a view, an activity, a workflow's body, and anywhere else."""

from __future__ import annotations

from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from edda_wsgi import (
    EddaFlask,
    RetryPolicy,
    SyncWorkflowContext,
    TerminalError,
    WorkflowContext,
    activity,
    send_event,
    wait_event,
    workflow,
)

db = SQLAlchemy()
edda = EddaFlask()


class Invoice(db.Model):  # type: ignore[name-defined]
    number: Mapped[str] = mapped_column(primary_key=True)
    amount: Mapped[int]


@workflow
def collect(ctx: SyncWorkflowContext, number: str) -> Any:
    return wait_event(ctx, "invoice.settled").data


# view
def add_views(app: Flask) -> None:
    @app.post("/invoices/<number>/settle")
    def settle(number: str) -> dict[str, str]:
        db.session.add(Invoice(number=number, amount=12))
        event_id = send_event("invoice.settled", "shop", {"amount": 12}, instance_id=f"collect-{number}")
        db.session.commit()  # the event is sent by this commit, and gone with a rollback
        return {"event_id": event_id}

    @app.post("/invoices/<number>/forget")
    def forget(number: str) -> dict[str, str]:
        send_event("invoice.settled", "shop", {"amount": 0}, instance_id=f"collect-{number}")
        db.session.rollback()  # it was never sent
        return {}

    @app.post("/invoices/<number>/settle-at-once")
    def settle_at_once(number: str) -> dict[str, str]:
        edda.send_event("invoice.settled", "shop", {"amount": 7}, instance_id=f"collect-{number}", session=None)
        db.session.rollback()  # changes nothing: the event is committed already
        return {}


# activity
@activity
def settle_invoice(ctx: WorkflowContext, number: str, amount: int) -> None:
    db.session.add(Invoice(number=number, amount=amount))
    send_event("invoice.settled", "settlement", {"amount": amount}, instance_id=f"collect-{number}")


@activity(retry_policy=RetryPolicy(max_attempts=1))
def settle_and_fail(ctx: WorkflowContext, number: str) -> None:
    send_event("invoice.settled", "settlement", {"amount": -1}, instance_id=f"collect-{number}")
    raise TerminalError("the bank is closed")  # the event is not sent


# body
@workflow
def settlement(ctx: SyncWorkflowContext, number: str, amount: int) -> None:
    try:
        settle_and_fail(ctx, number)
    except TerminalError:
        settle_invoice(ctx, number, amount)


@workflow
def settle_directly(ctx: SyncWorkflowContext, number: str) -> None:
    send_event("invoice.settled", "settlement", {"amount": 5}, instance_id=f"collect-{number}")


# end
def create_app(config: dict[str, Any]) -> Flask:
    app = Flask(__name__)
    app.config.update(config)
    app.config.from_prefixed_env()
    db.init_app(app)
    edda.init_app(app, db=db)
    add_views(app)
    with app.app_context():
        db.create_all()
    return app
