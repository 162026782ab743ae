"""A shop in one file. Run it with: flask --app shop run"""

import time

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column

from edda_wsgi import EddaFlask, RetryPolicy, SyncWorkflowContext, WorkflowContext, activity, workflow

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///shop.db"  # or postgresql+psycopg://user@host/shop
db = SQLAlchemy(app)
edda = EddaFlask(app, db=db)


class Order(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    article: Mapped[str]
    status: Mapped[str] = mapped_column(default="placed")


with app.app_context():
    db.create_all()


@activity(retry_policy=RetryPolicy(max_attempts=10, initial_interval=0.5))
def charge(ctx: WorkflowContext, order_id: int) -> str:
    time.sleep(3)  # call the payment service here, with ctx.idempotency_key
    db.session.get_one(Order, order_id).status = "paid"
    db.session.commit()  # saved together with the record of this step, or not at all
    return f"receipt for {ctx.idempotency_key}"


@activity
def ship(ctx: WorkflowContext, order_id: int) -> None:
    time.sleep(3)
    db.session.get_one(Order, order_id).status = "shipped"


@workflow
def fulfil(ctx: SyncWorkflowContext, order_id: int) -> str:  # or `async def`, WorkflowContext and `await charge(...)`
    receipt = charge(ctx, order_id)
    ship(ctx, order_id)
    return receipt


@app.post("/orders/<article>")
def place_order(article: str) -> tuple[dict[str, int | str], int]:
    order = Order(article=article)
    db.session.add(order)
    db.session.flush()
    instance_id = fulfil.start(order_id=order.id)  # like db.session.add(): saved by this commit
    db.session.commit()
    return {"order": order.id, "instance_id": instance_id}, 202


@app.get("/orders/<int:order_id>")
def show_order(order_id: int) -> dict[str, str]:
    return {"status": db.get_or_404(Order, order_id).status}
