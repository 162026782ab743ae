"""What a workflow body may do, and what it asks its context for."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from edda_engine import SyncWorkflowContext, WorkflowContext, activity, workflow


@activity
def price(ctx: WorkflowContext, item: str) -> int:
    return len(item)


@activity
def discount(ctx: WorkflowContext, amount: int) -> int:
    return amount - 1


# together
@workflow
async def price_list(ctx: WorkflowContext, items: list[str]) -> list[int]:
    return await asyncio.gather(*(price(ctx, item) for item in items))


# branches
@workflow
async def discounts(ctx: WorkflowContext, items: list[str]) -> list[int]:
    async def one(item: str) -> int:
        return await discount(ctx, await price(ctx, item))

    return await asyncio.gather(*(one(item) for item in items))


# plain
@workflow
def two_prices(ctx: SyncWorkflowContext, first: str, second: str) -> list[int]:
    return ctx.gather(lambda: price(ctx, first), lambda: price(ctx, second))


# context
@workflow
async def offer(ctx: WorkflowContext, item: str) -> dict[str, str]:
    valid_until = ctx.now() + timedelta(days=7)
    number = ctx.uuid4()
    surprise = "gift" if ctx.random() < 0.5 else "none"
    ctx.logger.info("Making offer %s", number)
    amount = await price(ctx, item)
    return {"number": str(number), "until": valid_until.isoformat(), "amount": str(amount), "surprise": surprise}


# inline
@workflow
async def catalogue(ctx: WorkflowContext, items: list[str]) -> int:
    prices = await price_list(ctx, items)
    return sum(prices)
