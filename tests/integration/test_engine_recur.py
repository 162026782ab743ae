"""``ctx.recur()``: a run ends, its successor begins in the same transaction and inherits what is unread."""

from __future__ import annotations

import asyncio
import inspect
from datetime import timedelta
from typing import Any

import pytest

from edda_engine import (
    InvalidInputError,
    SyncWorkflowContext,
    UsageError,
    WorkflowCancelledError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    receive,
    send_to,
    sleep,
    subscribe,
    wait_event,
    workflow,
)
from edda_engine.core.status import Status
from tests.integration.engines import NEVER_AGAIN, Gate, Tables, edda, interrupted_at, until
from tests.integration.talks import (
    KINDS,
    RARELY,
    asleep,
    begun,
    declare,
    ended_by_another,
    nothing_is_kept,
    run_once,
    steps_of,
    waits_of,
)


def chain(tables: Tables, first: str) -> list[dict[str, Any]]:
    """The runs from the first to the last."""
    runs = [tables.instance(first)]
    while found := tables.rows("SELECT * FROM edda_instances WHERE continued_from = :id", id=runs[-1]["instance_id"]):
        (successor,) = found
        runs.append(successor)
    return runs


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_recurs_is_continued_by_a_successor_with_the_new_arguments(database_url: str, kind: str) -> None:
    @activity
    def note(ctx: WorkflowContext, number: int) -> int:
        return number

    def counts(ctx: Any, number: int, until_number: int = 3) -> Any:
        yield note(ctx, number)
        if number < until_number:
            ctx.recur(number=number + 1, until_number=until_number)
        return [number, ctx.instance_id]

    flow = declare(kind, counts)
    tables = Tables(database_url)

    async def main() -> tuple[str, Any, Any]:
        async with edda(database_url, poll_interval_seconds=RARELY) as app:
            instance_id = await app.start(flow, 0)
            return instance_id, await app.result(instance_id, timeout=20), await app.get(instance_id)

    first, (number, last), shown = asyncio.run(main())
    runs = chain(tables, first)
    assert number == 3
    assert [run["status"] for run in runs] == ["recurred"] * 3 + ["completed"]
    assert runs[-1]["instance_id"] == last
    assert (shown.status, shown.continued_from, shown.output, shown.wake_at) == (Status.RECURRED, None, None, None)
    assert shown.completed_at is not None
    for run in runs:
        assert steps_of(tables, run["instance_id"]) == [("note:1", "ActivityCompleted")]


def test_a_successor_has_the_properties_of_its_predecessor(database_url: str) -> None:
    @workflow
    async def counts(ctx: WorkflowContext, number: int = 0) -> str:
        if number == 0:
            ctx.recur(number=1)
        return ctx.instance_id

    async def main() -> tuple[Any, Any]:
        async with edda(database_url) as app:
            first = await counts.options(priority=7, lock_timeout_seconds=77, instance_id="first").start()
            last = await app.result(first, timeout=20)
            page = await app.find_instances(status="recurred")
            assert [each.instance_id for each in page.instances] == ["first"]
            again = await counts.options(instance_id="first").start()
            assert again == "first"
            return await app.get(first), await app.get(last)

    first, last = asyncio.run(main())
    assert (last.priority, last.lock_timeout_seconds, last.service) == (7, 77, first.service)
    assert (last.workflow_name, last.source_hash, last.continued_from) == ("counts", first.source_hash, "first")
    assert last.input == {"number": 1}
    assert len(Tables(database_url).rows("SELECT * FROM edda_instances")) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_hundreds_of_recurrences_in_a_row_use_no_stack(database_url: str, kind: str) -> None:
    count = 300
    depths: list[int] = []
    tasks: list[int] = []

    def counts(ctx: Any, number: int) -> Any:
        depths.append(len(inspect.stack(0)))
        tasks.append(len(asyncio.all_tasks()))
        if number < count:
            ctx.recur(number=number + 1)
        yield sleep(ctx, 0)
        return number

    flow = declare(kind, counts)

    async def main() -> Any:
        async with edda(database_url) as app:
            return await app.result(await app.start(flow, 0), timeout=120)

    assert asyncio.run(main()) == count
    assert len(depths) == count + 1
    assert set(depths) == {depths[0]}
    assert max(tasks) <= tasks[0] + 10
    assert Tables(database_url).value("SELECT count(*) FROM edda_instances WHERE status = 'recurred'") == count


# What goes along.


@pytest.mark.parametrize("kind", KINDS)
def test_subscriptions_and_unread_messages_go_along(database_url: str, kind: str) -> None:
    """Two messages a run, of all that were sent at once: none is skipped, none comes twice."""

    def reads(ctx: Any, found: list[Any], is_first: bool) -> Any:
        if is_first:
            yield subscribe(ctx, "news")
            yield subscribe(ctx, "jobs", "competing")
        for _ in range(2):
            news = yield receive(ctx, "news")
            job = yield receive(ctx, "jobs")
            mine = yield receive(ctx)
            event = yield wait_event(ctx, "paid")
            found.append([news.data, job.data, mine.data, event.data])
        if len(found) < 8:
            ctx.recur(found=found, is_first=False)
        return found

    flow = declare(kind, reads)
    tables = Tables(database_url)

    async def main() -> Any:
        async with edda(database_url) as app:
            instance_id = await app.start(flow, [], True)
            await asleep(tables, instance_id)
            for number in range(8):
                await app.publish("news", number)
                await app.publish("jobs", number)
                await app.send_to(instance_id, number)
                await app.send_event("paid", "test", number, instance_id=instance_id)
            return instance_id, await app.result(instance_id, timeout=60)

    first, found = asyncio.run(main())
    assert found == [[number] * 4 for number in range(8)]
    assert len(chain(tables, first)) == 4
    assert nothing_is_kept(tables)


def test_what_is_sent_to_any_run_of_the_chain_reaches_the_last(database_url: str) -> None:
    @workflow
    async def reads(ctx: WorkflowContext, number: int = 0) -> list[Any]:
        if number < 3:
            ctx.recur(number=number + 1)
        return [(await receive(ctx)).data, (await wait_event(ctx, "paid")).data, (await receive(ctx)).data]

    @workflow
    async def tells(ctx: WorkflowContext, receiver: str) -> None:
        await send_to(ctx, receiver, "from a body")

    tables = Tables(database_url)

    async def main() -> Any:
        async with edda(database_url) as app:
            first = await app.start(reads)
            await until(lambda: len(chain(tables, first)) == 4)
            runs = [run["instance_id"] for run in chain(tables, first)]
            await asleep(tables, runs[-1])
            await app.send_to(runs[0], "to the first")
            await app.send_event("paid", "test", "to the second", instance_id=runs[1])
            await app.start(tells, runs[2])
            return await app.result(first, timeout=20), await app.result(runs[2], timeout=20)

    expected = ["to the first", "to the second", "from a body"]
    assert asyncio.run(main()) == (expected, expected)
    assert nothing_is_kept(tables)


def test_after_the_last_run_has_ended_what_is_sent_to_the_first_does_nothing(database_url: str) -> None:
    @workflow
    async def reads(ctx: WorkflowContext, number: int = 0) -> int:
        await subscribe(ctx, "news")
        if number < 2:
            ctx.recur(number=number + 1)
        return number

    tables = Tables(database_url)

    async def main() -> None:
        async with edda(database_url) as app:
            first = await app.start(reads)
            await app.result(first, timeout=20)
            await app.send_to(first, "too late")
            await app.publish("news", "too late")
            await until(lambda: nothing_is_kept(tables))

    asyncio.run(main())


def test_a_branch_that_waits_while_another_recurs_is_over_and_keeps_its_message_for_the_successor(
    database_url: str,
) -> None:
    @workflow
    async def reads(ctx: WorkflowContext, is_first: bool = True) -> Any:
        async def recurs() -> None:
            await wait_event(ctx, "go on")
            ctx.recur(is_first=False)

        if is_first:
            await asyncio.gather(receive(ctx), recurs())
        return (await receive(ctx)).data

    tables = Tables(database_url)

    async def main() -> tuple[Any, list[str]]:
        async with begun(database_url, reads) as (app, first):
            await app.send_event("go on", "test", None, instance_id=first)
            await until(lambda: len(chain(tables, first)) == 2)
            await asleep(tables, chain(tables, first)[1]["instance_id"])
            left = waits_of(tables, first)
            await app.send_to(first, "unread")
            return await app.result(first, timeout=20), left

    assert asyncio.run(main()) == ("unread", [])


# Asking and stopping.


def test_cancelling_any_run_of_the_chain_cancels_the_last(database_url: str) -> None:
    @workflow
    def counts(ctx: SyncWorkflowContext, number: int = 0) -> None:
        if number < 2:
            ctx.recur(number=number + 1)
        sleep(ctx, 3600)

    tables = Tables(database_url)

    async def main() -> list[str]:
        async with edda(database_url) as app:
            first = await app.start(counts)
            await until(lambda: len(chain(tables, first)) == 3)
            last = chain(tables, first)[-1]["instance_id"]
            await asleep(tables, last)
            assert await app.cancel(first, "enough")
            assert not await app.cancel(first)
            for instance_id in (first, last):
                with pytest.raises(WorkflowCancelledError, match="enough"):
                    await app.result(instance_id, timeout=20)
            return [run["status"] for run in chain(tables, first)]

    assert asyncio.run(main()) == ["recurred", "recurred", "cancelled"]


def test_the_failure_of_the_last_run_is_that_of_the_first(database_url: str) -> None:
    @workflow
    async def counts(ctx: WorkflowContext, number: int = 0) -> None:
        if number == 0:
            ctx.recur(number=1)
        raise ValueError("broken")

    async def main() -> None:
        async with edda(database_url) as app:
            with pytest.raises(WorkflowFailedError, match="ValueError: broken") as caught:
                await app.result(await app.start(counts), timeout=20)
            assert isinstance(caught.value.__cause__, ValueError)

    asyncio.run(main())


def test_a_run_that_is_repeated_before_it_recurs_has_one_successor(database_url: str) -> None:
    gate = Gate()

    @activity
    def at_the_gate(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    async def counts(ctx: WorkflowContext, number: int = 0) -> int:
        if number == 0:
            await at_the_gate(ctx)
            ctx.recur(number=1)
        return number

    tables = Tables(database_url)

    async def main() -> tuple[str, Any]:
        async with edda(database_url) as app:
            first = await app.start(counts)
            await interrupted_at(gate, app)
        return first, await ended_by_another(database_url, first)

    first, result = asyncio.run(main())
    assert result == 1
    assert [run["status"] for run in chain(tables, first)] == ["recurred", "completed"]
    assert tables.value("SELECT count(*) FROM edda_instances") == 2


# In the body.


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_after_recurring_has_an_effect_whatever_the_body_catches(database_url: str, kind: str) -> None:
    done: list[str] = []

    @activity
    def note(ctx: WorkflowContext, word: str) -> None:
        done.append(word)

    def counts(ctx: Any, number: int = 0) -> Any:
        if number == 0:
            try:
                try:
                    ctx.recur(number=1)
                except Exception:
                    yield note(ctx, "except")
                finally:
                    yield note(ctx, "finally")
            except BaseException:
                yield send_to(ctx, ctx.instance_id, "after")
                yield note(ctx, "after")
            return "went on"
        return number

    flow = declare(kind, counts)
    assert asyncio.run(run_once(database_url, flow)) == 1
    assert done == []
    assert nothing_is_kept(Tables(database_url))


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_that_do_not_fit_are_refused_and_the_run_goes_on(database_url: str, kind: str) -> None:
    def counts(ctx: Any, number: int, pause: timedelta = timedelta(0)) -> Any:
        problems = []
        for arguments in ({}, {"number": "seven"}, {"number": 1, "colour": "red"}, {"number": object()}):
            try:
                ctx.recur(**arguments)
            except InvalidInputError as error:
                problems.append(str(error))
        yield sleep(ctx, 0.01)
        return problems

    flow = declare(kind, counts)
    problems = asyncio.run(run_once(database_url, flow, 0))
    assert len(problems) == 4
    assert all("'counts'" in problem and "signature" in problem for problem in problems)
    assert Tables(database_url).value("SELECT count(*) FROM edda_instances") == 1


def test_recurring_in_an_activity_is_refused_with_a_way_out(database_url: str) -> None:
    @activity(retry_policy=NEVER_AGAIN)
    def recurs(ctx: WorkflowContext) -> str:
        with pytest.raises(UsageError) as caught:
            ctx.recur(number=1)
        return str(caught.value)

    @workflow
    async def asks(ctx: WorkflowContext, number: int = 0) -> str:
        return await recurs(ctx)

    assert "call it in the workflow's body" in asyncio.run(run_once(database_url, asks))
