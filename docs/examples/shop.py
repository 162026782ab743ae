"""The quick start: a shop whose orders survive a crash."""

from __future__ import annotations

import time
from typing import Any

from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from edda_wsgi import EddaFlask, RetryPolicy, SyncWorkflowContext, WorkflowContext, activity, workflow

db = SQLAlchemy()
edda = EddaFlask()


# models
class Order(db.Model):  # type: ignore[name-defined]
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    status: Mapped[str] = mapped_column(default="new")


# activities
@activity
def reserve(ctx: WorkflowContext, order_id: int) -> str:
    order = db.session.get_one(Order, order_id)
    order.status = "reserved"
    db.session.commit()
    return order.item


@activity(retry_policy=RetryPolicy(max_attempts=10))
def pack(ctx: WorkflowContext, item: str) -> str:
    time.sleep(current_app.config["PACKING_SECONDS"])
    return f"parcel with one {item}"


@activity
def ship(ctx: WorkflowContext, order_id: int) -> str:
    order = db.session.get_one(Order, order_id)
    order.status = "shipped"
    db.session.commit()
    return order.status


# workflow
@workflow
def fulfil(ctx: SyncWorkflowContext, order_id: int) -> dict[str, str]:
    item = reserve(ctx, order_id)
    parcel = pack(ctx, item)
    status = ship(ctx, order_id)
    return {"parcel": parcel, "status": status}


# application
def create_app(config: dict[str, Any] | None = None) -> Flask:
    app = Flask(__name__)
    app.config.update(SQLALCHEMY_DATABASE_URI="sqlite:///shop.db", PACKING_SECONDS=10, EDDA={"SERVICE_NAME": "shop"})
    app.config.from_prefixed_env()
    app.config.update(config or {})
    db.init_app(app)
    edda.init_app(app, db=db)
    with app.app_context():
        db.create_all()

    @app.post("/orders/<item>")
    def create_order(item: str) -> tuple[dict[str, Any], int]:
        order = Order(item=item)
        db.session.add(order)
        db.session.flush()
        instance_id = fulfil.start(order_id=order.id)
        db.session.commit()
        return {"order_id": order.id, "instance_id": instance_id}, 202

    @app.get("/orders/<int:order_id>")
    def show_order(order_id: int) -> dict[str, Any]:
        order = db.get_or_404(Order, order_id)
        return {"order_id": order.id, "item": order.item, "status": order.status}

    return app
