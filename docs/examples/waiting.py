"""Workflows that wait for events: for ever, with a deadline, with a model, for the approval of a person."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel

from edda_engine import (
    EventTimeoutError,
    PayloadError,
    SyncWorkflowContext,
    WorkflowContext,
    activity,
    wait_event,
    workflow,
)

REMINDER = timedelta(days=3)


# wait
@workflow
async def order(ctx: WorkflowContext, number: int) -> str:
    event = await wait_event(ctx, "order.paid")
    return f"order {number}: {event.data['amount']} from {event.source}"


# model
class Parcel(BaseModel):
    tracking: str
    grams: int


@workflow
def parcel(ctx: SyncWorkflowContext) -> str:
    event = wait_event(ctx, "parcel.weighed", model=Parcel)
    return f"{event.data.tracking} weighs {event.data.grams} g"


# misfit
@workflow
async def careful(ctx: WorkflowContext) -> str:
    while True:
        try:
            event = await wait_event(ctx, "parcel.weighed", model=Parcel)
        except PayloadError as error:
            ctx.logger.warning("Ignoring an event: %s", error)
        else:
            return event.data.tracking


# approval
class Decision(BaseModel):
    approved: bool
    by: str


@activity
def ask(ctx: WorkflowContext, person: str, expense_id: int) -> None:
    """Write a mail with a link that holds ctx.instance_id."""


@workflow
async def approve_expense(ctx: WorkflowContext, expense_id: int) -> str:
    for person in ("manager", "director"):
        await ask(ctx, person, expense_id)
        try:
            event = await wait_event(ctx, "expense.decided", timeout_seconds=REMINDER, model=Decision)
        except EventTimeoutError:
            continue  # nobody answered: ask the next one
        return f"{'approved' if event.data.approved else 'refused'} by {event.data.by}"
    return "refused: nobody decided"
