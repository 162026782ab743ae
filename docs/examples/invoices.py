"""The page on testing: an invoice is sent, reminded of, and paid or written off, over four weeks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from edda_wsgi import EddaFlask, EventTimeoutError, SyncWorkflowContext, WorkflowContext, activity, wait_event, workflow

db = SQLAlchemy()
edda = EddaFlask()


# application
class Invoice(db.Model):  # type: ignore[name-defined]
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    status: Mapped[str] = mapped_column(default="new")
    instance_id: Mapped[str | None]


@activity
def write_to_customer(ctx: WorkflowContext, invoice_id: int, status: str) -> None:
    invoice = db.session.get_one(Invoice, invoice_id)
    invoice.status = status
    send_mail = current_app.config["SEND_MAIL"]
    send_mail(invoice.customer, f"Invoice {invoice_id} is {status}", key=ctx.idempotency_key)


@activity
def close(ctx: WorkflowContext, invoice_id: int, status: str) -> str:
    db.session.get_one(Invoice, invoice_id).status = status
    return status


@workflow
def collect(ctx: SyncWorkflowContext, invoice_id: int) -> str:
    for status in ("sent", "reminded of"):
        write_to_customer(ctx, invoice_id, status)
        try:
            wait_event(ctx, "invoice.paid", timeout_seconds=timedelta(days=14))
        except EventTimeoutError:
            continue
        return close(ctx, invoice_id, "paid")
    return close(ctx, invoice_id, "written off")


def create_app(config: dict[str, Any]) -> Flask:
    app = Flask(__name__)
    app.config.update(EDDA={"SERVICE_NAME": "invoices"}, **config)
    db.init_app(app)
    edda.init_app(app, db=db)
    with app.app_context():
        db.create_all()

    @app.post("/invoices/<customer>")
    def bill(customer: str) -> tuple[dict[str, Any], int]:
        invoice = Invoice(customer=customer)
        db.session.add(invoice)
        db.session.flush()
        invoice.instance_id = collect.start(invoice_id=invoice.id)
        db.session.commit()
        return {"id": invoice.id, "instance_id": invoice.instance_id}, 202

    @app.post("/invoices/<int:invoice_id>/payments")
    def pay(invoice_id: int) -> tuple[dict[str, Any], int]:
        invoice = db.get_or_404(Invoice, invoice_id)
        edda.send_event("invoice.paid", "/bank", {"invoice": invoice_id}, instance_id=invoice.instance_id)
        db.session.commit()
        return {}, 202

    return app
