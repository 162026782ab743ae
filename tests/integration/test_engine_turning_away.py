"""A body that turns away from a wait at the very moment at which something comes: that is for the next one who asks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from edda_engine import WorkflowContext, wait_event, workflow
from edda_engine.events import event_message
from edda_engine.runtime import committer
from edda_engine.storage.messages import insert_messages
from tests.integration.engines import Tables, run, storage
from tests.integration.probing import Points
from tests.integration.talks import begun, nothing_is_kept, steps_of


@pytest.mark.parametrize("waits", ["the body", "a branch"])
@pytest.mark.parametrize("point", ["claim.before_commit", "claim.after_commit", "take.before_commit"])
def test_what_has_come_for_a_run_that_recurs_is_for_its_successor(database_url: str, waits: str, point: str) -> None:
    tables, points = Tables(database_url), Points()
    may_recur: list[asyncio.Future[None]] = []
    loops: list[asyncio.AbstractEventLoop] = []

    @workflow
    async def recurs(ctx: WorkflowContext, is_first: bool = True) -> Any:
        if not is_first:
            return (await wait_event(ctx, "paid")).data
        loops.append(asyncio.get_running_loop())
        may_recur.append(loops[0].create_future())

        async def goes_on() -> None:
            await may_recur[0]
            ctx.recur(is_first=False)

        other = asyncio.create_task(goes_on() if waits == "the body" else _just(wait_event(ctx, "paid")))
        await (wait_event(ctx, "paid") if waits == "the body" else goes_on())
        raise AssertionError(other)

    def let_it() -> bool:
        if not any(tables.rows(f"SELECT * FROM edda_{name}") for name in ("messages", "history")):
            return False
        may_recur[0].done() or may_recur[0].set_result(None)
        return True

    def while_it_is_claimed() -> bool:
        if not tables.rows("SELECT * FROM edda_messages"):
            return False
        loops[0].call_soon_threadsafe(let_it)
        time.sleep(0.2)  # on the service thread: the loop goes on
        return True

    async def main() -> Any:
        async with begun(database_url, recurs, probe=points) as (app, first):
            if point == "take.before_commit" and not tables.is_sqlite:
                tables.execute("UPDATE edda_waits SET step = NULL")  # as if another worker had suspended it
            points.at[point] = while_it_is_claimed if point == "claim.before_commit" else let_it
            await app.send_event("paid", "test", "kept", instance_id=first)
            return await app.result(first, timeout=20)

    assert asyncio.run(main()) == "kept"
    assert nothing_is_kept(tables)


async def _just(awaitable: Any) -> Any:
    return await awaitable


@pytest.mark.parametrize("is_recorded_by", ["the claim", "a take"])
def test_what_goes_back_is_there_before_the_next_call_asks_although_its_row_is_locked(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, is_recorded_by: str
) -> None:
    """The first wait has taken the first event, and is given up; so is a second one, which was to write that down."""
    monkeypatch.setattr(committer, "_BUSY_SECONDS", 0.3)
    tables, points = Tables(postgres_url), Points()
    first: list[asyncio.Task[Any]] = []
    lock = psycopg.connect(make_url(postgres_url).set(drivername="postgresql").render_as_string(False))

    @workflow
    async def turns_away(ctx: WorkflowContext) -> Any:
        first.append(asyncio.ensure_future(wait_event(ctx, "paid")))
        await asyncio.wait(first)
        assert first[0].cancelled()
        lock.execute(
            "SELECT 1 FROM edda_instances FOR UPDATE"
        )  # as a request does that cancels, and thinks better of it
        second = asyncio.ensure_future(wait_event(ctx, "never"))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.wait([second], timeout=0.05)
        lock.rollback()
        await asyncio.wait([second])
        return [(await wait_event(ctx, "paid")).data for _ in range(2)]

    def both(instance_id: str) -> None:
        made = [
            event_message("paid", "test", number, instance_id=instance_id, max_payload_bytes=1000) for number in (1, 2)
        ]
        with storage(postgres_url) as database:
            run(database, lambda conn: insert_messages(conn, made))

    def give_up() -> bool:
        if is_recorded_by == "a take":
            asyncio.get_running_loop().call_soon(first[0].cancel)
        elif not tables.rows("SELECT * FROM edda_history"):
            return False
        else:
            first[0].cancel()
        return True

    async def main() -> Any:
        async with begun(postgres_url, turns_away, probe=points, poll_interval_seconds=0.05) as (app, instance_id):
            if is_recorded_by == "a take":
                tables.execute("UPDATE edda_waits SET step = NULL")
            points.at["claim.after_commit" if is_recorded_by == "the claim" else "take.before_commit"] = give_up
            await asyncio.to_thread(both, instance_id)
            return await app.result(instance_id, timeout=20)

    try:
        assert asyncio.run(main()) == [1, 2]
    finally:
        lock.close()
    assert nothing_is_kept(tables)


@pytest.mark.parametrize("when", ["before it is told", "when it has been told"])
def test_what_a_body_has_turned_away_from_is_there_for_its_next_wait(postgres_url: str, when: str) -> None:
    tables, points = Tables(postgres_url), Points()
    first: list[asyncio.Task[Any]] = []
    recorded: list[Any] = []

    @workflow
    async def impatient(ctx: WorkflowContext) -> Any:
        first.append(asyncio.ensure_future(wait_event(ctx, "paid")))
        await asyncio.wait(first)
        assert first[0].cancelled()
        return (await wait_event(ctx, "paid")).data

    async def main() -> Any:
        async with begun(postgres_url, impatient, probe=points) as (app, instance_id):

            def turn_away() -> bool:
                recorded.extend(steps_of(tables, instance_id))
                if not recorded:
                    return False
                if when == "before it is told":
                    first[0].cancel()
                else:
                    asyncio.get_running_loop().call_soon(first[0].cancel)
                return True

            points.at["claim.after_commit"] = turn_away
            await app.send_event("paid", "test", "kept", instance_id=instance_id)
            result = await app.result(instance_id, timeout=20)
            return result, steps_of(tables, instance_id)

    result, steps = asyncio.run(main())
    assert result == "kept"
    assert recorded == [("wait_event:1", "EventReceived")]
    assert steps == [("wait_event:1", "WaitWithdrawn"), ("wait_event:2", "EventReceived")]
    assert nothing_is_kept(tables)
