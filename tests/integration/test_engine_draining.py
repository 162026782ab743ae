"""A worker that is told to stop: what it still does, and what goes on elsewhere meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, text

from edda_engine import EddaApp, RetryPolicy, WorkflowContext, activity, sleep, wait_event, workflow
from edda_engine.core.ports import NewInstance
from edda_engine.errors import LeaseLostError
from edda_engine.runtime.engine import Engine
from edda_engine.storage.database import Database
from edda_engine.storage.starts import insert_instance
from tests.integration.engines import MUCH_LATER, SERVICE, Gate, Tables, edda, run, storage, until, write_note
from tests.integration.probing import Points
from tests.integration.talks import RARELY

A_MOMENT = RetryPolicy(max_attempts=None, initial_interval=0.9, backoff_coefficient=1.0, max_duration=None)
"""Slept through with the lease held."""


def worker_of(app: EddaApp) -> str:
    return engine_of(app).worker_id


def engine_of(app: EddaApp) -> Engine:
    assert app._engine is not None
    return app._engine


def declare_hold(gate: Gate) -> Any:
    """An activity that waits at the gate, and tells by whom it was done."""

    @activity
    def hold(ctx: WorkflowContext) -> str:
        gate.hold()
        return ctx.worker_id

    return hold


async def takes_no_more(app: EddaApp) -> None:
    engine_of(app).stop_claiming()
    await until(lambda: not engine_of(app).is_claiming)


def test_while_an_activity_ends_everything_else_goes_on_elsewhere(database_url: str) -> None:
    gate, at_first = Gate(), Gate()
    leaving: list[str] = []

    hold = declare_hold(gate)

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
    hold = declare_hold(gate)

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
    hold = declare_hold(gate)

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


def test_a_worker_that_takes_no_more_tells_the_others_once(postgres_url: str) -> None:
    """It hears its own notification, and must not take that for news."""

    @workflow
    async def tells(ctx: WorkflowContext) -> str:
        return ctx.worker_id

    async def main() -> None:
        async with edda(postgres_url) as first, edda(postgres_url) as second:
            await until(lambda: engine_of(first)._liveness.may_have_siblings)
            await takes_no_more(first)
            with psycopg.connect(postgres_url, autocommit=True) as listening:
                listening.execute("LISTEN edda_wake")
                assert await first.result(await first.start(tells), timeout=30) == worker_of(second)
                heard = await asyncio.to_thread(lambda: list(listening.notifies(timeout=0.7)))
            assert 1 <= len(heard) <= 5

    asyncio.run(main())


@pytest.mark.parametrize("is_retiring", [False, True])
def test_what_a_worker_has_no_room_for_is_told_to_the_others(postgres_url: str, is_retiring: bool) -> None:
    gate = Gate()
    hold = declare_hold(gate)

    @workflow
    async def holds(ctx: WorkflowContext) -> str:
        return await hold(ctx)

    def start_all(conn: Connection) -> None:
        for number in range(4):
            insert_instance(conn, NewInstance(f"i{number}", "holds", SERVICE, "{}", "hash", lock_timeout_seconds=60))

    def held() -> dict[str, int]:
        rows = Tables(postgres_url).rows("SELECT locked_by FROM edda_instances WHERE locked_by IS NOT NULL")
        return Counter(row["locked_by"] for row in rows)

    async def main() -> None:
        rarely: dict[str, Any] = {"poll_interval_seconds": RARELY}
        async with edda(postgres_url, max_running=2, **rarely) as first, edda(postgres_url, **rarely) as second:
            await until(lambda: engine_of(first)._liveness.may_have_siblings)
            await until(lambda: all(engine_of(app)._claimer._is_calm for app in (first, second)))
            if is_retiring:
                await first.start(holds)
                await gate.is_reached()
            with storage(postgres_url) as elsewhere:
                await asyncio.to_thread(run, elsewhere, start_all)  # of which nobody is told
            if is_retiring:
                engine_of(first).stop_claiming()
            else:
                engine_of(first).wake()
            taken = (
                {worker_of(first): 1, worker_of(second): 4}
                if is_retiring
                else dict.fromkeys(map(worker_of, (first, second)), 2)
            )
            await until(lambda: held() == taken)
            gate.open()

    asyncio.run(main())


def test_a_worker_that_takes_no_more_is_quiet_while_a_message_cannot_be_delivered(postgres_url: str) -> None:
    """Its receiver's row is locked: that may last, and each notification lets all workers search."""

    @workflow
    async def listens(ctx: WorkflowContext) -> Any:
        return (await wait_event(ctx, "go.on")).data

    tables = Tables(postgres_url)

    async def main(database: Database) -> None:
        async with edda(postgres_url) as first, edda(postgres_url):
            await until(lambda: engine_of(first)._liveness.may_have_siblings)
            instance_id = await first.start(listens)
            await until(lambda: tables.status(instance_id) == "waiting_for_event")
            await takes_no_more(first)
            with database.engine.connect() as conn, psycopg.connect(postgres_url, autocommit=True) as listening:
                conn.execute(text("SELECT 1 FROM edda_instances FOR UPDATE"))
                listening.execute("LISTEN edda_wake")
                await first.send_event("go.on", "/tests", 7, instance_id=instance_id)
                heard = await asyncio.to_thread(lambda: list(listening.notifies(timeout=1.0)))
                conn.rollback()
            assert 1 <= len(heard) <= 8
            assert await first.result(instance_id, timeout=20) == 7

    with storage(postgres_url) as database:
        asyncio.run(main(database))


def test_a_body_that_has_returned_without_its_lease_does_not_keep_the_worker_from_stopping(database_url: str) -> None:
    @workflow
    async def gives_up(ctx: WorkflowContext) -> str:
        try:
            async with asyncio.timeout(0.3):
                await wait_event(ctx, "never.sent")
        except TimeoutError:
            return "late"
        return "in time"

    tables = Tables(database_url)

    async def main() -> bool:
        async with edda(database_url) as app:
            executor = engine_of(app).executor
            instance_id = await app.start(gives_up)
            await until(lambda: tables.status(instance_id) == "waiting_for_event")
            await takes_no_more(app)
            # It has asked for its lease, and nobody claims the instance.
            await until(lambda: tables.instance(instance_id)["wake_at"] is not None)
        return bool(executor._driving)

    assert asyncio.run(main()) is False


def test_an_activity_that_a_stopped_worker_has_left_behind_ends_at_its_commit(database_url: str) -> None:
    """It must not go on to what it does when its rows are saved: they are not."""
    gate, ended = Gate(), threading.Event()
    told: list[str] = []
    Tables(database_url).make_notes()

    @activity
    def pays(ctx: WorkflowContext) -> None:
        try:
            write_note(ctx, "paid")
            gate.hold()
            ctx.session.commit()
            told.append("went on")
        except LeaseLostError:
            told.append("refused")
            raise
        finally:
            ended.set()

    @workflow
    async def flow(ctx: WorkflowContext) -> None:
        await pays(ctx)

    async def main() -> None:
        async with edda(database_url) as app:
            await app.start(flow)
            await gate.is_reached()
            await app.shutdown(timeout=0)
        gate.open()
        await until(ended.is_set)

    asyncio.run(main())
    assert told == ["refused"]
