"""``timeout_seconds``: an attempt that is late can never commit, whatever it still does."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from edda_engine import RetryPolicy, WorkflowContext, activity, send_event_transactional, workflow
from tests.integration.engines import Gate, Tables, edda, until, write_note, write_note_async

LIMIT = 1.0
"""Long enough for an attempt that does what it is asked to, on a busy machine."""
AGAIN = RetryPolicy(max_attempts=10, initial_interval=0.02, backoff_coefficient=1.0)
"""On a busy machine a later attempt may be late, too."""


async def run_with_late_thread(url: str, started: Any, gate: Gate, ended: threading.Event) -> Any:
    """The result, once the late attempt has gone on and ended too."""
    async with edda(url) as app:
        instance_id = await app.start(started)
        result = await app.result(instance_id, timeout=20)
        gate.open()
        await until(ended.is_set)
        return result


@pytest.fixture
def tables(database_url: str) -> Tables:
    found = Tables(database_url)
    found.make_notes()
    return found


def test_a_late_sync_attempt_cannot_commit_what_it_wrote(database_url: str, tables: Tables) -> None:
    gate, ended = Gate(), threading.Event()

    @activity(retry_policy=AGAIN, timeout_seconds=LIMIT)
    def slow(ctx: WorkflowContext) -> int:
        try:
            write_note(ctx, f"attempt {ctx.attempt}")
            if ctx.attempt == 1:
                gate.hold()
            return ctx.attempt
        finally:
            if ctx.attempt == 1:
                ended.set()

    @workflow
    async def waits(ctx: WorkflowContext) -> int:
        return await slow(ctx)

    in_time = asyncio.run(run_with_late_thread(database_url, waits, gate, ended))
    assert in_time > 1
    assert tables.notes() == [f"attempt {in_time}"]


def test_a_late_sync_attempt_that_tries_again_after_the_refusal_is_refused_again(
    database_url: str, tables: Tables
) -> None:
    gate, ended = Gate(), threading.Event()
    refusals: list[str] = []

    def insist(ctx: WorkflowContext) -> None:
        for stubborn in (
            lambda: write_note(ctx, "too late"),
            lambda: ctx.session.commit(),
            lambda: ctx.session.rollback(),
            lambda: write_note(ctx, "still too late"),
            lambda: ctx.session.commit(),
        ):
            try:
                stubborn()
            except BaseException as refused:
                refusals.append(type(refused).__name__)

    @activity(retry_policy=AGAIN, timeout_seconds=LIMIT)
    def slow(ctx: WorkflowContext) -> int:
        write_note(ctx, f"attempt {ctx.attempt}")
        if ctx.attempt == 1:
            gate.hold()
            insist(ctx)
            ended.set()
        return ctx.attempt

    @workflow
    async def waits(ctx: WorkflowContext) -> int:
        return await slow(ctx)

    in_time = asyncio.run(run_with_late_thread(database_url, waits, gate, ended))
    assert in_time > 1
    assert tables.notes() == [f"attempt {in_time}"]
    assert refusals[0] == "LeaseLostError"
    assert len(refusals) >= 2


def test_a_late_sync_attempt_that_first_writes_when_it_is_late_is_refused(database_url: str, tables: Tables) -> None:
    gate, ended = Gate(), threading.Event()

    @activity(retry_policy=AGAIN, timeout_seconds=LIMIT)
    def slow(ctx: WorkflowContext) -> int:
        try:
            if ctx.attempt == 1:
                gate.hold()
            write_note(ctx, f"attempt {ctx.attempt}")
            return ctx.attempt
        finally:
            if ctx.attempt == 1:
                ended.set()

    @workflow
    async def waits(ctx: WorkflowContext) -> int:
        return await slow(ctx)

    in_time = asyncio.run(run_with_late_thread(database_url, waits, gate, ended))
    assert in_time > 1
    assert tables.notes() == [f"attempt {in_time}"]


def test_events_of_a_late_attempt_are_not_sent(database_url: str, tables: Tables) -> None:
    gate, ended = Gate(), threading.Event()

    @activity(retry_policy=AGAIN, timeout_seconds=LIMIT)
    def slow(ctx: WorkflowContext) -> int:
        try:
            send_event_transactional(ctx, "slow.done", "tests", {"attempt": ctx.attempt})
            if ctx.attempt == 1:
                gate.hold()
            return ctx.attempt
        finally:
            if ctx.attempt == 1:
                ended.set()

    @workflow
    async def waits(ctx: WorkflowContext) -> int:
        return await slow(ctx)

    in_time = asyncio.run(run_with_late_thread(database_url, waits, gate, ended))
    assert in_time > 1
    assert [row["data"] for row in tables.rows("SELECT CAST(data AS TEXT) AS data FROM edda_outbox")] == [
        f'{{"attempt":{in_time}}}'
    ]


def test_a_late_attempt_does_not_keep_others_from_writing(database_url: str, tables: Tables) -> None:
    gate, ended = Gate(), threading.Event()

    @activity(retry_policy=AGAIN, timeout_seconds=LIMIT)
    def slow(ctx: WorkflowContext) -> int:
        try:
            write_note(ctx, f"slow {ctx.attempt}")
            if ctx.attempt == 1:
                gate.hold()
            return ctx.attempt
        finally:
            if ctx.attempt == 1:
                ended.set()

    @activity
    def quick(ctx: WorkflowContext, number: int) -> None:
        write_note(ctx, f"quick {number}")

    @workflow
    async def waits(ctx: WorkflowContext) -> int:
        in_time, *_ = await asyncio.gather(slow(ctx), *(quick(ctx, number) for number in range(3)))
        return in_time

    in_time = asyncio.run(run_with_late_thread(database_url, waits, gate, ended))
    assert in_time > 1
    assert tables.notes() == ["quick 0", "quick 1", "quick 2", f"slow {in_time}"]


def test_a_late_async_attempt_is_cancelled_and_rolled_back(database_url: str, tables: Tables) -> None:
    cancelled: list[int] = []

    @activity(retry_policy=AGAIN, timeout_seconds=LIMIT)
    async def slow(ctx: WorkflowContext) -> int:
        try:
            await write_note_async(ctx, f"attempt {ctx.attempt}")
            if ctx.attempt == 1:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(ctx.attempt)
            raise
        return ctx.attempt

    @workflow
    async def waits(ctx: WorkflowContext) -> int:
        return await slow(ctx)

    async def main() -> Any:
        async with edda(database_url) as app:
            return await app.result(await app.start(waits), timeout=20)

    in_time = asyncio.run(main())
    assert in_time > 1
    assert cancelled[0] == 1
    assert cancelled == sorted(set(cancelled) & set(range(1, in_time)))
    assert tables.notes() == [f"attempt {in_time}"]


def test_an_attempt_within_its_time_is_not_disturbed(database_url: str, tables: Tables) -> None:
    @activity(timeout_seconds=30)
    def quick(ctx: WorkflowContext) -> int:
        write_note(ctx, "once")
        return ctx.attempt

    @workflow
    async def calls(ctx: WorkflowContext) -> int:
        return await quick(ctx)

    async def main() -> Any:
        async with edda(database_url) as app:
            return await app.result(await app.start(calls), timeout=20)

    assert asyncio.run(main()) == 1
    assert tables.notes() == ["once"]


def test_the_time_that_an_attempt_waits_for_a_thread_does_not_count(database_url: str) -> None:
    gate = Gate()
    runs: list[int] = []

    @activity
    def occupies(ctx: WorkflowContext) -> None:
        gate.hold()

    @activity(retry_policy=RetryPolicy(max_attempts=1), timeout_seconds=LIMIT)
    def waits_for_the_thread(ctx: WorkflowContext) -> str:
        runs.append(ctx.attempt)
        return "in time"

    @workflow
    async def both(ctx: WorkflowContext) -> str:
        _, second = await asyncio.gather(occupies(ctx), waits_for_the_thread(ctx))
        return second

    async def main() -> str:
        async with edda(database_url, threads=1) as app:
            instance_id = await app.start(both)
            await gate.is_reached()
            asyncio.get_running_loop().call_later(3 * LIMIT, gate.open)
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == "in time"
    assert runs == [1]


def test_an_attempt_that_is_given_up_before_a_thread_takes_it_never_begins(database_url: str) -> None:
    gate = Gate()
    runs: list[str] = []

    @activity
    def occupies(ctx: WorkflowContext) -> None:
        gate.hold()

    @activity
    def is_given_up(ctx: WorkflowContext) -> None:
        runs.append("begun")

    @activity
    def comes_after(ctx: WorkflowContext) -> None:
        runs.append("after")

    @workflow
    async def gives_up(ctx: WorkflowContext) -> None:
        occupied = asyncio.create_task(occupies(ctx))
        task = asyncio.create_task(is_given_up(ctx))
        await gate.is_reached()
        task.cancel()
        await asyncio.wait({task})
        gate.open()
        await occupied
        await comes_after(ctx)

    async def main() -> None:
        async with edda(database_url, threads=1) as app:
            await app.result(await app.start(gives_up), timeout=20)

    asyncio.run(main())
    assert runs == ["after"]
