"""``EddaApp.cancel()`` and ``retry()``: at once, with an activity's step, or with the session that is given."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.ext.asyncio import async_scoped_session, async_sessionmaker

from edda_engine import (
    InstanceNotFoundError,
    UsageError,
    WorkflowCancelledError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    sleep,
    workflow,
)
from tests.integration.engines import NEVER_AGAIN, Gate, Tables, edda, until
from tests.integration.test_engine_starting import async_session


def test_a_cancel_joins_the_transaction_of_the_given_session(database_url: str) -> None:
    gate = Gate()

    @activity
    async def holds(ctx: WorkflowContext) -> None:
        await gate.hold_async()

    @activity
    def ends(ctx: WorkflowContext) -> str:
        return "both steps ran"

    @workflow
    async def two_steps(ctx: WorkflowContext) -> str:
        await holds(ctx)
        return await ends(ctx)

    async def main() -> tuple[bool, str]:
        async with edda(database_url) as app:
            instance_id = await two_steps.start()
            await gate.is_reached()
            async with async_session(database_url) as session:
                async with session.begin_nested() as undone:
                    await app.cancel(instance_id, session=session)
                    await undone.rollback()
                await session.commit()
                await app.cancel(instance_id, session=session)
                await session.rollback()
                await session.commit()
            gate.open()
            not_stopped = await app.result(instance_id, timeout=20)
            async with async_session(database_url) as session:
                return await app.cancel(instance_id, session=session), not_stopped

    assert asyncio.run(main()) == (False, "both steps ran")


def test_a_cancel_takes_effect_with_the_commit_of_the_given_session(database_url: str) -> None:
    @workflow
    async def sleeps(ctx: WorkflowContext) -> None:
        await sleep(ctx, 3600)

    async def main() -> None:
        async with edda(database_url) as app, async_session(database_url) as session:
            instance_id = await sleeps.start()
            await until(lambda: Tables(database_url).status(instance_id) == "waiting_for_timer")
            scoped = async_scoped_session(async_sessionmaker(session.bind), scopefunc=asyncio.current_task)
            assert await app.cancel(instance_id, "by its session", session=scoped) is True
            before = (await app.get(instance_id)).status
            await scoped.commit()
            with pytest.raises(WorkflowCancelledError, match="by its session"):
                await app.result(instance_id, timeout=20)
            await scoped.remove()
        assert before == "waiting_for_timer"

    asyncio.run(main())


def test_a_retry_is_part_of_an_activitys_step_or_of_the_given_session(database_url: str) -> None:
    is_mended: list[bool] = []

    @workflow
    async def breaks(ctx: WorkflowContext) -> str:
        if not is_mended:
            raise ValueError("not yet")
        return "done"

    @activity(retry_policy=NEVER_AGAIN)
    async def retries_then_fails(ctx: WorkflowContext, instance_id: str) -> None:
        assert await app.retry(instance_id) is True
        raise ValueError("after the retry")

    @workflow
    async def helps(ctx: WorkflowContext, instance_id: str) -> None:
        await retries_then_fails(ctx, instance_id)

    app = edda(database_url)

    async def main() -> None:
        async with app, async_session(database_url) as session:
            broken = await breaks.start()
            with pytest.raises(WorkflowFailedError, match="not yet"):
                await app.result(broken, timeout=20)
            is_mended.append(True)
            with pytest.raises(WorkflowFailedError, match="after the retry"):
                await app.result(await helps.start(broken), timeout=20)
            assert Tables(database_url).status(broken) == "failed"
            assert await app.retry(broken, session=session) is True
            assert Tables(database_url).status(broken) == "failed"
            await session.commit()
            assert await app.result(broken, timeout=20) == "done"

    asyncio.run(main())


def test_requests_of_what_does_not_exist_or_in_what_is_no_session_are_refused(sqlite_url: str) -> None:
    async def main() -> None:
        async with edda(sqlite_url) as app, async_session(sqlite_url) as session:
            for request in (app.cancel, app.retry):
                with pytest.raises(InstanceNotFoundError, match="'nobody'"):
                    await request("nobody", session=session)
                with pytest.raises(UsageError, match="takes an AsyncSession or AsyncConnection"):
                    await request("nobody", session=session.sync_session)

    asyncio.run(main())
