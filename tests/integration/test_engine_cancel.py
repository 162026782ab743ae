"""Cancel: at once where nobody works, at the next step where somebody does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from edda_engine import (
    InstanceNotFoundError,
    SyncWorkflowContext,
    WorkflowCancelledError,
    WorkflowContext,
    activity,
    sleep,
    wait_event,
    workflow,
)
from edda_engine.core.status import Status
from tests.integration.engines import MUCH_LATER, Gate, Tables, edda, until, write_note


def test_a_pending_instance_is_cancelled_at_once(database_url: str) -> None:
    @workflow
    async def later(ctx: WorkflowContext) -> None: ...

    async def main() -> tuple[bool, Any, str]:
        async with edda(database_url) as app:
            instance_id = await later.options(delay=3600).start()
            done = await app.cancel(instance_id, "not wanted any more")
            with pytest.raises(WorkflowCancelledError, match=r"\(not wanted any more\)") as caught:
                await app.result(instance_id, timeout=0)
            return done, await app.get(instance_id), caught.value.reason or ""

    done, found, reason = asyncio.run(main())
    assert done is True
    assert (found.status, found.wake_at, found.started_at) == (Status.CANCELLED, None, None)
    assert found.completed_at is not None
    assert reason == found.cancel_reason == "not wanted any more"


@pytest.mark.parametrize("max_parked", [0, 1000])
def test_an_instance_that_waits_for_its_next_attempt_is_cancelled_at_once(database_url: str, max_parked: int) -> None:
    runs: list[int] = []

    @activity(retry_policy=MUCH_LATER)
    def unlucky(ctx: WorkflowContext) -> None:
        runs.append(ctx.attempt)
        raise ConnectionError("no")

    @workflow
    async def waits(ctx: WorkflowContext) -> None:
        await unlucky(ctx)

    async def main() -> tuple[bool, Any]:
        tables = Tables(database_url)
        async with edda(database_url, max_parked=max_parked) as app:
            instance_id = await waits.start()
            await until(lambda: tables.status(instance_id) == "waiting_for_timer")
            done = await app.cancel(instance_id)
            return done, await app.get(instance_id)

    done, found = asyncio.run(main())
    assert done is True
    assert (found.status, found.wake_at, found.locked_by) == (Status.CANCELLED, None, None)
    assert runs == [1]
    assert Tables(database_url).rows("SELECT * FROM edda_retries") == []


@pytest.mark.parametrize("kind", ["async", "plain"])
def test_a_running_instance_stops_at_its_next_step(database_url: str, kind: str) -> None:
    tables = Tables(database_url)
    tables.make_notes()
    gate = Gate()

    @activity
    def step(ctx: WorkflowContext, name: str) -> None:
        if name == "first":
            gate.hold()
        write_note(ctx, name)

    if kind == "async":

        @workflow
        async def three_steps(ctx: WorkflowContext) -> None:
            for name in ("first", "second", "third"):
                await step(ctx, name)
    else:

        @workflow
        def three_steps(ctx: SyncWorkflowContext) -> None:
            for name in ("first", "second", "third"):
                step(ctx, name)

    async def main() -> tuple[bool, Any, Any]:
        async with edda(database_url) as app:
            instance_id = await app.start(three_steps)
            await gate.is_reached()
            asked = await app.cancel(instance_id, "enough")
            assert (await app.get(instance_id)).status is Status.RUNNING
            gate.open()
            with pytest.raises(WorkflowCancelledError):
                await app.result(instance_id, timeout=20)
            return asked, await app.get(instance_id), await app.history(instance_id)

    asked, found, history = asyncio.run(main())
    assert asked is True
    assert found.status is Status.CANCELLED
    assert [event.activity_id for event in history] == ["step:1"]
    assert tables.notes() == ["first"]


def test_a_cancel_from_another_process_reaches_the_one_that_runs_it(database_url: str) -> None:
    gate = Gate()
    runs: list[str] = []

    @activity
    def step(ctx: WorkflowContext, name: str) -> None:
        runs.append(name)
        gate.hold()

    @workflow
    async def two_steps(ctx: WorkflowContext) -> None:
        await step(ctx, "first")
        await step(ctx, "second")

    async def main() -> Any:
        async with edda(database_url) as runner:
            instance_id = await runner.start(two_steps)
            await gate.is_reached()
            async with edda(database_url) as other:
                assert await other.cancel(instance_id) is True
                gate.open()
                with pytest.raises(WorkflowCancelledError):
                    await other.result(instance_id, timeout=20)
                return await other.get(instance_id)

    assert asyncio.run(main()).status is Status.CANCELLED
    assert runs == ["first"]


def test_a_body_cannot_swallow_its_cancellation(database_url: str) -> None:
    gate = Gate()
    runs: list[str] = []

    @activity
    def step(ctx: WorkflowContext, name: str) -> None:
        runs.append(name)
        if name == "first":
            gate.hold()

    @workflow
    async def stubborn(ctx: WorkflowContext) -> str:
        for name in ("first", "second", "third"):
            try:
                await step(ctx, name)
            except Exception:
                runs.append("swallowed")
        return "went on"

    async def main() -> Any:
        async with edda(database_url) as app:
            instance_id = await app.start(stubborn)
            await gate.is_reached()
            await app.cancel(instance_id)
            gate.open()
            with pytest.raises(WorkflowCancelledError):
                await app.result(instance_id, timeout=20)

    asyncio.run(main())
    assert runs == ["first"]


def test_a_step_in_a_finally_is_not_done_after_a_cancellation(database_url: str) -> None:
    gate = Gate()
    runs: list[str] = []

    @activity
    def step(ctx: WorkflowContext, name: str) -> None:
        runs.append(name)
        if name == "first":
            gate.hold()

    @workflow
    def tidy(ctx: SyncWorkflowContext) -> None:
        try:
            step(ctx, "first")
            step(ctx, "second")
        finally:
            step(ctx, "tidy up")

    async def main() -> Any:
        async with edda(database_url) as app:
            instance_id = await app.start(tidy)
            await gate.is_reached()
            await app.cancel(instance_id)
            gate.open()
            with pytest.raises(WorkflowCancelledError):
                await app.result(instance_id, timeout=20)
            return await app.get(instance_id)

    assert asyncio.run(main()).status is Status.CANCELLED
    assert runs == ["first"]


def test_a_finished_instance_cannot_be_cancelled_and_keeps_its_result(database_url: str) -> None:
    @workflow
    async def quick(ctx: WorkflowContext) -> int:
        return 7

    async def main() -> tuple[bool, int, Any]:
        async with edda(database_url) as app:
            instance_id = await quick.start()
            await app.result(instance_id, timeout=20)
            done = await app.cancel(instance_id, "too late")
            return done, await app.result(instance_id), await app.get(instance_id)

    done, result, found = asyncio.run(main())
    assert (done, result) == (False, 7)
    assert (found.status, found.cancel_reason) == (Status.COMPLETED, None)


def test_cancelling_twice_is_false_the_second_time_and_keeps_the_first_reason(database_url: str) -> None:
    @workflow
    async def later(ctx: WorkflowContext) -> None: ...

    async def main() -> tuple[bool, bool, Any]:
        async with edda(database_url) as app:
            instance_id = await later.options(delay=3600).start()
            return (
                await app.cancel(instance_id, "first"),
                await app.cancel(instance_id, "second"),
                await app.get(instance_id),
            )

    first, second, found = asyncio.run(main())
    assert found.cancel_reason == "first"
    assert (first, second) == (True, False)


def test_cancelling_an_unknown_instance_says_so(database_url: str) -> None:
    async def main() -> None:
        async with edda(database_url) as app:
            await app.cancel("nobody")

    with pytest.raises(InstanceNotFoundError, match="There is no workflow instance 'nobody'"):
        asyncio.run(main())


def test_a_cancelled_instance_whose_worker_is_gone_ends_when_it_is_claimed(database_url: str) -> None:
    """Asked to stop while locked by a worker that then died."""
    runs: list[str] = []

    @workflow
    async def orphan(ctx: WorkflowContext) -> None:
        runs.append("body")

    async def main() -> Any:
        tables = Tables(database_url)
        async with edda(database_url) as app:
            instance_id = await orphan.options(delay=3600).start()
            tables.execute("UPDATE edda_instances SET status = 'running', locked_by = 'gone', lock_epoch = 3")
            assert await app.cancel(instance_id) is True
            assert tables.status(instance_id) == "running"
            tables.give_back(instance_id)
            with pytest.raises(WorkflowCancelledError):
                await app.result(instance_id, timeout=20)

    asyncio.run(main())
    assert runs == []


@pytest.mark.parametrize("wait", [lambda ctx: wait_event(ctx, "never"), lambda ctx: sleep(ctx, 3600)])
def test_a_body_that_is_asked_to_stop_just_before_it_begins_to_wait_does_not_wait(
    database_url: str, wait: Callable[[Any], Any]
) -> None:
    """Its question was answered before the request was there; whoever tells it then finds nothing to wake."""
    tables = Tables(database_url)
    asked: list[str] = []

    @workflow
    async def about_to_wait(ctx: WorkflowContext) -> None:
        await wait(ctx)

    def tell(point: str) -> None:
        if point == "take.after_commit" and not asked:
            executor = app._engine.executor  # type: ignore[union-attr]
            asked.extend(executor.held)
            tables.execute("UPDATE edda_instances SET cancel_requested_at = :now", now="2001-01-01 00:00:00.000")
            executor.ask_to_stop(asked[0])

    app = edda(database_url, probe=tell)

    async def main() -> None:
        async with app:
            with pytest.raises(WorkflowCancelledError):
                await app.result(await app.start(about_to_wait), timeout=10)

    asyncio.run(main())
    assert asked
