"""Until when an event is waited for, what refuses to wait, and what history tells of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from edda_engine import (
    EventTimeoutError,
    RetryPolicy,
    SyncWorkflowContext,
    UsageError,
    WorkflowCancelledError,
    WorkflowContext,
    activity,
    sleep,
    wait_event,
    workflow,
)
from edda_engine.events import event_message
from tests.integration.engines import NEVER_AGAIN, Gate, Tables, edda, until
from tests.integration.talks import (
    KINDS,
    RARELY,
    asleep,
    begun,
    declare,
    ended_by_another,
    expire,
    in_two_lives,
    left_asleep,
    make_due,
    nothing_is_kept,
    repeated,
    run_once,
    send_behind,
    steps_of,
    waits_of,
)

LIMIT = 1_000_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_deadline_is_a_timeout_error_live_and_on_replay(database_url: str, kind: str) -> None:
    gate = Gate()
    seen: list[Any] = []

    @activity
    def at_the_gate(ctx: WorkflowContext) -> None:
        gate.hold()

    def waits(ctx: Any) -> Any:
        try:
            yield wait_event(ctx, "paid", timeout_seconds=0.2)
        except TimeoutError as error:
            seen.append((type(error), str(error), vars(error)))
        yield at_the_gate(ctx)
        return ctx.instance_id

    flow = declare(kind, waits)
    tables = Tables(database_url)

    instance_id = asyncio.run(in_two_lives(database_url, gate, flow))
    kind_of_error, message, attributes = repeated(seen)
    assert kind_of_error is EventTimeoutError
    assert attributes == {"event_type": "paid", "timeout_seconds": 0.2}
    assert "'paid'" in message
    assert "EventTimeoutError" in message
    assert steps_of(tables, instance_id)[0] == ("wait_event:1", "WaitTimedOut")
    assert nothing_is_kept(tables)


def test_a_deadline_is_noticed_by_itself_and_not_at_the_next_poll(database_url: str) -> None:
    @workflow
    async def waits(ctx: WorkflowContext) -> str:
        try:
            await wait_event(ctx, "paid", timeout_seconds=0.3)
        except EventTimeoutError:
            return "late"
        return "in time"

    assert asyncio.run(run_once(database_url, waits, poll_interval_seconds=RARELY)) == "late"


def test_the_deadline_does_not_move_when_the_body_is_repeated(database_url: str) -> None:
    @workflow
    async def waits(ctx: WorkflowContext) -> str:
        try:
            await wait_event(ctx, "paid", timeout_seconds=3600)
        except EventTimeoutError:
            return "late"
        return "in time"

    tables = Tables(database_url)

    async def main() -> tuple[str, set[Any]]:
        instance_id = await left_asleep(database_url, waits)
        deadlines = {tables.value("SELECT expires_at FROM edda_waits")}
        make_due(tables, instance_id)
        epoch = tables.instance(instance_id)["lock_epoch"]
        async with edda(database_url):
            await until(lambda: tables.instance(instance_id)["lock_epoch"] > epoch)
            await asleep(tables, instance_id)
        deadlines.add(tables.value("SELECT expires_at FROM edda_waits"))
        expire(tables, instance_id)
        return await ended_by_another(database_url, instance_id), deadlines

    result, deadlines = asyncio.run(main())
    assert result == "late"
    assert len(deadlines) == 1


@pytest.mark.parametrize("addressed", [True, False])
@pytest.mark.parametrize("is_delivered", [True, False])
def test_an_event_that_came_while_nobody_worked_beats_the_deadline(
    database_url: str, addressed: bool, is_delivered: bool
) -> None:
    @workflow
    async def waits(ctx: WorkflowContext) -> Any:
        return (await wait_event(ctx, "paid", timeout_seconds=3600)).data

    tables = Tables(database_url)

    async def main() -> Any:
        instance_id = await left_asleep(database_url, waits)
        receiver = instance_id if addressed else None
        message = event_message("paid", "test", "in time", instance_id=receiver, max_payload_bytes=LIMIT)
        send_behind(database_url, message, is_delivered=is_delivered)
        expire(tables, instance_id)
        return await ended_by_another(database_url, instance_id)

    assert asyncio.run(main()) == "in time"


def test_after_a_deadline_the_next_wait_gets_the_event(database_url: str) -> None:
    @workflow
    def waits(ctx: SyncWorkflowContext) -> list[Any]:
        found: list[Any] = []
        for _ in range(2):
            try:
                wait_event(ctx, "paid", timeout_seconds=0.1)
            except EventTimeoutError:
                found.append("late")
        return [*found, wait_event(ctx, "paid", timeout_seconds=60).data]

    tables = Tables(database_url)

    async def main() -> Any:
        async with edda(database_url) as app:
            instance_id = await app.start(waits)
            await until(lambda: waits_of(tables, instance_id) == ["wait_event:3"])
            await app.send_event("paid", "test", "third")
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == ["late", "late", "third"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds", [0, -1])
def test_no_time_at_all_only_looks(database_url: str, kind: str, seconds: float) -> None:
    def looks(ctx: Any) -> Any:
        found = []
        for _ in range(2):
            try:
                event = yield wait_event(ctx, "paid", seconds)
                found.append(event.data)
            except EventTimeoutError:
                found.append("nothing")
        return found

    flow = declare(kind, looks)

    async def main() -> Any:
        async with edda(database_url, poll_interval_seconds=RARELY) as app:
            instance_id = await flow.options(delay=3600).start()
            await app.send_event("paid", "test", "there", instance_id=instance_id)
            await until(lambda: Tables(database_url).rows("SELECT * FROM edda_inbox"))
            make_due(Tables(database_url), instance_id)
            await app.send_event("other", "test", "wakes the claimer")
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == ["there", "nothing"]


REFUSED: list[Callable[[Any], Any]] = [
    lambda ctx: wait_event(ctx, "paid", float("nan")),
    lambda ctx: wait_event(ctx, "paid", float("inf")),
    lambda ctx: wait_event(ctx, "paid", "5"),
    lambda ctx: wait_event(ctx, "paid", True),
    lambda ctx: wait_event(ctx, ""),
    lambda ctx: wait_event(ctx, "a\0b"),
    lambda ctx: wait_event(ctx, "\ud800"),
    lambda ctx: wait_event(ctx, "x" * 256),
    lambda ctx: wait_event(ctx, 7),
    lambda ctx: wait_event(ctx, None),
    lambda ctx: wait_event(ctx, "paid", event_id=""),
    lambda ctx: wait_event(ctx, "paid", event_id="x" * 256),
    lambda ctx: wait_event(ctx, "paid", event_id="a\0b"),
    lambda ctx: wait_event(ctx, "paid", event_id=7),
]


def test_what_cannot_be_waited_for_is_refused_and_the_body_goes_on(database_url: str) -> None:
    @workflow
    async def asks(ctx: WorkflowContext) -> list[str]:
        problems = []
        for ask in REFUSED:
            try:
                await ask(ctx)
            except (UsageError, ValueError) as error:
                problems.append(str(error))
        await sleep(ctx, 0.01)
        return problems

    problems = asyncio.run(run_once(database_url, asks))
    assert len(problems) == len(REFUSED)
    assert all(problem.startswith("wait_event(") and len(problem) < 400 for problem in problems), problems


def test_a_wait_may_have_an_id_of_its_own_but_only_once(database_url: str) -> None:
    @workflow
    async def waits(ctx: WorkflowContext) -> list[Any]:
        first = await wait_event(ctx, "paid", event_id="payment")
        try:
            await wait_event(ctx, "paid", event_id="payment")
        except UsageError as error:
            return [first.data, str(error)]
        return []

    async def main() -> tuple[Any, str]:
        async with edda(database_url) as app:
            instance_id = await app.start(waits)
            await app.send_event("paid", "test", 1, instance_id=instance_id)
            return await app.result(instance_id, timeout=20), instance_id

    (data, message), instance_id = asyncio.run(main())
    assert data == 1
    assert "'payment' is used twice" in message
    assert steps_of(Tables(database_url), instance_id) == [("payment", "EventReceived")]


def test_history_tells_what_came(database_url: str) -> None:
    @workflow
    async def waits(ctx: WorkflowContext) -> None:
        await wait_event(ctx, "paid")

    async def main() -> Any:
        async with begun(database_url, waits) as (app, instance_id):
            await app.send_event("paid", "bank", {"amount": 3})
            await app.result(instance_id, timeout=20)
            (event,) = await app.history(instance_id)
            return event

    event = asyncio.run(main())
    assert (event.activity_id, event.event_type) == ("wait_event:1", "EventReceived")
    assert event.event_data["activity_name"] == "wait_event(paid)"
    assert event.event_data["result"]["data"] == {"amount": 3}
    assert event.event_data["result"]["metadata"]["source"] == "bank"


def test_an_instance_that_waits_for_ever_is_due_never_and_can_be_cancelled(database_url: str) -> None:
    @workflow
    async def waits(ctx: WorkflowContext) -> None:
        await wait_event(ctx, "paid")

    tables = Tables(database_url)

    async def main() -> tuple[Any, str]:
        async with begun(database_url, waits, poll_interval_seconds=RARELY) as (app, instance_id):
            found = await app.get(instance_id)
            assert await app.cancel(instance_id)
            with pytest.raises(WorkflowCancelledError):
                await app.result(instance_id, timeout=0)
            await app.send_event("paid", "test", "too late", instance_id=instance_id)
            await app.send_event("paid", "test", "for nobody")
            await until(lambda: nothing_is_kept(tables))
            return found, instance_id

    found, instance_id = asyncio.run(main())
    assert (found.status, found.wake_at, found.is_blocked) == ("waiting_for_event", None, False)
    assert tables.status(instance_id) == "cancelled"
    assert steps_of(tables, instance_id) == []


def test_waiting_in_an_activity_is_refused_with_a_way_out(database_url: str) -> None:
    @activity(retry_policy=RetryPolicy(max_attempts=1, non_retryable_error_types=[UsageError]))
    def waits(ctx: WorkflowContext) -> None:
        wait_event(ctx, "paid")

    @workflow
    async def asks(ctx: WorkflowContext) -> str:
        try:
            await waits(ctx)
        except UsageError as error:
            return str(error)
        return "no error"

    message = asyncio.run(run_once(database_url, asks, default_retry_policy=NEVER_AGAIN))
    assert "in activity 'waits:1'" in message
    assert "the workflow's body" in message
    assert "as an argument" in message
