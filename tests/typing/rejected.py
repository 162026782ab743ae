"""Mistakes that mypy must find: each line that ends in ``# rejects: code``, and no other (see test_typing.py)."""

from __future__ import annotations

import edda_engine
from edda_engine import EddaApp
from edda_wsgi import EddaFlask, SyncWorkflowContext, WorkflowContext, activity, workflow
from edda_wsgi.testing import WorkflowRunner


@activity
def reserve(ctx: WorkflowContext, order_id: int) -> str:
    return ""


@activity
async def charge(ctx: WorkflowContext, receipt: str) -> int:
    return 1


@activity(timeout_seconds=3)
def ship(ctx: WorkflowContext, order_id: int, *, express: bool = False) -> None: ...


@workflow
async def wrong_arguments(ctx: WorkflowContext, order_id: int) -> int:
    await reserve(ctx, "seven")  # rejects: call-overload
    await reserve(ctx)  # rejects: call-overload
    await reserve(ctx, 1, 2)  # rejects: call-overload
    await reserve(ctx, order=1)  # rejects: call-overload
    await reserve(order_id)  # rejects: call-overload
    await reserve()  # rejects: call-overload
    await charge(ctx, order_id)  # rejects: call-overload
    await ship(ctx, 1, express="no")  # rejects: call-overload
    await ship(ctx, 1, activity_id=7)  # rejects: call-overload
    return 1


@workflow
async def wrong_results(ctx: WorkflowContext, order_id: int) -> int:
    number: int = await reserve(ctx, order_id)  # rejects: assignment
    await charge(ctx, await charge(ctx, "x"))  # rejects: call-overload
    unawaited: str = reserve(ctx, order_id)  # rejects: assignment
    reserve(ctx, order_id)  # rejects: unused-coroutine
    return number if unawaited else await reserve(ctx, 1)  # rejects: return-value


@workflow
def wrong_in_a_plain_body(ctx: SyncWorkflowContext, order_id: int) -> int:
    reserve(ctx, "seven")  # rejects: call-overload
    charge(ctx, order_id)  # rejects: call-overload
    number: int = reserve(ctx, order_id)  # rejects: assignment
    ctx.gather(reserve(ctx, 1))  # rejects: arg-type
    ctx.gather(lambda: reserve(ctx, "x"))  # rejects: call-overload
    return number


@workflow
async def gather_is_for_plain_bodies(ctx: WorkflowContext) -> None:
    ctx.gather(lambda: 1)  # rejects: attr-defined


@workflow
async def awaiting_a_value(ctx: SyncWorkflowContext, order_id: int) -> None:
    await reserve(ctx, order_id)  # rejects: misc


@edda_engine.workflow
async def asynchronous(ctx: WorkflowContext, order_id: int) -> int:
    return order_id


async def starting_in_asyncio() -> None:
    instance_id: str = asynchronous.start(1)  # rejects: assignment
    await asynchronous.start("seven")  # rejects: call-overload
    await asynchronous.options(colour="red").start(1)  # rejects: call-arg
    print(instance_id)


async def asking_in_asyncio(app: EddaApp) -> None:
    await app.start(asynchronous, "seven")  # rejects: call-overload
    await app.start(asynchronous)  # rejects: call-overload
    await app.start(reserve, 1)  # rejects: call-overload
    await app.find_instances(status=7)  # rejects: arg-type
    await app.find_instances(colour="red")  # rejects: call-arg


edda = EddaFlask()


def starting_in_a_view() -> None:
    wrong_arguments.start("seven")  # rejects: call-overload
    wrong_arguments.start()  # rejects: call-overload
    wrong_arguments.start(1, order_id=1)  # rejects: call-overload
    wrong_arguments.start(order=1)  # rejects: call-overload
    wrong_arguments.start(1, lock_timeout_seconds="long")  # rejects: call-overload
    wrong_arguments.options(instance_id="x").start("seven")  # rejects: arg-type
    wrong_arguments.options(lock_timeout_seconds=60).start("seven")  # rejects: arg-type
    wrong_arguments.options(instance_id=7)  # rejects: arg-type
    instance_number: int = wrong_arguments.start(1)  # rejects: assignment
    edda.get(instance_number)  # rejects: arg-type
    edda.start(reserve, 1)  # rejects: call-overload
    edda.start(wrong_arguments, "seven")  # rejects: call-overload
    edda.start(wrong_arguments)  # rejects: call-overload
    edda.start(wrong_arguments, order=1)  # rejects: call-overload
    edda.start(wrong_arguments, 1, lock_timeout_seconds="long")  # rejects: call-arg
    edda.find_instances(colour="red")  # rejects: call-arg


def in_a_test(edda_runner: WorkflowRunner) -> None:
    edda_runner.run(wrong_arguments, "seven")  # rejects: call-overload
    edda_runner.start(wrong_arguments)  # rejects: call-overload
    edda_runner.crash_everywhere(wrong_arguments, order=1)  # rejects: call-overload


@activity(retry_policy=3)  # rejects: call-overload
def bad_option(ctx: WorkflowContext) -> None: ...


@activity(colour="red")  # rejects: call-overload
def unknown_option(ctx: WorkflowContext) -> None: ...
