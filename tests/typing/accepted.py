"""What users write, and mypy must accept as it stands (see test_typing.py)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import assert_type
from uuid import UUID

import edda_engine
import edda_wsgi
from edda_engine import EddaApp, HistoryEvent, Instance, Page
from edda_wsgi import EddaFlask, RetryPolicy, Status, SyncWorkflowContext, WorkflowContext, activity, workflow
from edda_wsgi.testing import CrashReport, WorkflowRunner


@dataclass
class Order:
    order_id: int


@activity
def reserve(ctx: WorkflowContext, order_id: int, *, express: bool = False) -> Order:
    assert_type(ctx.attempt, int)
    assert_type(ctx.idempotency_key, str)
    return Order(order_id)


@activity
async def charge(ctx: WorkflowContext, order: Order) -> str:
    return f"{order.order_id}"


@activity(retry_policy=RetryPolicy(max_attempts=3), timeout_seconds=5, name="shop.ship")
def ship(ctx: WorkflowContext, order: Order, days: int = 1) -> list[str]:
    return []


@activity()
async def notify(ctx: WorkflowContext) -> None: ...


@workflow
async def fulfil(ctx: WorkflowContext, order_id: int, note: str = "") -> str:
    order = await reserve(ctx, order_id, express=True)
    assert_type(order, Order)
    receipt = await charge(ctx, order)
    assert_type(receipt, str)
    assert_type(await ship(ctx, order), list[str])
    await notify(ctx)
    both = await asyncio.gather(reserve(ctx, 1), charge(ctx, order))
    assert_type(both, tuple[Order, str])
    assert_type(await reserve(ctx, 1, activity_id="mine"), Order)
    assert_type(ctx.now(), datetime)
    assert_type(ctx.uuid4(), UUID)
    assert_type(ctx.random(), float)
    assert_type(ctx.is_replaying, bool)
    assert_type(await plain(ctx, 1), Order)
    ctx.logger.info("done")
    return receipt


@workflow(lock_timeout_seconds=60, event_handler=True, name="shop.plain")
def plain(ctx: SyncWorkflowContext, order_id: int) -> Order:
    order = reserve(ctx, order_id)
    assert_type(order, Order)
    assert_type(charge(ctx, order), str)
    assert_type(reserve(ctx, 1, activity_id="mine"), Order)
    receipts = ctx.gather(lambda: charge(ctx, order), lambda: charge(ctx, order))
    assert_type(receipts, list[str])
    return order


@edda_engine.workflow
async def asynchronous(ctx: WorkflowContext, order_id: int) -> int:
    return order_id


edda = EddaFlask(threads=4)


def view() -> None:
    assert_type(fulfil.start(7), str)
    assert_type(fulfil.start(order_id=7, note="x"), str)
    assert_type(fulfil.start(7, lock_timeout_seconds=10), str)
    assert_type(plain.start(7), str)
    assert_type(fulfil.options(instance_id="order-7", delay=timedelta(minutes=1)).start(7, note="x"), str)
    assert_type(edda.start(fulfil, 7), str)
    assert_type(edda.start(plain, order_id=7), str)
    assert_type(edda.start(fulfil, 7, note="x", lock_timeout_seconds=10), str)
    assert_type(edda.get("x"), Instance)
    assert_type(edda.history("x"), list[HistoryEvent])
    assert_type(edda.find_instances(status=Status.FAILED), Page)
    assert_type(edda.cancel("x"), bool)
    assert_type(edda.cancel("x", "no longer wanted", session=None), bool)
    assert_type(edda.retry("x", session=None), bool)
    _function = reserve.function


def in_a_test(edda_runner: WorkflowRunner) -> None:
    assert_type(edda_runner.run(plain, order_id=7), Order)
    assert_type(edda_runner.run(fulfil, 7, note="x"), str)
    assert_type(edda_runner.start(plain.options(delay=60), 7), str)
    assert_type(edda_runner.crash_everywhere(plain, 7), CrashReport)
    assert_type(edda_runner.crash_everywhere(lambda: edda_runner.run(plain, 7), ignore={"id"}), CrashReport)


async def main() -> None:
    async with EddaApp(service_name="shop", db_url="sqlite:///shop.db") as app:
        instance_id = await asynchronous.start(7)
        assert_type(instance_id, str)
        assert_type(await asynchronous.options(priority=3).start(order_id=7), str)
        assert_type(await app.get(instance_id), Instance)
        assert_type(await app.history(instance_id), list[HistoryEvent])
        assert_type(await app.start(asynchronous, order_id=7), str)
        assert_type(await app.start(asynchronous, 7, lock_timeout_seconds=None), str)
        assert_type(await app.find_instances(status=["failed", Status.PENDING], limit=10), Page)
        assert_type(await app.cancel(instance_id, session=None), bool)
        assert_type(await app.retry(instance_id, session=None), bool)


assert edda_wsgi.activity is edda_engine.activity
