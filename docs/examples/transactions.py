"""How an activity's database work behaves."""

from __future__ import annotations

from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from edda_wsgi import EddaFlask, TerminalError, WorkflowContext, activity, send_event_transactional, workflow

db = SQLAlchemy()
edda = EddaFlask()
announced: list[str] = []


class Payment(db.Model):  # type: ignore[name-defined]
    reference: Mapped[str] = mapped_column(primary_key=True)
    amount: Mapped[int]


# commit
@activity
def pay(ctx: WorkflowContext, reference: str, amount: int) -> str:
    db.session.add(Payment(reference=reference, amount=amount))
    db.session.commit()  # inside the activity's transaction; durable with its history row
    return reference


# fails
@activity
def pay_and_fail(ctx: WorkflowContext, reference: str) -> None:
    db.session.add(Payment(reference=reference, amount=1))
    db.session.commit()
    raise TerminalError("the card was refused")  # the payment is rolled back with the attempt


# integrity
@activity
def pay_once(ctx: WorkflowContext, reference: str, amount: int) -> bool:
    try:
        with db.session.begin_nested():
            db.session.add(Payment(reference=reference, amount=amount))
    except IntegrityError:
        return False  # it was there already; the rest of the transaction is intact
    return True


# savepoint
@activity
def pay_in_parts(ctx: WorkflowContext, reference: str) -> int:
    paid = 0
    for number, amount in enumerate((5, -1, 7)):
        try:
            with ctx.transaction():
                db.session.add(Payment(reference=f"{reference}-{number}", amount=amount))
                if amount < 0:
                    raise ValueError("a negative amount")
                paid += amount
        except ValueError:
            continue
    return paid


# events
@activity
def pay_and_tell(ctx: WorkflowContext, reference: str, amount: int) -> str:
    db.session.add(Payment(reference=reference, amount=amount))
    event_id = send_event_transactional(ctx, "payment.made", "shop", {"reference": reference})
    ctx.register_post_commit(lambda: announced.append(reference))
    return event_id


# async
@activity
async def count_payments(ctx: WorkflowContext) -> int:
    found = await ctx.session.execute(text("SELECT count(*) FROM payment"))
    return int(found.scalar_one())


# workflow
@workflow
async def settle(ctx: WorkflowContext, reference: str) -> dict[str, Any]:
    await pay(ctx, reference, 10)
    try:
        await pay_and_fail(ctx, "refused")
    except TerminalError as error:
        problem = str(error)
    is_new = await pay_once(ctx, reference, 10)
    parts = await pay_in_parts(ctx, reference)
    await pay_and_tell(ctx, "told", 3)
    return {"problem": problem, "is_new": is_new, "parts": parts, "payments": await count_payments(ctx)}


# views
def add_views(app: Flask) -> None:
    @app.post("/settle/<reference>")
    def settle_now(reference: str) -> dict[str, str]:
        instance_id = settle.start(reference=reference)
        db.session.commit()
        return {"instance_id": instance_id}

    @app.post("/forget/<reference>")
    def start_and_roll_back(reference: str) -> dict[str, str]:
        instance_id = settle.start(reference=reference)
        db.session.rollback()  # it was never started
        return {"instance_id": instance_id}

    @app.post("/at-once/<reference>")
    def start_at_once(reference: str) -> dict[str, str]:
        instance_id = settle.options(session=None).start(reference=reference)
        db.session.rollback()  # changes nothing: the start is committed already
        return {"instance_id": instance_id}

    @app.post("/once/<key>")
    def start_once(key: str) -> dict[str, str]:
        instance_id = settle.options(instance_id=f"settle-{key}").start(reference=key)
        db.session.commit()
        return {"instance_id": instance_id}


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
