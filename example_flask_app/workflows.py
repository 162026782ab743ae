"""How an order is fulfilled: reserve and charge in an ``async def`` workflow, deliver in a plain ``def`` one.

The activities are ordinary Flask code. What they write through ``db.session`` is saved together with the record
that they ran, so after a crash a finished step is never run again, and an unfinished one has left nothing behind.
"""

from __future__ import annotations

import asyncio
import time

import httpx
from flask import current_app
from pydantic import BaseModel, Field
from sqlalchemy import update

from edda_wsgi import (
    RetryExhaustedError,
    RetryPolicy,
    SyncWorkflowContext,
    TerminalError,
    WorkflowContext,
    activity,
    send_event_transactional,
    workflow,
)
from example_flask_app.extensions import db
from example_flask_app.models import Article, Order, OrderStatus, Payment, StockMovement, order_by_number

SOURCE = "shop"
# The payment service is away now and then; a customer can wait, but not for ever.
PATIENT = RetryPolicy(max_attempts=30, initial_interval=0.1, max_interval=2.0, jitter=0.5, max_duration=600)


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


class OutOfStockError(TerminalError):
    """Trying again brings no tea onto the shelf."""


class CardDeclinedError(TerminalError):
    """The bank has said no, and means it."""


@workflow
async def fulfil_order(ctx: WorkflowContext, order: Placed) -> str:
    """From the shelf to the parcel; an order that cannot be paid gives its pieces back."""
    taken = await asyncio.gather(
        *(take_from_shelf(ctx, order.number, line) for line in order.lines), return_exceptions=True
    )
    missing = [result for result in taken if isinstance(result, BaseException)]
    try:
        if missing:
            raise missing[0]
        await note_reserved(ctx, order.number)
        reference = await charge(ctx, order)
    except (TerminalError, RetryExhaustedError) as error:
        reserved = [line for line, result in zip(order.lines, taken, strict=True) if isinstance(result, int)]
        await call_off(ctx, order.number, reserved, str(error))
        return f"called off: {error}"
    delivery = await hand_to_delivery(ctx, order.number)
    ctx.logger.info("Order %s is paid (%s); delivery %s has it", order.number, reference, delivery)
    return reference


@workflow
def deliver(ctx: SyncWorkflowContext, number: str) -> None:
    """Pack and send an order. A plain function: its calls return values, and waiting holds no thread."""
    label, pages = ctx.gather(lambda: print_label(ctx, number), lambda: print_invoice(ctx, number))
    pack(ctx, number, f"{label}, invoice of {pages} lines")
    send_off(ctx, number)


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
    _order(number).status = OrderStatus.RESERVED
    db.session.commit()


@activity(retry_policy=PATIENT)
def charge(ctx: WorkflowContext, order: Placed) -> str:
    """Take the money, whatever it takes; the key makes the payment service charge once.

    The call comes before the first SQL, so no transaction is open while the service thinks.
    """
    answer = httpx.post(
        f"{current_app.config['SHOP_PAYMENT_URL']}/charges",
        json={"amount_cents": order.total_cents, "card": order.card},
        headers={"Idempotency-Key": ctx.idempotency_key},
        timeout=5.0,
    )
    if answer.status_code == httpx.codes.PAYMENT_REQUIRED:
        raise CardDeclinedError("the card was declined")
    answer.raise_for_status()  # any other failure is tried again
    reference = str(answer.json()["reference"])
    db.session.add(Payment(order_number=order.number, amount_cents=order.total_cents, reference=reference))
    _order(order.number).status = OrderStatus.PAID
    db.session.commit()
    send_event_transactional(
        ctx, "order.paid", SOURCE, {"number": order.number, "reference": reference}, subject=order.number
    )
    return reference


@activity
def hand_to_delivery(ctx: WorkflowContext, number: str) -> str:
    """Start the other workflow as part of this step: it is started once, and only if the step is saved."""
    return deliver.start(number)


@activity
def print_label(ctx: WorkflowContext, number: str) -> str:
    """An address label."""
    return f"label for {_order(number).customer}"


@activity
def print_invoice(ctx: WorkflowContext, number: str) -> int:
    """An invoice, of so many lines."""
    return len(_order(number).lines)


@activity
def pack(ctx: WorkflowContext, number: str, papers: str) -> None:
    """Packing takes its time, which is when somebody pulls the plug."""
    time.sleep(current_app.config["SHOP_PACKING_SECONDS"])
    order = _order(number)
    order.status, order.remark = OrderStatus.PACKED, papers
    db.session.commit()


@activity
def send_off(ctx: WorkflowContext, number: str) -> None:
    """The parcel leaves; whoever wants to know is told by an event of the same transaction."""
    _order(number).status = OrderStatus.FULFILLED
    db.session.commit()
    send_event_transactional(ctx, "order.fulfilled", SOURCE, {"number": number}, subject=number)


@activity
def call_off(ctx: WorkflowContext, number: str, reserved: list[Line], reason: str) -> None:
    """Put back what was taken, and say why."""
    for line in reserved:
        db.session.execute(
            update(Article).where(Article.sku == line.sku).values(quantity=Article.quantity + line.quantity)
        )
        db.session.add(StockMovement(order_number=number, sku=line.sku, quantity=line.quantity))
    order = _order(number)
    order.status, order.remark = OrderStatus.CALLED_OFF, reason
    db.session.commit()
    send_event_transactional(ctx, "order.called_off", SOURCE, {"number": number, "reason": reason}, subject=number)


def _order(number: str) -> Order:
    found = order_by_number(number)
    if found is None:
        raise TerminalError(f"There is no order {number}.")
    return found
