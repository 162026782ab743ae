"""The packers: three workflows that go on for ever and share the paid orders among them.

Each order is a message on a competing channel: exactly one packer gets it, whatever is killed meanwhile. After a
number of parcels a packer begins again with an empty history, under the same subscription.
"""

from __future__ import annotations

import time

from flask import current_app

from edda_wsgi import (
    SyncWorkflowContext,
    WorkflowContext,
    activity,
    receive,
    subscribe,
    workflow,
)
from example_flask_app.extensions import db
from example_flask_app.models import OrderStatus, the_order
from example_flask_app.news import tell

PAID_ORDERS = "paid orders"
PACKERS = ("packer-1", "packer-2", "packer-3")
PARCELS_A_RUN = 10


@workflow
def packer(ctx: SyncWorkflowContext, name: str) -> None:
    """Send off one order after the other. A plain function: its calls return values, and waiting holds no thread."""
    subscribe(ctx, PAID_ORDERS, mode="competing")
    for _ in range(PARCELS_A_RUN):
        message = receive(ctx, PAID_ORDERS)
        send_parcel(ctx, message.data, name)
    ctx.recur(name=name)


def send_parcel(ctx: SyncWorkflowContext, number: str, name: str) -> None:
    """Papers, parcel, door."""
    label, lines = ctx.gather(lambda: print_label(ctx, number), lambda: print_invoice(ctx, number))
    pack(ctx, number, f"{label}, invoice of {lines} lines, by {name}")
    send_off(ctx, number)


def hire_packers() -> None:
    """Let them begin. Hired again they are the same ones, however often they have begun anew."""
    for name in PACKERS:
        packer.options(instance_id=name).start(name)


@activity
def print_label(ctx: WorkflowContext, number: str) -> str:
    """An address label."""
    return f"label for {the_order(number).customer}"


@activity
def print_invoice(ctx: WorkflowContext, number: str) -> int:
    """An invoice, of so many lines."""
    return len(the_order(number).lines)


@activity
def pack(ctx: WorkflowContext, number: str, papers: str) -> None:
    """Packing takes its time, which is when somebody pulls the plug."""
    time.sleep(current_app.config["SHOP_PACKING_SECONDS"])
    order = the_order(number)
    order.status, order.remark = OrderStatus.PACKED, papers
    db.session.commit()


@activity
def send_off(ctx: WorkflowContext, number: str) -> None:
    """The parcel leaves; whoever wants to know is told by an event of the same transaction."""
    the_order(number).status = OrderStatus.FULFILLED
    db.session.commit()
    tell(ctx, "order.fulfilled", number)
