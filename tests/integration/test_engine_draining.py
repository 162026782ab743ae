"""A worker that is told to stop: what it still does, and what goes on elsewhere meanwhile."""

from __future__ import annotations

import asyncio
import threading

from edda_engine import EddaApp, RetryPolicy, WorkflowContext, activity, sleep, wait_event, workflow
from edda_engine.core.ports import NewInstance
from edda_engine.runtime.engine import Engine
from edda_engine.storage.starts import insert_instance
from tests.integration.engines import MUCH_LATER, SERVICE, Gate, Tables, edda, run, storage, until
from tests.integration.probing import Points

A_MOMENT = RetryPolicy(max_attempts=None, initial_interval=0.9, backoff_coefficient=1.0, max_duration=None)
"""Slept through with the lease held."""


def worker_of(app: EddaApp) -> str:
    return engine_of(app).worker_id


def engine_of(app: EddaApp) -> Engine:
    assert app._engine is not None
    return app._engine


async def takes_no_more(app: EddaApp) -> None:
    engine_of(app).stop_claiming()
    await until(lambda: not engine_of(app).is_claiming)


def test_while_an_activity_ends_everything_else_goes_on_elsewhere(database_url: str) -> None:
    gate, at_first = Gate(), Gate()
    leaving: list[str] = []

    @activity
    def hold(ctx: WorkflowContext) -> str:
        gate.hold()
        return ctx.worker_id

    @activity
    def tell(ctx: WorkflowContext) -> str:
        return ctx.worker_id

    @activity(retry_policy=A_MOMENT)
    def fail_in_the_worker_that_leaves(ctx: WorkflowContext) -> str:
        if ctx.worker_id in leaving:
            at_first.hold()
            raise ValueError("not here")
        return ctx.worker_id

    @workflow
    async def holds(ctx: WorkflowContext) -> list[str]:
        return [await hold(ctx), await tell(ctx)]

    @workflow
    async def is_between_attempts(ctx: WorkflowContext) -> str:
        return await fail_in_the_worker_that_leaves(ctx)

    @workflow
    async def tells(ctx: WorkflowContext) -> str:
        return await tell(ctx)

    async def main() -> None:
        first, second = edda(database_url, shutdown_seconds=60.0), edda(database_url)
        await first.initialize()
        leaving.append(worker_of(first))
        held, failing = await first.start(holds), await first.start(is_between_attempts)
        await gate.is_reached()
        await at_first.is_reached()
        at_first.open()
        stopping = asyncio.create_task(first.shutdown())
        async with second:
            # Its attempt that was under way has failed, and the next one is made by the other worker.
            assert await second.result(failing, timeout=30) == worker_of(second)
            assert await second.result(await second.start(tells), timeout=30) == worker_of(second)
            assert not stopping.done()
            gate.open()
            # What was under way is saved by who did it; the step after it is begun by the other worker.
            assert await second.result(held, timeout=30) == [leaving[0], worker_of(second)]
            await stopping

    asyncio.run(main())


def test_waits_and_retries_need_no_drain(database_url: str) -> None:
    failed = Gate()

    @activity(retry_policy=MUCH_LATER)
    def fail(ctx: WorkflowContext) -> None:
        failed.reached.set()
        raise ValueError("later")

    @workflow
    async def sleeps(ctx: WorkflowContext) -> None:
        await sleep(ctx, 3600)

    @workflow
    async def listens(ctx: WorkflowContext) -> None:
        await wait_event(ctx, "never.sent")

    @workflow
    async def retries(ctx: WorkflowContext) -> None:
        await fail(ctx)

    tables = Tables(database_url)

    async def main() -> None:
        app = edda(database_url)
        await app.initialize()
        waiting = [await app.start(each) for each in (sleeps, listens, retries)]
        await failed.is_reached()
        await until(lambda: all(tables.status(each).startswith("waiting") for each in waiting[:2]))
        async with asyncio.timeout(30):
            await app.shutdown(timeout=3600)
        assert [tables.instance(each)["locked_by"] for each in waiting] == [None] * 3

    asyncio.run(main())


def test_a_worker_that_takes_no_more_goes_on_with_what_it_has(database_url: str) -> None:
    gate = Gate()

    @activity
    def hold(ctx: WorkflowContext) -> str:
        gate.hold()
        return ctx.worker_id

    @activity
    def tell(ctx: WorkflowContext) -> str:
        return ctx.worker_id

    @workflow
    async def holds(ctx: WorkflowContext) -> list[str]:
        return [await hold(ctx), await tell(ctx)]

    @workflow
    async def tells(ctx: WorkflowContext) -> str:
        return await tell(ctx)

    async def main() -> None:
        async with edda(database_url) as first, edda(database_url) as second:
            held = await first.start(holds)
            while not gate.reached.is_set():
                await asyncio.sleep(0.01)
            # Whoever has it goes on with it.
            (holder, other) = (first, second) if engine_of(first).executor.held else (second, first)
            await takes_no_more(holder)
            assert await holder.result(await holder.start(tells), timeout=30) == worker_of(other)
            gate.open()
            assert await holder.result(held, timeout=30) == [worker_of(holder)] * 2

    asyncio.run(main())


def test_what_a_worker_claims_while_it_is_told_to_take_no_more_it_does(database_url: str) -> None:
    tables, points = Tables(database_url), Points()

    @workflow
    async def ends(ctx: WorkflowContext) -> str:
        return ctx.worker_id

    async def main() -> None:
        app = edda(database_url, probe=points)
        loop = asyncio.get_running_loop()

        def is_told_to_stop_if_it_claims_something() -> bool:
            if not tables.rows("SELECT 1 FROM edda_instances WHERE status = 'pending'"):
                return False
            engine_of(app).stop_claiming()
            told = threading.Event()
            loop.call_soon_threadsafe(told.set)
            return told.wait(30)

        async with app:
            await until(lambda: "claim.after_commit" in points.passed)  # the first one is like no other
            points.at["claim.before_commit"] = is_told_to_stop_if_it_claims_something
            with storage(database_url) as elsewhere:
                new = NewInstance("i", "ends", SERVICE, "{}", "hash", lock_timeout_seconds=60)
                await asyncio.to_thread(run, elsewhere, lambda conn: insert_instance(conn, new))
            assert await app.result("i", timeout=20) == worker_of(app)
            await until(lambda: not engine_of(app).is_claiming)

    asyncio.run(main())


def test_a_worker_that_takes_no_more_hears_of_messages_for_what_it_has(database_url: str) -> None:
    gate = Gate()

    @activity
    def hold(ctx: WorkflowContext) -> str:
        gate.hold()
        return ctx.worker_id

    @workflow
    async def listens_while_it_works(ctx: WorkflowContext) -> list[str]:
        working = asyncio.create_task(hold(ctx))
        event = await wait_event(ctx, "go.on")
        gate.open()
        return [await working, str(event.data["of"])]

    async def main() -> None:
        async with edda(database_url) as app:
            instance_id = await app.start(listens_while_it_works)
            await gate.is_reached()
            await takes_no_more(app)
            assert await engine_of(app).problems() == ["It takes no more work: it was told to stop."]
            await app.send_event("go.on", "/tests", {"of": "old"}, instance_id=instance_id)
            assert await app.result(instance_id, timeout=20) == [worker_of(app), "old"]

    asyncio.run(main())
