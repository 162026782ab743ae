"""Code that no longer asks for what its history recorded: named, kept, and taken up again after the fix."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import time
from typing import Any

import pytest

from edda_engine import (
    ChannelModeConflictError,
    ResultTimeoutError,
    SyncWorkflowContext,
    TerminalError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    receive,
    subscribe,
    workflow,
)
from edda_engine.client import retry_with
from edda_engine.core.status import Status
from tests.integration.engines import Gate, Tables, edda, interrupted_at, storage, until
from tests.integration.talks import asleep

runs: list[str] = []
asked_for: list[str] = []
gates: list[Gate] = []


@activity
def book_room(ctx: WorkflowContext) -> str:
    runs.append("book_room")
    return "booked"


@activity
def take_money(ctx: WorkflowContext) -> str:
    runs.append("take_money")
    return "taken"


@activity
def send_key(ctx: WorkflowContext) -> str:
    runs.append("send_key")
    gates[-1].hold()
    return "sent"


STEPS: dict[str, Any] = {"book_room": book_room, "take_money": take_money, "send_key": send_key}


@workflow
async def scripted(ctx: WorkflowContext) -> list[str]:
    """A workflow whose code the test changes."""
    return [await STEPS[name](ctx) for name in list(asked_for)]


@workflow
def scripted_plainly(ctx: SyncWorkflowContext) -> list[str]:
    return [STEPS[name](ctx) for name in list(asked_for)]


async def change_the_code(url: str, before: list[str], after: list[str], started: Any = scripted) -> tuple[Any, ...]:
    """Run *before* until it stops at ``send_key``, go on with *after*, then bring *before* back and retry."""
    runs.clear()
    gates.append(Gate())
    asked_for[:] = before
    first = edda(url)
    await first.initialize()
    instance_id = await first.start(started)
    await interrupted_at(gates[-1], first)
    asked_for[:] = after
    async with edda(url) as second:
        blocked = await _blocked(second, instance_id)
        with pytest.raises(ResultTimeoutError, match="and blocked"):
            await second.result(instance_id, timeout=0)
        asked_for[:] = before
        assert await second.retry(instance_id) is True
        return blocked, await second.result(instance_id, timeout=20), await second.get(instance_id), list(runs)


async def _blocked(app: Any, instance_id: str) -> Any:
    async def look() -> Any:
        found = await app.get(instance_id)
        return found if found.is_blocked else None

    loop = asyncio.get_running_loop()
    return await until(lambda: asyncio.run_coroutine_threadsafe(look(), loop).result(10))


@pytest.mark.parametrize("started", [scripted, scripted_plainly], ids=["async", "plain"])
def test_another_activity_where_history_has_one_blocks_the_instance_until_it_is_fixed(
    database_url: str, started: Any
) -> None:
    blocked, result, ended, done = asyncio.run(
        change_the_code(
            database_url, ["book_room", "take_money", "send_key"], ["book_room", "send_key", "send_key"], started
        )
    )
    assert blocked.status is Status.RUNNING
    assert (
        "step 2: history recorded 'take_money' (take_money:1), but the code now asks for 'send_key' (send_key:1)"
        in (blocked.error["message"])
    )
    assert "The two usual causes" in blocked.error["message"]
    assert blocked.error_summary.startswith("NonDeterminismError: ")
    assert result == ["booked", "taken", "sent"]
    assert done == ["book_room", "take_money", "send_key", "send_key"]
    assert (ended.status, ended.error, ended.is_blocked) == (Status.COMPLETED, None, False)


def test_a_missing_activity_blocks_the_instance_until_it_is_fixed(database_url: str) -> None:
    blocked, result, _, done = asyncio.run(
        change_the_code(database_url, ["book_room", "take_money", "send_key"], ["book_room"])
    )
    assert (
        "step 2: history recorded 'take_money' (take_money:1), but the code now asks for nothing: it ended"
        in (blocked.error["message"])
    )
    assert result == ["booked", "taken", "sent"]
    assert done == ["book_room", "take_money", "send_key", "send_key"]


def test_reordered_activities_block_the_instance_until_it_is_fixed(database_url: str) -> None:
    blocked, result, _, done = asyncio.run(
        change_the_code(database_url, ["book_room", "take_money", "send_key"], ["take_money", "book_room", "send_key"])
    )
    assert (
        "step 1: history recorded 'book_room' (book_room:1), but the code now asks for 'take_money' (take_money:1)"
        in (blocked.error["message"])
    )
    assert result == ["booked", "taken", "sent"]
    assert done == ["book_room", "take_money", "send_key", "send_key"]


def test_the_body_cannot_swallow_a_mismatch(database_url: str) -> None:
    """``except Exception`` around the call must not let the changed code go on."""
    gate, code_is_new = Gate(), []

    @activity
    def old_step(ctx: WorkflowContext) -> str:
        return "old"

    @activity
    def new_step(ctx: WorkflowContext) -> str:
        return "new"

    @activity
    def last_step(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    async def careless(ctx: WorkflowContext) -> str:
        found = "nothing"
        try:
            found = await (new_step(ctx) if code_is_new else old_step(ctx))
        except Exception:
            found = "swallowed"
        await last_step(ctx)
        return found

    async def main() -> Any:
        first = edda(database_url)
        await first.initialize()
        instance_id = await first.start(careless)
        await interrupted_at(gate, first)
        code_is_new.append(True)
        async with edda(database_url) as second:
            return await _blocked(second, instance_id), await second.history(instance_id)

    blocked, history = asyncio.run(main())
    assert blocked.error["error_type"] == "NonDeterminismError"
    assert [event.activity_id for event in history] == ["old_step:1"]


def test_a_mismatch_is_logged_once_as_an_error(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(
        change_the_code(database_url, ["book_room", "take_money", "send_key"], ["take_money", "book_room", "send_key"])
    )
    told = [record for record in caplog.records if "history recorded" in record.getMessage()]
    assert [record.levelno for record in told] == [logging.ERROR]


def test_a_blocked_instance_can_be_cancelled(database_url: str) -> None:
    async def main() -> Any:
        runs.clear()
        gates.append(Gate())
        asked_for[:] = ["book_room", "send_key"]
        first = edda(database_url)
        await first.initialize()
        instance_id = await first.start(scripted)
        await interrupted_at(gates[-1], first)
        asked_for[:] = ["take_money", "send_key"]
        async with edda(database_url) as second:
            await _blocked(second, instance_id)
            assert await second.cancel(instance_id, "given up") is True
            return await second.get(instance_id)

    found = asyncio.run(main())
    assert (found.status, found.cancel_reason, found.is_blocked) == (Status.CANCELLED, "given up", False)


def test_retry_is_false_for_an_instance_that_needs_no_help(database_url: str) -> None:
    @workflow
    async def quick(ctx: WorkflowContext) -> int:
        return 1

    async def main() -> tuple[bool, Any]:
        async with edda(database_url) as app:
            instance_id = await quick.start()
            await app.result(instance_id, timeout=20)
            return await app.retry(instance_id), await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == (False, 1)


def test_retry_of_a_failed_workflow_tries_its_last_failed_step_anew(database_url: str) -> None:
    done: list[str] = []
    is_fixed: list[bool] = []

    @activity
    def first_step(ctx: WorkflowContext) -> None:
        done.append("first")

    @activity
    def fragile(ctx: WorkflowContext) -> str:
        done.append("fragile")
        if not is_fixed:
            raise TerminalError("broken")
        return "fixed"

    @workflow
    async def two_steps(ctx: WorkflowContext) -> str:
        await first_step(ctx)
        return await fragile(ctx)

    async def main() -> Any:
        async with edda(database_url) as app:
            instance_id = await two_steps.start()
            with pytest.raises(WorkflowFailedError, match="TerminalError: broken"):
                await app.result(instance_id, timeout=20)
            is_fixed.append(True)
            assert await app.retry(instance_id) is True
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == "fixed"
    assert done == ["first", "fragile", "fragile"]


@workflow
async def hears_all(ctx: WorkflowContext) -> None:
    await subscribe(ctx, "orders", "broadcast")
    raise TerminalError("broken")


@workflow
async def takes_one(ctx: WorkflowContext) -> None:
    await subscribe(ctx, "orders", "competing")
    await receive(ctx, "orders")


@pytest.mark.parametrize("is_joined", [False, True])
def test_retry_is_refused_and_changes_nothing_when_the_channel_has_another_mode_by_now(
    database_url: str, is_joined: bool
) -> None:
    tables = Tables(database_url)

    async def main() -> Any:
        async with edda(database_url) as app:
            instance_id = await app.start(hears_all)
            with pytest.raises(WorkflowFailedError):
                await app.result(instance_id, timeout=20)
            await asleep(tables, await app.start(takes_one))
            before = tables.instance(instance_id)
            if is_joined:
                refused = pytest.raises(ChannelModeConflictError, match="'competing'")
                with storage(database_url) as database, database.write() as conn, refused:  # and committed all the same
                    retry_with(conn, instance_id)
            else:
                with pytest.raises(ChannelModeConflictError, match="'competing'"):
                    await app.retry(instance_id)
            return before, tables.instance(instance_id)

    before, after = asyncio.run(main())
    assert after == before
    assert tables.value("SELECT count(*) FROM edda_subscriptions") == 1


def test_a_history_of_a_newer_format_is_left_alone_with_one_warning_and_goes_on_when_it_can_be_read(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    done: list[str] = []

    @activity
    def before(ctx: WorkflowContext) -> str:
        done.append("before")
        return "kept"

    @activity
    def wait_here(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    async def two_steps(ctx: WorkflowContext) -> str:
        kept = await before(ctx)
        await wait_here(ctx)
        return kept

    async def main() -> tuple[Any, dict[str, Any]]:
        tables = Tables(database_url)
        first = edda(database_url)
        await first.initialize()
        instance_id = await first.start(two_steps)
        await interrupted_at(gate, first)
        tables.execute("UPDATE edda_history SET format = 99")
        async with edda(database_url) as second:
            await until(lambda: "format 99" in caplog.text)
            left_alone = await until(
                lambda: (row := tables.instance(instance_id))["locked_by"] is None and row["lock_epoch"] > 2 and row
            )
            tables.give_back(instance_id)
            await until(
                lambda: (
                    (row := tables.instance(instance_id))["locked_by"] is None
                    and row["lock_epoch"] > left_alone["lock_epoch"] + 1
                )
            )
            tables.execute("UPDATE edda_history SET format = 1")
            tables.give_back(instance_id)
            return await second.result(instance_id, timeout=20), left_alone

    result, left_alone = asyncio.run(main())
    assert result == "kept"
    assert done == ["before"]
    assert left_alone["status"] in (Status.RUNNING, Status.PENDING)
    warnings = [record for record in caplog.records if "format 99" in record.getMessage()]
    assert [record.levelno for record in warnings] == [logging.WARNING]
    assert "Deploy the newer version here too" in warnings[0].getMessage()


def test_the_history_tells_name_input_and_result_of_each_step(database_url: str) -> None:
    @activity
    def double(ctx: WorkflowContext, number: int, *, times: int = 1) -> int:
        return number * 2 * times

    @workflow
    async def doubles(ctx: WorkflowContext) -> int:
        return await double(ctx, 4)

    async def main() -> Any:
        async with edda(database_url) as app:
            instance_id = await doubles.start()
            await app.result(instance_id, timeout=20)
            return await app.history(instance_id)

    (event,) = asyncio.run(main())
    assert (event.activity_id, event.event_type) == ("double:1", "ActivityCompleted")
    assert event.event_data == {"activity_name": "double", "input": {"number": 4, "times": 1}, "result": 8}
    assert event.created_at.utcoffset().total_seconds() == 0
    assert json.dumps(event.event_data)


@activity
def take_long(ctx: WorkflowContext, name: str, seconds: float) -> str:
    runs.append(name)
    time.sleep(seconds)
    return name


@activity
def hold(ctx: WorkflowContext) -> str:
    gates[-1].hold()
    return "held"


@workflow
async def lends_its_context(ctx: WorkflowContext) -> list[str]:
    """A task calls in the context of another one, which has not ended live, and has on replay."""
    ready, lent = asyncio.Event(), []

    async def child() -> str:
        lent.append(contextvars.copy_context())
        ready.set()
        return await take_long(ctx, "child", 0.6)

    async def late() -> str:
        return await take_long(ctx, "late", 0.0)

    first = asyncio.create_task(child())
    await ready.wait()
    parent = await take_long(ctx, "parent", 0.0)
    second = asyncio.create_task(late(), context=lent[0])
    found = [parent, await second, await first]
    return [*found, await hold(ctx)]


def test_a_context_that_is_lent_gives_the_same_ids_whether_its_task_has_ended_or_not(database_url: str) -> None:
    gates.append(Gate())
    runs.clear()

    async def main() -> Any:
        first = edda(database_url)
        await first.initialize()
        instance_id = await first.start(lends_its_context)
        await interrupted_at(gates[-1], first)
        async with edda(database_url) as second:
            return await second.result(instance_id, timeout=20)

    assert asyncio.run(main()) == ["parent", "late", "child", "held"]
    assert sorted(runs) == ["child", "late", "parent"]


ends: list[str] = []


@activity
async def stay(ctx: WorkflowContext) -> None:
    await asyncio.sleep(1.0)


@workflow
async def leaves_one_behind(ctx: WorkflowContext, lends: bool) -> str:
    begun = asyncio.Event()

    async def child() -> None:
        begun.set()
        try:
            await stay(ctx)
        except asyncio.CancelledError:
            ends.append("given up")
            raise
        ends.append("went on")

    behind = asyncio.create_task(child(), context=contextvars.copy_context() if lends else None)
    await begun.wait()
    return await take_long(ctx, f"{behind.done()}", 0.1)


@pytest.mark.parametrize("lends", [False, True])
def test_what_a_body_leaves_behind_is_given_up_also_in_a_context_that_was_lent(sqlite_url: str, lends: bool) -> None:
    ends.clear()

    async def main() -> None:
        async with edda(sqlite_url) as app:
            assert await app.result(await app.start(leaves_one_behind, lends), timeout=20) == "False"
            await until(lambda: len(ends) == 1)
            assert ends == ["given up"]

    asyncio.run(main())
