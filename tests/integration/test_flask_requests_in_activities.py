"""``cancel()``, ``retry()`` and ``start()`` in an activity belong to its step: done with it, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from edda_wsgi import UsageError, WorkflowContext, WorkflowFailedError, activity, sleep, workflow
from tests.integration.flask_apps import SESSIONMAKER, Note, Shop, open_shop, saved_notes
from tests.support import eventually


@pytest.fixture(params=["flask-sqlalchemy", SESSIONMAKER])
def shop(request: pytest.FixtureRequest, database_url: str) -> Iterator[Shop]:
    with open_shop(database_url, kind=request.param) as opened:
        yield opened


@pytest.fixture
def sleeper(shop: Shop) -> str:
    """An instance that sleeps in this very process."""

    @workflow
    async def sleeps(ctx: WorkflowContext) -> None:
        await sleep(ctx, 3600)

    shop.edda.start_worker()
    with shop.app.app_context():
        instance_id = sleeps.options(session=None).start()
    eventually(lambda: status_of(shop, instance_id) == "waiting_for_timer")
    return instance_id


def status_of(shop: Shop, instance_id: str) -> str:
    return str(shop.edda.get(instance_id).status)


def test_cancel_in_an_async_activity_is_part_of_its_step(shop: Shop, sleeper: str) -> None:
    async def cancels_then_fails(ctx: WorkflowContext) -> None:
        shop.edda.cancel(sleeper)
        raise ValueError("after the cancel")

    async def writes_then_cancels(ctx: WorkflowContext) -> bool:
        ctx.session.add(Note(text="cancelled"))
        await ctx.session.flush()
        return shop.edda.cancel(sleeper, reason="by an activity")

    with pytest.raises(WorkflowFailedError, match="after the cancel"):
        shop.run(cancels_then_fails)
    after_the_failure = status_of(shop, sleeper)

    assert after_the_failure == "waiting_for_timer"
    assert shop.run(writes_then_cancels) is True
    assert (status_of(shop, sleeper), saved_notes(shop.database_url)) == ("cancelled", ["cancelled"])


def test_an_async_activity_that_cancels_what_does_not_exist_fails_and_keeps_nothing(shop: Shop) -> None:
    async def cancels_nobody(ctx: WorkflowContext) -> None:
        ctx.session.add(Note(text="a"))
        shop.edda.cancel("nobody")

    with pytest.raises(WorkflowFailedError, match=r"InstanceNotFoundError.*'nobody'"):
        shop.run(cancels_nobody)

    assert saved_notes(shop.database_url) == []


def test_what_an_async_activity_asks_for_is_done_in_the_order_of_its_calls(shop: Shop, sleeper: str) -> None:
    @workflow
    async def late(ctx: WorkflowContext) -> None: ...

    async def starts_then_cancels(ctx: WorkflowContext) -> None:
        late.options(instance_id="late", delay=3600).start()
        shop.edda.cancel("late")
        shop.edda.retry(sleeper)  # needs no help: nothing happens

    shop.run(starts_then_cancels)

    assert (status_of(shop, "late"), status_of(shop, sleeper)) == ("cancelled", "waiting_for_timer")


def test_retry_in_an_activity_is_part_of_its_step(shop: Shop) -> None:
    is_mended: list[bool] = []

    @workflow
    async def breaks(ctx: WorkflowContext) -> str:
        if not is_mended:
            raise ValueError("not yet")
        return "done"

    shop.edda.start_worker()
    with shop.app.app_context():
        broken = breaks.options(session=None).start()
    with pytest.raises(WorkflowFailedError, match="not yet"):
        shop.edda.result(broken, timeout=20)
    is_mended.append(True)

    async def retries_then_fails(ctx: WorkflowContext) -> None:
        shop.edda.retry(broken)
        raise ValueError("after the retry")

    def retries_and_fails(ctx: WorkflowContext) -> None:
        assert shop.edda.retry(broken) is True
        raise ValueError("after the retry")

    async def retries(ctx: WorkflowContext) -> bool:
        return shop.edda.retry(broken)

    for fails in (retries_then_fails, retries_and_fails):
        with pytest.raises(WorkflowFailedError, match="after the retry"):
            shop.run(fails)
    after_the_failures = status_of(shop, broken)

    assert after_the_failures == "failed"
    assert shop.run(retries) is True
    assert shop.edda.result(broken, timeout=20) == "done"


def test_a_cancel_in_the_activitys_own_session_stops_nothing_if_the_activity_fails_after_its_commit(shop: Shop) -> None:
    reached, go_on = threading.Event(), threading.Event()

    @activity
    def first(ctx: WorkflowContext) -> None:
        reached.set()
        assert go_on.wait(20)

    @activity
    def second(ctx: WorkflowContext) -> str:
        return "both steps ran"

    @workflow
    async def two_steps(ctx: WorkflowContext) -> str:
        await first(ctx)
        return await second(ctx)

    shop.edda.start_worker()
    with shop.app.app_context():
        running = two_steps.options(session=None).start()
    assert reached.wait(20)

    def cancels_then_fails(ctx: WorkflowContext) -> None:
        shop.edda.cancel(running, session=ctx.session)
        ctx.session.commit()
        raise ValueError("after the commit")

    with pytest.raises(WorkflowFailedError, match="after the commit"):
        shop.run(cancels_then_fails)
    go_on.set()

    assert shop.edda.result(running, timeout=20) == "both steps ran"


def test_a_request_of_its_own_beside_the_transaction_of_an_async_activity_is_refused_on_sqlite(sqlite_url: str) -> None:
    with open_shop(sqlite_url) as shop:

        async def writes_then_cancels(ctx: WorkflowContext) -> None:
            ctx.session.add(Note(text="a"))
            await ctx.session.flush()
            with pytest.raises(UsageError, match=r"cancel\(\) in activity.*Leave session= out"):
                shop.edda.cancel("anybody", session=None)
            with pytest.raises(UsageError, match=r"retry\(\) in activity.*Leave session= out"):
                shop.edda.retry("anybody", session=None)

        shop.run(writes_then_cancels)

        assert saved_notes(sqlite_url) == ["a"]


def test_retry_in_a_view_takes_effect_with_the_commit(sqlite_url: str) -> None:
    @workflow
    async def breaks(ctx: WorkflowContext) -> None:
        raise ValueError("for good")

    with open_shop(sqlite_url) as shop, shop.app.app_context():
        shop.edda.start_worker()
        broken = breaks.options(session=None).start()
        with pytest.raises(WorkflowFailedError):
            shop.edda.result(broken, timeout=20)
        shop.edda.shutdown()

        answer = shop.edda.retry(broken)
        before = status_of(shop, broken)
        shop.session().rollback()
        undone = status_of(shop, broken)
        shop.edda.retry(broken)
        shop.session().commit()
        committed = status_of(shop, broken)

        assert (answer, before, undone, committed) == (True, "failed", "failed", "running")
