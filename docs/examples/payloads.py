"""Values travel as JSON and come back as their annotations say."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

from pydantic import BaseModel

from edda_engine import WorkflowContext, activity, workflow


class Size(StrEnum):
    SMALL = "small"
    LARGE = "large"


@dataclass
class Address:
    street: str
    since: date


class Order(BaseModel):
    order_id: UUID
    price: Decimal
    size: Size
    address: Address | None = None
    tags: set[str] = set()


@activity
def confirm(ctx: WorkflowContext, order: Order) -> tuple[datetime, bytes]:
    return datetime(2026, 1, 2, tzinfo=UTC), b"\x00signature"


@activity
def split(ctx: WorkflowContext, order: Order) -> list[Order]:
    return [order.model_copy(update={"price": order.price / 2}) for _ in range(2)]


@workflow
async def buy(ctx: WorkflowContext, order: Order) -> list[Decimal]:
    confirmed_at, signature = await confirm(ctx, order)
    assert isinstance(confirmed_at, datetime)
    assert isinstance(signature, bytes)
    return [part.price for part in await split(ctx, order)]


# refused
@activity
def leak(ctx: WorkflowContext) -> dict[str, object]:
    return {"rows": [object()]}


@workflow
async def leaking(ctx: WorkflowContext) -> None:
    await leak(ctx)
