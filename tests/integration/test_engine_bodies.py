"""Workflow bodies, ``async def`` and plain ``def``: calls, ids, branches, inline workflows."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from edda_engine import (
    RetryPolicy,
    SyncWorkflowContext,
    TerminalError,
    UsageError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    sleep,
    wait_event,
    workflow,
)
from tests.integration.engines import edda

Outcome = tuple[Any, list[str]]


async def run_once(url: str, started: Any, *args: Any) -> Outcome:
    """The result of one run, and the ids its history holds."""
    async with edda(url) as app:
        instance_id = await app.start(started, *args)
        result = await app.result(instance_id, timeout=20)
        return result, [event.activity_id for event in await app.history(instance_id)]


@activity
def add_sync(ctx: WorkflowContext, number: int) -> int:
    return number + 1


@activity
async def add_async(ctx: WorkflowContext, number: int) -> int:
    await asyncio.sleep(0)
    return number + 1


@workflow
async def async_child(ctx: WorkflowContext, number: int) -> int:
    return await add_async(ctx, await add_sync(ctx, number))


@workflow
def sync_child(ctx: SyncWorkflowContext, number: int) -> int:
    return add_async(ctx, add_sync(ctx, number))


@workflow
def echo(ctx: SyncWorkflowContext, function: str, **more: str) -> list[str]:
    return [function, *more.values()]


def test_parameters_of_a_plain_body_may_have_any_name(sqlite_url: str) -> None:
    async def main() -> Any:
        async with edda(sqlite_url) as app:
            return await app.result(await echo.start(function="a", args="b", self="c", parent="d"), timeout=20)

    assert asyncio.run(main()) == ["a", "b", "c", "d"]


def test_an_async_body_mixes_sync_and_async_activities(database_url: str) -> None:
    @workflow
    async def mixed(ctx: WorkflowContext, number: int) -> int:
        return await add_sync(ctx, await add_async(ctx, await add_sync(ctx, number)))

    outcome = asyncio.run(run_once(database_url, mixed, 1))
    assert outcome == (4, ["add_sync:1", "add_async:1", "add_sync:2"])


def test_a_plain_body_mixes_sync_and_async_activities(database_url: str) -> None:
    @workflow
    def mixed(ctx: SyncWorkflowContext, number: int) -> int:
        return add_sync(ctx, add_async(ctx, add_sync(ctx, number)))

    outcome = asyncio.run(run_once(database_url, mixed, 1))
    assert outcome == (4, ["add_sync:1", "add_async:1", "add_sync:2"])


def test_an_async_body_runs_an_async_workflow_inline(database_url: str) -> None:
    @workflow
    async def parent(ctx: WorkflowContext) -> int:
        return await async_child(ctx, await add_sync(ctx, 0)) * 10

    assert asyncio.run(run_once(database_url, parent)) == (30, ["add_sync:1", "add_sync:2", "add_async:1"])


def test_an_async_body_runs_a_plain_workflow_inline(database_url: str) -> None:
    @workflow
    async def parent(ctx: WorkflowContext) -> int:
        return await sync_child(ctx, await add_sync(ctx, 0)) * 10

    assert asyncio.run(run_once(database_url, parent)) == (30, ["add_sync:1", "add_sync:2", "add_async:1"])


def test_a_plain_body_runs_an_async_workflow_inline(database_url: str) -> None:
    @workflow
    def parent(ctx: SyncWorkflowContext) -> int:
        return async_child(ctx, add_sync(ctx, 0)) * 10

    assert asyncio.run(run_once(database_url, parent)) == (30, ["add_sync:1", "add_sync:2", "add_async:1"])


def test_a_plain_body_runs_a_plain_workflow_inline(database_url: str) -> None:
    @workflow
    def parent(ctx: SyncWorkflowContext) -> int:
        return sync_child(ctx, add_sync(ctx, 0)) * 10

    assert asyncio.run(run_once(database_url, parent)) == (30, ["add_sync:1", "add_sync:2", "add_async:1"])


def test_inline_workflows_nest_through_both_kinds(database_url: str) -> None:
    @workflow
    async def middle(ctx: WorkflowContext, number: int) -> int:
        return await sync_child(ctx, number)

    @workflow
    def outermost(ctx: SyncWorkflowContext) -> int:
        return middle(ctx, 5)

    assert asyncio.run(run_once(database_url, outermost)) == (7, ["add_sync:1", "add_async:1"])


def test_an_error_of_an_inline_workflow_is_caught_where_it_was_called(database_url: str) -> None:
    @activity
    def refuse(ctx: WorkflowContext) -> None:
        raise TerminalError("no")

    @workflow
    async def failing(ctx: WorkflowContext) -> None:
        await refuse(ctx)

    @workflow
    def parent(ctx: SyncWorkflowContext) -> str:
        try:
            failing(ctx)
        except TerminalError as error:
            return f"caught {error}"
        return "nothing to catch"

    assert asyncio.run(run_once(database_url, parent)) == ("caught no", ["refuse:1"])


def test_asyncio_gather_over_calls_numbers_them_in_the_order_of_the_calls(database_url: str) -> None:
    first_may_end = asyncio.Event()

    @activity
    async def number(ctx: WorkflowContext, which: int) -> int:
        if which == 1:
            await first_may_end.wait()
        else:
            first_may_end.set()
        return which

    @workflow
    async def together(ctx: WorkflowContext) -> list[int]:
        return list(await asyncio.gather(number(ctx, 1), number(ctx, 2)))

    result, ids = asyncio.run(run_once(database_url, together))
    assert result == [1, 2]
    assert sorted(ids) == ["number:1", "number:2"]


def test_calls_in_tasks_are_numbered_within_their_branch(database_url: str) -> None:
    @workflow
    async def branches(ctx: WorkflowContext) -> list[int]:
        async def two_steps(number: int) -> int:
            return await add_async(ctx, await add_sync(ctx, number))

        return list(await asyncio.gather(two_steps(0), two_steps(10)))

    result, ids = asyncio.run(run_once(database_url, branches))
    assert result == [2, 12]
    assert sorted(ids) == ["1/add_async:1", "1/add_sync:1", "2/add_async:1", "2/add_sync:1"]


def test_nested_tasks_are_numbered_by_path(database_url: str) -> None:
    @workflow
    async def nested(ctx: WorkflowContext) -> int:
        async def leaf(number: int) -> int:
            return await add_sync(ctx, number)

        async def limb(number: int) -> int:
            first = await add_sync(ctx, number)
            return first + sum(await asyncio.gather(leaf(number), leaf(number)))

        return sum(await asyncio.gather(limb(0), limb(10))) + await add_sync(ctx, 0)

    result, ids = asyncio.run(run_once(database_url, nested))
    assert result == 3 + 33 + 1
    assert sorted(ids) == [
        "1/1/add_sync:1",
        "1/2/add_sync:1",
        "1/add_sync:1",
        "2/1/add_sync:1",
        "2/2/add_sync:1",
        "2/add_sync:1",
        "add_sync:1",
    ]


def test_ctx_gather_runs_branches_of_a_plain_body_side_by_side(database_url: str) -> None:
    both = asyncio.Barrier(2)

    @activity
    async def meet(ctx: WorkflowContext, name: str) -> str:
        await asyncio.wait_for(both.wait(), 10)
        return name

    @workflow
    def pair(ctx: SyncWorkflowContext) -> list[str]:
        return ctx.gather(lambda: meet(ctx, "left"), lambda: meet(ctx, "right"))

    result, ids = asyncio.run(run_once(database_url, pair))
    assert result == ["left", "right"]
    assert sorted(ids) == ["1/meet:1", "2/meet:1"]


def test_ctx_gather_nests_and_numbers_by_path(database_url: str) -> None:
    @workflow
    def nested(ctx: SyncWorkflowContext) -> list[list[int]]:
        def limb(number: int) -> list[int]:
            own = add_sync(ctx, number)
            return ctx.gather(lambda: add_sync(ctx, own), lambda: add_async(ctx, own + 1))

        return ctx.gather(lambda: limb(0), lambda: limb(10))

    result, ids = asyncio.run(run_once(database_url, nested))
    assert result == [[2, 3], [12, 13]]
    assert sorted(ids) == [
        "1/1/add_sync:1",
        "1/2/add_async:1",
        "1/add_sync:1",
        "2/1/add_sync:1",
        "2/2/add_async:1",
        "2/add_sync:1",
    ]


def test_branches_of_a_branch_without_calls_of_its_own_are_numbered_within_it(database_url: str) -> None:
    @workflow
    def nested(ctx: SyncWorkflowContext) -> list[list[int]]:
        def limb(number: int) -> list[int]:
            return ctx.gather(lambda: add_sync(ctx, number), lambda: add_sync(ctx, number + 1))

        return ctx.gather(lambda: limb(0), lambda: limb(10))

    result, ids = asyncio.run(run_once(database_url, nested))
    assert result == [[1, 2], [11, 12]]
    assert sorted(ids) == ["1/1/add_sync:1", "1/2/add_sync:1", "2/1/add_sync:1", "2/2/add_sync:1"]


def test_ctx_gather_returns_errors_in_their_place_when_asked_to(database_url: str) -> None:
    @activity
    def refuse(ctx: WorkflowContext) -> int:
        raise TerminalError("refused")

    @workflow
    def pair(ctx: SyncWorkflowContext) -> list[str]:
        found = ctx.gather(lambda: add_sync(ctx, 1), lambda: refuse(ctx), return_exceptions=True)
        return [repr(item) for item in found]

    result, _ = asyncio.run(run_once(database_url, pair))
    assert result == ["2", "TerminalError('refused')"]


def test_ctx_gather_raises_the_first_error_of_a_branch(database_url: str) -> None:
    @activity
    def refuse(ctx: WorkflowContext) -> int:
        raise TerminalError("refused")

    @workflow
    def pair(ctx: SyncWorkflowContext) -> str:
        try:
            ctx.gather(lambda: add_sync(ctx, 1), lambda: refuse(ctx))
        except TerminalError as error:
            return str(error)
        return "no error"

    assert asyncio.run(run_once(database_url, pair))[0] == "refused"


def test_a_manual_id_is_the_one_in_history_and_leaves_the_numbering_alone(database_url: str) -> None:
    @workflow
    async def manual(ctx: WorkflowContext) -> int:
        first = await add_sync(ctx, 1, activity_id="the-first")
        return first + await add_sync(ctx, 2) + await add_sync(ctx, 3, activity_id="the-third")

    assert asyncio.run(run_once(database_url, manual)) == (9, ["the-first", "add_sync:1", "the-third"])


def test_the_same_manual_id_twice_is_refused_with_a_sentence(database_url: str) -> None:
    @workflow
    async def twice(ctx: WorkflowContext) -> None:
        await add_sync(ctx, 1, activity_id="same")
        await add_sync(ctx, 2, activity_id="same")

    with pytest.raises(WorkflowFailedError, match="activity_id 'same' is used twice") as caught:
        asyncio.run(run_once(database_url, twice))
    assert isinstance(caught.value.__cause__, UsageError)


def test_an_activity_declared_under_a_name_is_recorded_by_it(database_url: str) -> None:
    @activity(name="charge-card")
    def charge(ctx: WorkflowContext) -> str:
        return "charged"

    @workflow(name="pay-order")
    async def pay(ctx: WorkflowContext) -> list[str]:
        return [ctx.workflow_name, await charge(ctx)]

    assert asyncio.run(run_once(database_url, pay)) == (["pay-order", "charged"], ["charge-card:1"])


def test_the_context_knows_its_instance_its_worker_and_its_attempt(database_url: str) -> None:
    @activity(retry_policy=RetryPolicy(max_attempts=2, initial_interval=0))
    def tell(ctx: WorkflowContext) -> list[Any]:
        if ctx.attempt == 1:
            raise ValueError("once")
        return [ctx.instance_id, ctx.worker_id, ctx.attempt, ctx.idempotency_key, ctx.in_transaction()]

    @workflow
    async def asks(ctx: WorkflowContext) -> list[Any]:
        return [ctx.instance_id, ctx.worker_id, ctx.in_transaction(), await tell(ctx)]

    async def main() -> tuple[list[Any], str, str]:
        async with edda(database_url) as app:
            instance_id = await asks.start()
            return await app.result(instance_id, timeout=20), instance_id, app.worker_id

    result, instance_id, worker_id = asyncio.run(main())
    assert result == [instance_id, worker_id, False, [instance_id, worker_id, 2, f"{instance_id}:tell:1", True]]


def test_the_session_is_refused_in_a_body_with_a_sentence_that_says_where_it_belongs(database_url: str) -> None:
    @workflow
    async def misplaced(ctx: WorkflowContext) -> None:
        ctx.session.execute("SELECT 1")

    with pytest.raises(WorkflowFailedError, match="Move this into an @activity"):
        asyncio.run(run_once(database_url, misplaced))


def test_an_activity_cannot_be_called_inside_an_activity(database_url: str) -> None:
    @activity(retry_policy=RetryPolicy(max_attempts=1))
    def outer(ctx: WorkflowContext) -> None:
        add_sync(ctx, 1)

    @workflow
    async def nests(ctx: WorkflowContext) -> None:
        await outer(ctx)

    with pytest.raises(WorkflowFailedError, match="a step cannot contain another one"):
        asyncio.run(run_once(database_url, nests))


def test_wrong_arguments_of_an_activity_fail_the_workflow_with_a_type_error(database_url: str) -> None:
    @workflow
    async def wrong(ctx: WorkflowContext) -> None:
        await add_sync(ctx, 1, 2)  # type: ignore[call-arg]

    with pytest.raises(WorkflowFailedError) as caught:
        asyncio.run(run_once(database_url, wrong))
    assert isinstance(caught.value.__cause__, TypeError)


def test_an_error_that_escapes_the_body_fails_the_workflow_with_its_cause(database_url: str) -> None:
    @workflow
    def broken(ctx: SyncWorkflowContext) -> None:
        raise ValueError("the body is broken")

    with pytest.raises(WorkflowFailedError, match="ValueError: the body is broken") as caught:
        asyncio.run(run_once(database_url, broken))
    assert repr(caught.value.__cause__) == "ValueError('the body is broken')"


def test_gather_of_the_context_in_an_async_body_names_the_one_of_asyncio(sqlite_url: str) -> None:
    @workflow
    async def mistaken(ctx: WorkflowContext) -> None:
        ctx.gather(lambda: add_sync(ctx, 1))  # type: ignore[attr-defined]

    with pytest.raises(WorkflowFailedError, match=r"UsageError: ctx\.gather\(\) is for plain.*`await asyncio\.gather"):
        asyncio.run(run_once(sqlite_url, mistaken))


# Calls that nobody awaits.


@pytest.mark.filterwarnings("ignore:coroutine '(add_sync|sleep|wait_event)' was never awaited:RuntimeWarning")
def test_a_body_that_forgets_an_await_is_told_of_by_the_names_of_its_calls(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    @workflow
    async def forgetful(ctx: WorkflowContext) -> int:
        add_sync(ctx, 1)
        later = [sleep(ctx, 3600), wait_event(ctx, "paid")]
        return await add_sync(ctx, len(later))

    assert asyncio.run(run_once(sqlite_url, forgetful))[1] == ["add_sync:2"]
    (told,) = [record for record in caplog.records if "without awaiting" in record.getMessage()]
    assert told.levelname == "WARNING"
    assert (
        "without awaiting add_sync (add_sync:1), sleep (sleep:1), wait_event (wait_event:1): none" in told.getMessage()
    )
    assert "Write `await add_sync(ctx, ...)`" in told.getMessage()


def test_calls_that_tasks_have_taken_over_are_not_forgotten(sqlite_url: str, caplog: pytest.LogCaptureFixture) -> None:
    @workflow
    async def busy(ctx: WorkflowContext) -> int:
        with suppress(TimeoutError):
            await asyncio.wait_for(add_sync(ctx, 1), 0)
        with suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(add_sync(ctx, 2))
                raise ValueError
        _, found = await ctx.first_of(sleep(ctx, 3600), add_sync(ctx, 3))
        return sum(await asyncio.gather(add_sync(ctx, 4), add_sync(ctx, 5))) + found

    asyncio.run(run_once(sqlite_url, busy))
    assert "without awaiting" not in caplog.text
