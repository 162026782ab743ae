"""Sending, from wherever it is called: with the transaction it belongs to, once, or refused with a clear error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from edda_engine import (
    InstanceNotFoundError,
    SyncWorkflowContext,
    UsageError,
    WorkflowContext,
    activity,
    publish,
    receive,
    send_event,
    send_to,
    subscribe,
    wait_event,
    workflow,
)
from tests.integration.engines import NEVER_AGAIN, SOON, Gate, Tables, edda, until, write_note
from tests.integration.talks import (
    KINDS,
    asleep,
    begun,
    declare,
    in_two_lives,
    nothing_is_kept,
    steps_of,
)


@workflow
async def collects(ctx: WorkflowContext, count: int) -> list[Any]:
    """So many things, of what is sent in each of the three ways."""
    await subscribe(ctx, "news")
    found: list[Any] = []
    for _ in range(count):
        index, value = await ctx.first_of(wait_event(ctx, "paid"), receive(ctx, "news"), receive(ctx))
        found.append([("event", "news", "direct")[index], value.data])
    return sorted(found, key=str)


def sent_in_three_ways(ctx: Any, receiver: str, word: Any) -> list[Any]:
    """What the calls return."""
    return [
        send_event("paid", "test", word),
        publish(ctx, "news", word),
        send_to(ctx, receiver, word),
    ]


def three(word: Any) -> list[Any]:
    """What the receiver of them has."""
    return [["direct", word], ["event", word], ["news", word]]


async def collected(url: str, flow: Any, count: int = 3, **options: Any) -> tuple[list[Any], Any]:
    """What *flow*, which is given the id of a collector, has sent to it; and its own result."""
    async with begun(url, collects, count, **options) as (app, receiver):
        sender = await app.start(flow, receiver)
        result = await app.result(sender, timeout=20)
        return await app.result(receiver, timeout=20), result


# From activities.


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_a_failed_attempt_has_sent_is_not_sent(database_url: str, kind: str) -> None:
    if kind == "sync":

        @activity(retry_policy=SOON)
        def tell(ctx: WorkflowContext, receiver: str) -> list[str]:
            sent = sent_in_three_ways(ctx, receiver, f"attempt {ctx.attempt}")
            if ctx.attempt < 3:
                raise ConnectionError("after sending")
            return sent
    else:

        @activity(retry_policy=SOON)
        async def tell(ctx: WorkflowContext, receiver: str) -> list[str]:
            sent = [await each for each in sent_in_three_ways(ctx, receiver, f"attempt {ctx.attempt}")]
            if ctx.attempt < 3:
                raise ConnectionError("after sending")
            return sent

    @workflow
    async def tells(ctx: WorkflowContext, receiver: str) -> list[str]:
        return await tell(ctx, receiver)

    found, ids = asyncio.run(collected(database_url, tells))
    assert found == three("attempt 3")
    assert len(set(ids)) == 3
    assert all(type(each) is str and each for each in ids)
    assert nothing_is_kept(Tables(database_url))


@pytest.mark.parametrize("ending", ["error", "unencodable result", "lost"])
def test_what_an_activity_that_fails_for_good_has_sent_is_not_sent(database_url: str, ending: str) -> None:
    tables = Tables(database_url)
    gate = Gate()

    @activity(retry_policy=NEVER_AGAIN)
    def tell(ctx: WorkflowContext, receiver: str) -> Any:
        sent_in_three_ways(ctx, receiver, "never")
        if ending == "error":
            raise ConnectionError("after sending")
        if ending == "lost":
            gate.hold()
        return object() if ending == "unencodable result" else None

    @workflow
    async def tells(ctx: WorkflowContext, receiver: str) -> str:
        try:
            await tell(ctx, receiver)
        except Exception as error:
            return type(error).__name__
        return "no error"

    async def main() -> None:
        async with begun(database_url, collects, 3) as (app, receiver):
            sender = await app.start(tells, receiver)
            if ending == "lost":
                await gate.is_reached()
                tables.take_away(sender)
                gate.open()
            else:
                assert await app.result(sender, timeout=20) != "no error"
            await app.send_event(
                "paid", "test", "later"
            )  # first: who has got something else is not waiting for a moment
            await asyncio.gather(app.publish("news", "later"), app.send_to(receiver, "later"))
            assert await app.result(receiver, timeout=20) == three("later")
            if ending == "lost":
                await until(lambda: not app._running().executor.held)

    asyncio.run(main())
    assert nothing_is_kept(tables)


def test_what_an_activity_sends_is_there_when_what_it_wrote_is(database_url: str) -> None:
    """One transaction: neither is seen without the other."""
    tables = Tables(database_url)
    tables.make_notes()
    gate = Gate()

    @activity
    def tell(ctx: WorkflowContext) -> None:
        publish(ctx, "news", 1)
        write_note(ctx, "with the message")
        ctx.session.commit()
        gate.hold()

    @workflow
    async def tells(ctx: WorkflowContext) -> None:
        await tell(ctx)

    async def main() -> list[Any]:
        async with edda(database_url) as app:
            instance_id = await app.start(tells)
            await gate.is_reached()
            before = [tables.value("SELECT count(*) FROM notes"), tables.value("SELECT count(*) FROM edda_inbox")]
            gate.open()
            await app.result(instance_id, timeout=20)
            await until(lambda: tables.rows("SELECT * FROM edda_inbox"))
            return before

    assert asyncio.run(main()) == [0, 0]
    assert tables.value("SELECT count(*) FROM notes") == 1


def test_the_application_can_be_given_instead_of_the_ctx(database_url: str) -> None:
    async def main() -> list[Any]:
        async with begun(database_url, collects, 3) as (app, receiver):
            await send_event("paid", "test", "x")  # first: who has got something else is not waiting for a moment
            await publish(app, "news", "x")
            await send_to(app, receiver, "x")
            result: list[Any] = await app.result(receiver, timeout=20)
            return result

    assert asyncio.run(main()) == three("x")


# From bodies.


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_body_sends_is_sent_once_however_often_the_body_is_repeated(database_url: str, kind: str) -> None:
    gate = Gate()
    ids: list[list[str]] = []

    @activity
    def at_the_gate(ctx: WorkflowContext) -> None:
        gate.hold()

    def tells(ctx: Any, receiver: str) -> Any:
        first = yield send_event("paid", "test", "x")
        second = yield publish(ctx, "news", "x")
        third = yield send_to(ctx, receiver, "x")
        ids.append([first, second, third])
        yield at_the_gate(ctx)
        return ctx.instance_id

    flow = declare(kind, tells)
    tables = Tables(database_url)

    async def main() -> tuple[str, list[Any]]:
        async with edda(database_url) as app:
            receiver = await app.start(collects, 3)
            await asleep(tables, receiver)
        sender = await in_two_lives(database_url, gate, flow, receiver)
        async with edda(database_url) as app:
            return sender, await app.result(receiver, timeout=20)

    sender, found = asyncio.run(main())
    assert found == three("x")
    assert len(ids) == 2
    assert ids[0] == ids[1]
    assert nothing_is_kept(tables)
    assert [event_type for _, event_type in steps_of(tables, sender)] == ["MessageSent"] * 3 + ["ActivityCompleted"]


def test_a_methods_of_the_application_is_refused_in_a_body_with_a_way_out(database_url: str) -> None:
    problems: list[str] = []

    @workflow
    async def tells(ctx: WorkflowContext) -> None:
        calls: list[Callable[[], Any]] = [
            lambda: apps[0].send_event("paid", "test", 1),
            lambda: apps[0].publish("news", 1),
            lambda: apps[0].send_to(ctx.instance_id, 1),
            lambda: publish(apps[0], "news", 1),
        ]
        for call in calls:
            try:
                await call()
            except UsageError as error:
                problems.append(str(error))

    apps: list[Any] = []

    async def main() -> None:
        async with edda(database_url) as app:
            apps.append(app)
            await app.result(await app.start(tells), timeout=20)

    asyncio.run(main())
    assert len(problems) == 4
    assert all("replayed" in problem and "body of workflow 'tells'" in problem for problem in problems)
    assert nothing_is_kept(Tables(database_url))


# To whom.


def test_sending_to_an_unknown_instance_is_an_error(database_url: str) -> None:
    async def main() -> None:
        async with edda(database_url) as app:
            for send in (app.send_to("nobody", 1), app.send_event("paid", "test", 1, instance_id="nobody")):
                with pytest.raises(InstanceNotFoundError, match="'nobody'"):
                    await send

    asyncio.run(main())
    assert nothing_is_kept(Tables(database_url))


def test_what_activities_and_bodies_send_to_an_instance_that_is_not_there_yet_is_kept_for_it(database_url: str) -> None:
    @activity
    def tell(ctx: WorkflowContext) -> None:
        send_to(ctx, "later", "from the activity")

    @workflow
    def tells(ctx: SyncWorkflowContext) -> None:
        tell(ctx)
        send_to(ctx, "later", "from the body")

    @workflow
    async def receives(ctx: WorkflowContext) -> list[Any]:
        return [(await receive(ctx)).data, (await receive(ctx)).data]

    async def main() -> Any:
        async with edda(database_url) as app:
            await app.result(await app.start(tells), timeout=20)
            await until(lambda: len(Tables(database_url).rows("SELECT * FROM edda_inbox")) == 2)
            instance_id = await receives.options(instance_id="later").start()
            return await app.result(instance_id, timeout=20)

    assert asyncio.run(main()) == ["from the activity", "from the body"]


def test_sending_to_an_instance_that_has_ended_does_nothing(database_url: str) -> None:
    @workflow
    async def ends(ctx: WorkflowContext) -> None: ...

    @workflow
    async def fails(ctx: WorkflowContext) -> None:
        raise ValueError("broken")

    tables = Tables(database_url)

    async def main() -> None:
        async with edda(database_url) as app:
            ids = [await app.start(ends), await app.start(fails), await collects.options(delay=3600).start(1)]
            assert await app.cancel(ids[2])
            for instance_id, status in zip(ids, ("completed", "failed", "cancelled"), strict=True):
                await until(lambda each=instance_id, word=status: tables.status(each) == word)
                await app.send_to(instance_id, 1)
                await app.send_event("paid", "test", 1, instance_id=instance_id)
            await until(lambda: nothing_is_kept(tables))
            assert [tables.status(each) for each in ids] == ["completed", "failed", "cancelled"]

    asyncio.run(main())


# In somebody's session.


def async_url(url: str) -> str:
    made = make_url(url)
    return made.set(
        drivername="sqlite+aiosqlite" if made.get_backend_name() == "sqlite" else "postgresql+psycopg"
    ).render_as_string(False)


@pytest.mark.parametrize("ending", ["commit", "rollback", "close"])
def test_sending_joins_an_async_session(database_url: str, ending: str) -> None:
    tables = Tables(database_url)

    async def main() -> Any:
        engine = create_async_engine(async_url(database_url))
        async with begun(database_url, collects, 3, poll_interval_seconds=60) as (app, receiver):
            async with AsyncSession(engine) as session:
                await app.send_event("paid", "test", "x", session=session)
                await app.publish("news", "x", session=session)
                await app.send_to(receiver, "x", session=session)
                before = tables.rows("SELECT * FROM edda_messages")
                await getattr(session, ending)()
            await engine.dispose()
            assert before == []
            if ending == "commit":
                return await app.result(receiver, timeout=20)
            return tables.rows("SELECT * FROM edda_messages")

    assert asyncio.run(main()) == (three("x") if ending == "commit" else [])
