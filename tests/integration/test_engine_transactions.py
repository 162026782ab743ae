"""An activity's transaction: its writes, its events and its history row are durable together, or not at all."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from edda_engine import (
    PayloadError,
    RetryExhaustedError,
    TerminalError,
    UsageError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    send_event_transactional,
    workflow,
)
from tests.integration.engines import (
    NEVER_AGAIN,
    SOON,
    Gate,
    Tables,
    edda,
    interrupted_at,
    write_note,
    write_note_async,
)

KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


@pytest.fixture
def tables(database_url: str) -> Tables:
    found = Tables(database_url)
    found.make_notes()
    return found


async def run_once(url: str, started: Any, *args: Any, **options: Any) -> Any:
    async with edda(url, **options) as app:
        return await app.result(await app.start(started, *args), timeout=20)


def test_the_session_of_an_async_activity_is_an_async_session_that_commits_with_history(
    database_url: str, tables: Tables
) -> None:
    kinds: list[bool] = []

    @activity
    async def writes(ctx: WorkflowContext) -> list[int]:
        kinds.append(isinstance(ctx.session, AsyncSession))
        assert ctx.session is ctx.session
        await write_note_async(ctx, "written")
        inside = (await ctx.session.execute(text("SELECT count(*) FROM notes"))).scalar_one()
        outside = -1 if tables.is_sqlite else await asyncio.to_thread(lambda: len(tables.notes()))
        return [inside, outside]

    @workflow
    async def calls(ctx: WorkflowContext) -> list[int]:
        return await writes(ctx)

    assert asyncio.run(run_once(database_url, calls)) in ([1, 0], [1, -1])
    assert kinds == [True]
    assert tables.notes() == ["written"]
    assert tables.value("SELECT count(*) FROM edda_history") == 1


@KINDS
def test_a_commit_inside_an_activity_that_then_fails_is_undone(database_url: str, tables: Tables, kind: str) -> None:
    if kind == "sync":

        @activity(retry_policy=NEVER_AGAIN)
        def commits(ctx: WorkflowContext) -> None:
            write_note(ctx, "committed")
            ctx.session.commit()
            write_note(ctx, "and again")
            ctx.session.commit()
            raise ValueError("after the commit")
    else:

        @activity(retry_policy=NEVER_AGAIN)
        async def commits(ctx: WorkflowContext) -> None:
            await write_note_async(ctx, "committed")
            await ctx.session.commit()
            await write_note_async(ctx, "and again")
            await ctx.session.commit()
            raise ValueError("after the commit")

    @workflow
    async def calls(ctx: WorkflowContext) -> str:
        try:
            await commits(ctx)
        except RetryExhaustedError as error:
            return repr(error.__cause__)
        return "no error"

    assert asyncio.run(run_once(database_url, calls)) == "ValueError('after the commit')"
    assert tables.notes() == []


@KINDS
def test_a_rollback_inside_an_activity_undoes_only_what_was_not_committed_in_it(
    database_url: str, tables: Tables, kind: str
) -> None:
    if kind == "sync":

        @activity
        def wavers(ctx: WorkflowContext) -> None:
            write_note(ctx, "kept")
            ctx.session.commit()
            write_note(ctx, "undone")
            ctx.session.rollback()
            write_note(ctx, "last")
    else:

        @activity
        async def wavers(ctx: WorkflowContext) -> None:
            await write_note_async(ctx, "kept")
            await ctx.session.commit()
            await write_note_async(ctx, "undone")
            await ctx.session.rollback()
            await write_note_async(ctx, "last")

    @workflow
    async def calls(ctx: WorkflowContext) -> None:
        await wavers(ctx)

    asyncio.run(run_once(database_url, calls))
    assert tables.notes() == ["kept", "last"]


@KINDS
def test_ctx_transaction_is_a_savepoint(database_url: str, tables: Tables, kind: str) -> None:
    tables.execute("CREATE UNIQUE INDEX one_note ON notes (note)")

    if kind == "sync":

        @activity
        def uses_savepoints(ctx: WorkflowContext) -> str:
            with ctx.transaction():
                write_note(ctx, "first")
            try:
                with ctx.transaction():
                    write_note(ctx, "second")
                    write_note(ctx, "first")
            except IntegrityError as error:
                return type(error).__name__
            return "no error"
    else:

        @activity
        async def uses_savepoints(ctx: WorkflowContext) -> str:
            async with ctx.transaction():
                await write_note_async(ctx, "first")
            try:
                async with ctx.transaction():
                    await write_note_async(ctx, "second")
                    await write_note_async(ctx, "first")
            except IntegrityError as error:
                return type(error).__name__
            return "no error"

    @workflow
    async def calls(ctx: WorkflowContext) -> str:
        return await uses_savepoints(ctx)

    assert asyncio.run(run_once(database_url, calls)) == "IntegrityError"
    assert tables.notes() == ["first"]


def test_no_transaction_is_open_before_the_first_statement(database_url: str, tables: Tables) -> None:
    gate = Gate()

    @activity
    def thinks_first(ctx: WorkflowContext) -> None:
        assert ctx.session is not None
        gate.hold()
        write_note(ctx, "after thinking")

    @workflow
    async def calls(ctx: WorkflowContext) -> None:
        await thinks_first(ctx)

    async def main() -> int:
        async with edda(database_url) as app:
            instance_id = await app.start(calls)
            await gate.is_reached()
            checked_out = app._database.engine.pool.checkedout()  # type: ignore[attr-defined]
            gate.open()
            await app.result(instance_id, timeout=20)
            return int(checked_out)

    assert asyncio.run(main()) == 0


@KINDS
def test_post_commit_callbacks_are_called_once_after_the_step_is_durable(
    database_url: str, tables: Tables, kind: str
) -> None:
    seen: list[list[str]] = []

    if kind == "sync":

        @activity(retry_policy=SOON)
        def registers(ctx: WorkflowContext) -> None:
            write_note(ctx, f"attempt {ctx.attempt}")
            ctx.register_post_commit(lambda: seen.append(tables.notes()))
            if ctx.attempt == 1:
                raise ConnectionError("no")
    else:

        @activity(retry_policy=SOON)
        async def registers(ctx: WorkflowContext) -> None:
            async def look() -> None:
                seen.append(await asyncio.to_thread(tables.notes))

            await write_note_async(ctx, f"attempt {ctx.attempt}")
            ctx.register_post_commit(look)
            if ctx.attempt == 1:
                raise ConnectionError("no")

    @workflow
    async def calls(ctx: WorkflowContext) -> None:
        await registers(ctx)

    asyncio.run(run_once(database_url, calls))
    assert seen == [["attempt 2"]]


def test_post_commit_callbacks_of_a_step_without_sql_are_called_too(database_url: str) -> None:
    tables, seen = Tables(database_url), []

    @activity
    def registers(ctx: WorkflowContext) -> None:
        ctx.register_post_commit(lambda: seen.append(tables.value("SELECT count(*) FROM edda_history")))

    @workflow
    async def calls(ctx: WorkflowContext) -> None:
        await registers(ctx)

    asyncio.run(run_once(database_url, calls))
    assert seen == [1]


def test_post_commit_callbacks_are_not_called_on_replay(database_url: str) -> None:
    gate, seen = Gate(), []

    @activity
    def registers(ctx: WorkflowContext) -> None:
        ctx.register_post_commit(lambda: seen.append("called"))

    @activity
    def wait_here(ctx: WorkflowContext) -> None:
        gate.hold()

    @workflow
    async def calls(ctx: WorkflowContext) -> None:
        await registers(ctx)
        await wait_here(ctx)

    async def main() -> None:
        first = edda(database_url)
        await first.initialize()
        instance_id = await first.start(calls)
        await interrupted_at(gate, first)
        async with edda(database_url) as second:
            await second.result(instance_id, timeout=20)

    asyncio.run(main())
    assert seen == ["called"]


@KINDS
def test_an_error_in_a_post_commit_callback_is_logged_and_changes_nothing(
    database_url: str, tables: Tables, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    def fail() -> None:
        raise RuntimeError("callback is broken")

    if kind == "sync":

        @activity(retry_policy=SOON)
        def registers(ctx: WorkflowContext) -> str:
            write_note(ctx, "once")
            ctx.register_post_commit(fail)
            ctx.register_post_commit(lambda: seen.append("the next one"))
            return "fine"
    else:

        @activity(retry_policy=SOON)
        async def registers(ctx: WorkflowContext) -> str:
            await write_note_async(ctx, "once")
            ctx.register_post_commit(fail)
            ctx.register_post_commit(lambda: seen.append("the next one"))
            return "fine"

    @workflow
    async def calls(ctx: WorkflowContext) -> str:
        return await registers(ctx)

    assert asyncio.run(run_once(database_url, calls)) == "fine"
    assert tables.notes() == ["once"]
    assert seen == ["the next one"]
    (told,) = [record for record in caplog.records if "post-commit callback" in record.getMessage()]
    assert told.levelno == logging.ERROR
    assert "callback is broken" in caplog.text


@pytest.mark.parametrize("uses_session", [False, True])
@KINDS
def test_events_are_written_exactly_once_with_the_step_that_succeeded(
    database_url: str, tables: Tables, kind: str, uses_session: bool
) -> None:
    if kind == "sync":

        @activity(retry_policy=SOON)
        def sends(ctx: WorkflowContext) -> str:
            event_id = send_event_transactional(ctx, "order.created", "shop", {"attempt": ctx.attempt, "ö": [1]})
            if uses_session:
                write_note(ctx, "once")
            if ctx.attempt < 3:
                raise ConnectionError("after sending")
            return event_id
    else:

        @activity(retry_policy=SOON)
        async def sends(ctx: WorkflowContext) -> str:
            event_id = await send_event_transactional(ctx, "order.created", "shop", {"attempt": ctx.attempt, "ö": [1]})
            if uses_session:
                await write_note_async(ctx, "once")
            if ctx.attempt < 3:
                raise ConnectionError("after sending")
            return event_id

    @workflow
    async def calls(ctx: WorkflowContext) -> list[str]:
        return [ctx.instance_id, await sends(ctx)]

    instance_id, event_id = asyncio.run(run_once(database_url, calls))
    (row,) = tables.rows("SELECT o.*, CAST(data AS TEXT) AS data_text FROM edda_outbox o")
    assert (row["event_id"], row["instance_id"], row["activity_id"]) == (event_id, instance_id, "sends:1")
    assert (row["type"], row["source"], row["status"]) == ("order.created", "shop", "pending")
    assert row["content_type"] == "application/json"
    assert row["data_text"] == '{"attempt":3,"ö":[1]}'
    assert row["data_binary"] is None


def test_an_event_of_bytes_is_kept_as_bytes(database_url: str, tables: Tables) -> None:
    @activity
    def sends(ctx: WorkflowContext) -> None:
        send_event_transactional(
            ctx, "image.made", "shop", b"\x00\xff\x89", content_type="image/png", subject="7", ordering_key="img"
        )

    @workflow
    async def calls(ctx: WorkflowContext) -> None:
        await sends(ctx)

    asyncio.run(run_once(database_url, calls))
    (row,) = tables.rows("SELECT * FROM edda_outbox")
    assert bytes(row["data_binary"]) == b"\x00\xff\x89"
    assert row["data"] is None
    assert (row["content_type"], row["subject"], row["ordering_key"]) == ("image/png", "7", "img")


def test_events_of_an_activity_that_failed_for_good_are_not_there(database_url: str, tables: Tables) -> None:
    @activity
    def sends(ctx: WorkflowContext) -> None:
        send_event_transactional(ctx, "order.created", "shop", {})
        raise TerminalError("no")

    @workflow
    async def calls(ctx: WorkflowContext) -> str:
        try:
            await sends(ctx)
        except TerminalError:
            return "failed"
        return "sent"

    assert asyncio.run(run_once(database_url, calls)) == "failed"
    assert tables.rows("SELECT * FROM edda_outbox") == []


def test_an_event_without_a_json_form_fails_its_activity_once(database_url: str) -> None:
    runs: list[int] = []

    @activity(retry_policy=SOON)
    def sends(ctx: WorkflowContext) -> None:
        runs.append(ctx.attempt)
        send_event_transactional(ctx, "order.created", "shop", {"order": object()})

    @workflow
    async def calls(ctx: WorkflowContext) -> None:
        await sends(ctx)

    with pytest.raises(WorkflowFailedError, match=r"event 'order.created' sent by activity 'sends:1'") as caught:
        asyncio.run(run_once(database_url, calls))
    assert isinstance(caught.value.__cause__, PayloadError)
    assert runs == [1]


def test_an_event_over_the_limit_fails_its_activity_once(database_url: str, tables: Tables) -> None:
    @activity(retry_policy=SOON)
    def sends(ctx: WorkflowContext) -> None:
        send_event_transactional(ctx, "order.created", "shop", "x" * 2000)

    @workflow
    async def calls(ctx: WorkflowContext) -> None:
        await sends(ctx)

    with pytest.raises(WorkflowFailedError, match="MAX_PAYLOAD_BYTES = 1000"):
        asyncio.run(run_once(database_url, calls, max_payload_bytes=1000))
    assert tables.rows("SELECT * FROM edda_outbox") == []


def test_sending_in_a_body_is_refused_with_a_sentence(database_url: str) -> None:
    @workflow
    async def sends(ctx: WorkflowContext) -> None:
        send_event_transactional(ctx, "order.created", "shop", {})

    with pytest.raises(WorkflowFailedError, match="Call it inside an @activity") as caught:
        asyncio.run(run_once(database_url, sends))
    assert isinstance(caught.value.__cause__, UsageError)


def test_a_payload_error_rolls_back_what_the_activity_wrote(database_url: str, tables: Tables) -> None:
    @activity
    def unstorable(ctx: WorkflowContext) -> Any:
        write_note(ctx, "never")
        return object()

    @workflow
    async def calls(ctx: WorkflowContext) -> None:
        await unstorable(ctx)

    with pytest.raises(WorkflowFailedError, match="PayloadError"):
        asyncio.run(run_once(database_url, calls))
    assert tables.notes() == []
