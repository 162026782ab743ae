"""How an order is fulfilled: set aside, paid for in time, and handed to the packers; or called off.

The activities are ordinary Flask code. What they write through ``db.session`` is saved together with the record
that they ran, so after a crash a finished step is never run again, and an unfinished one has left nothing behind.
While an order waits for its payment it holds nothing, neither a thread nor a connection, be it for seconds or days.
"""

from __future__ import annotations

import asyncio
from typing import Literal

import httpx
from flask import current_app
from pydantic import BaseModel, Field
from sqlalchemy import update

from edda_wsgi import (
    EventTimeoutError,
    RetryExhaustedError,
    RetryPolicy,
    TerminalError,
    WorkflowContext,
    activity,
    publish,
    wait_event,
    workflow,
)
from example_flask_app.extensions import db
from example_flask_app.models import Article, OrderStatus, Payment, StockMovement, the_order
from example_flask_app.news import tell
from example_flask_app.packing import PAID_ORDERS

# The payment service is away now and then. It is asked until it answers: it may have taken the money.
PERSISTENT = RetryPolicy(max_attempts=None, max_duration=None, initial_interval=0.1, max_interval=2.0, jitter=0.5)


class Line(BaseModel):
    """So many pieces of one article."""

    sku: str = Field(min_length=1, max_length=40)
    quantity: int = Field(ge=1, le=100)


class Placed(BaseModel):
    """An order as its workflow sees it."""

    number: str
    card: str
    total_cents: int
    lines: list[Line]
    payment_term_seconds: float


class Settlement(BaseModel):
    """How the payment of an order has ended."""

    outcome: Literal["paid", "declined", "withdrawn"]
    reference: str


class OutOfStockError(TerminalError):
    """Trying again brings no tea onto the shelf."""


class NotPaidError(TerminalError):
    """The bank has said no, or nothing in time."""


@workflow
async def fulfil_order(ctx: WorkflowContext, order: Placed) -> str:
    """From the shelf to the packers; an order that is not paid for in time gives its pieces back."""
    taken = await asyncio.gather(
        *(take_from_shelf(ctx, order.number, line) for line in order.lines), return_exceptions=True
    )
    missing = [result for result in taken if isinstance(result, BaseException)]
    try:
        if missing:
            raise missing[0]
        await note_reserved(ctx, order.number)
        await ask_for_payment(ctx, order)
        settlement = await settled(ctx, order)
        if settlement.outcome != "paid":
            raise NotPaidError(f"the payment was {settlement.outcome}")
    except (TerminalError, RetryExhaustedError) as error:
        reserved = [line for line, result in zip(order.lines, taken, strict=True) if isinstance(result, int)]
        await call_off(ctx, order.number, reserved, str(error))
        return f"called off: {error}"
    await hand_to_packers(ctx, order, settlement.reference)
    ctx.logger.info("Order %s is paid (%s)", order.number, settlement.reference)
    return settlement.reference


async def settled(ctx: WorkflowContext, order: Placed) -> Settlement:
    """What the payment service tells about this order; when it has not in time, the charge is withdrawn."""
    try:
        event = await wait_event(ctx, "payment.settled", order.payment_term_seconds, model=Settlement)
    except EventTimeoutError:
        return await withdraw_payment(ctx, order)
    return event.data


@activity
def take_from_shelf(ctx: WorkflowContext, number: str, line: Line) -> int:
    """Reserve pieces of one article, and write down that they left."""
    enough = (Article.sku == line.sku, Article.quantity >= line.quantity)
    changed = db.session.execute(update(Article).where(*enough).values(quantity=Article.quantity - line.quantity))
    if changed.rowcount == 0:
        raise OutOfStockError(f"fewer than {line.quantity} pieces of {line.sku} are left")
    db.session.add(StockMovement(order_number=number, sku=line.sku, quantity=-line.quantity))
    db.session.commit()  # saved when the step's record is saved, or not at all
    return line.quantity


@activity
def note_reserved(ctx: WorkflowContext, number: str) -> None:
    """All pieces are set aside."""
    the_order(number).status = OrderStatus.RESERVED
    db.session.commit()


@activity(retry_policy=PERSISTENT)
def ask_for_payment(ctx: WorkflowContext, order: Placed) -> str:
    """Open a charge; its number makes sure that it is one. What comes of it is told to this very workflow.

    There is no SQL here, so no transaction is open while the service thinks.
    """
    answer = httpx.post(
        f"{current_app.config['SHOP_PAYMENT_URL']}/charges",
        json={
            "amount_cents": order.total_cents,
            "card": order.card,
            "answer_to": f"{current_app.config['SHOP_URL']}/events",
            "instance_id": ctx.instance_id,
        },
        headers={"Idempotency-Key": order.number},
        timeout=5.0,
    )
    answer.raise_for_status()  # tried again
    return str(answer.json()["reference"])


@activity(retry_policy=PERSISTENT)
def withdraw_payment(ctx: WorkflowContext, order: Placed) -> Settlement:
    """End the charge, unless the bank was faster just now: the service says which it was."""
    answer = httpx.delete(
        f"{current_app.config['SHOP_PAYMENT_URL']}/charges", headers={"Idempotency-Key": order.number}, timeout=5.0
    )
    answer.raise_for_status()
    return Settlement.model_validate_json(answer.content)


@activity
def hand_to_packers(ctx: WorkflowContext, order: Placed, reference: str) -> None:
    """Book the payment, tell the packers, tell the world: one transaction."""
    db.session.add(Payment(order_number=order.number, amount_cents=order.total_cents, reference=reference))
    the_order(order.number).status = OrderStatus.PAID
    db.session.commit()
    publish(ctx, PAID_ORDERS, order.number)
    tell(ctx, "order.paid", order.number, reference=reference)


@activity
def call_off(ctx: WorkflowContext, number: str, reserved: list[Line], reason: str) -> None:
    """Put back what was taken, and say why."""
    for line in reserved:
        db.session.execute(
            update(Article).where(Article.sku == line.sku).values(quantity=Article.quantity + line.quantity)
        )
        db.session.add(StockMovement(order_number=number, sku=line.sku, quantity=line.quantity))
    order = the_order(number)
    order.status, order.remark = OrderStatus.CALLED_OFF, reason
    db.session.commit()
    tell(ctx, "order.called_off", number, reason=reason)
