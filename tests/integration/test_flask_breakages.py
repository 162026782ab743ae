"""What once broke edda in a Flask application when somebody tried to: each way again, and what happens instead."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from edda_wsgi import (
    ConfigurationError,
    RetryPolicy,
    UsageError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    workflow,
)
from tests.integration.engines import Gate
from tests.integration.flask_apps import Note, Shop, open_shop, saved_notes
from tests.support import eventually

QUICKLY = RetryPolicy(max_attempts=3, initial_interval=0.05)


@activity
def plain_step(ctx: WorkflowContext) -> int:
    return 1


@workflow
async def well_behaved_beside(ctx: WorkflowContext) -> int:
    return await plain_step(ctx)


@pytest.fixture
def shop(database_url: str) -> Iterator[Shop]:
    with open_shop(database_url) as opened:
        yield opened


def begin(shop: Shop, started: Any) -> str:
    """Start a workflow, committed at once, with a worker in this process."""
    shop.edda.start_worker()
    with shop.app.app_context():
        return str(started.options(session=None).start())


def test_commits_past_the_session_are_refused_once_and_keep_nothing(shop: Shop, database_url: str) -> None:
    attempts: list[str] = []

    @activity(retry_policy=QUICKLY)
    def commit_the_connection(ctx: WorkflowContext) -> None:
        attempts.append("connection")
        shop.db.session.execute(text("INSERT INTO note (text) VALUES ('by connection')"))
        shop.db.session.connection().commit()

    @activity(retry_policy=QUICKLY)
    def say_commit(ctx: WorkflowContext) -> None:
        attempts.append("statement")
        shop.db.session.execute(text("INSERT INTO note (text) VALUES ('by statement')"))
        shop.db.session.execute(text("COMMIT"))

    @workflow
    async def commits_the_connection(ctx: WorkflowContext) -> None:
        await commit_the_connection(ctx)

    @workflow
    async def says_commit(ctx: WorkflowContext) -> None:
        await say_commit(ctx)

    for committing in (commits_the_connection, says_commit):
        with pytest.raises(WorkflowFailedError) as caught:
            shop.edda.result(begin(shop, committing), timeout=15)
        assert isinstance(caught.value.__cause__, UsageError)
    assert attempts == ["connection", "statement"]
    assert saved_notes(database_url) == []


def test_a_commit_past_the_session_is_not_durable_even_if_the_activity_catches_the_refusal(
    shop: Shop, database_url: str
) -> None:
    @activity(retry_policy=RetryPolicy(max_attempts=1))
    def commit_and_fail(ctx: WorkflowContext) -> None:
        shop.db.session.execute(text("INSERT INTO note (text) VALUES ('half done')"))
        with pytest.raises(UsageError):
            shop.db.session.connection().commit()
        raise ValueError("after the commit")

    @workflow
    async def flow(ctx: WorkflowContext) -> None:
        await commit_and_fail(ctx)

    with pytest.raises(WorkflowFailedError, match="after the commit"):
        shop.edda.result(begin(shop, flow), timeout=15)
    assert saved_notes(database_url) == []


@pytest.mark.parametrize("is_stopped_by", ["loop.stop", "SystemExit"])
def test_a_loop_that_was_stopped_from_inside_goes_on_or_is_replaced(shop: Shop, is_stopped_by: str) -> None:
    assert shop.edda.result(begin(shop, well_behaved_beside), timeout=15) == 1
    loop = shop.app.extensions["edda"]._loop_thread._loop
    if is_stopped_by == "loop.stop":
        loop.call_soon_threadsafe(loop.stop)
    else:
        loop.call_soon_threadsafe(sys.exit, 3)
    assert shop.edda.result(begin(shop, well_behaved_beside), timeout=15) == 1


def test_a_system_exit_in_a_branch_leaves_the_loop_to_the_others(shop: Shop) -> None:
    @activity(retry_policy=RetryPolicy(max_attempts=1, non_retryable_error_types=(SystemExit,)))
    def quit_it(ctx: WorkflowContext) -> None:
        sys.exit(3)

    async def leave() -> None:
        sys.exit(4)

    @workflow
    async def by_helper(ctx: WorkflowContext) -> None:
        await asyncio.gather(leave(), plain_step(ctx))

    @workflow
    async def by_activity(ctx: WorkflowContext) -> None:
        await asyncio.gather(quit_it(ctx), plain_step(ctx))

    @workflow
    def by_branch(ctx: Any) -> None:
        ctx.gather(lambda: sys.exit(5), lambda: plain_step(ctx))

    for quitting in (by_helper, by_activity, by_branch):
        with pytest.raises(WorkflowFailedError):
            shop.edda.result(begin(shop, quitting), timeout=15)
        assert shop.edda.result(begin(shop, well_behaved_beside), timeout=15) == 1


def test_a_cancel_that_was_undone_by_closing_the_session_has_no_effect(shop: Shop, database_url: str) -> None:
    gate = Gate()

    @activity
    def wait(ctx: WorkflowContext) -> int:
        gate.hold()
        return 1

    @workflow
    async def flow(ctx: WorkflowContext) -> int:
        return await wait(ctx) + await plain_step(ctx)

    instance_id = begin(shop, flow)
    assert gate.reached.wait(15)
    with shop.app.app_context():
        assert shop.edda.cancel(instance_id) is True
        shop.db.session.close()
        shop.db.session.add(Note(text="unrelated"))
        shop.db.session.commit()
    gate.open()
    assert shop.edda.result(instance_id, timeout=15) == 2
    assert saved_notes(database_url) == ["unrelated"]


def test_a_request_that_holds_its_cancel_uncommitted_stalls_no_other_workflow(postgres_url: str) -> None:
    gate = Gate()

    @activity
    def wait(ctx: WorkflowContext) -> int:
        gate.hold()
        return 1

    @workflow(lock_timeout_seconds=1.0)
    async def cancelled_in_vain(ctx: WorkflowContext) -> int:
        return await wait(ctx) + await plain_step(ctx)

    with open_shop(postgres_url) as shop:
        instance_id = begin(shop, cancelled_in_vain)
        assert gate.reached.wait(15)
        with shop.app.app_context():
            assert shop.edda.cancel(instance_id) is True
            gate.open()  # its step is to be saved now, and the request has locked its row
            beside = well_behaved_beside.options(session=None).start()
            assert shop.edda.result(beside, timeout=5) == 1
            shop.db.session.rollback()
        assert shop.edda.result(instance_id, timeout=15) == 2


def test_a_worker_without_auto_migrate_says_what_to_do_and_works_after_the_upgrade(
    bare_database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_shop(bare_database_url, auto_migrate=False) as shop:
        starting = threading.Thread(target=shop.edda.start_worker)
        starting.start()
        eventually(lambda: "No work is claimed until then" in caplog.text)
        assert "Run `flask edda upgrade`" in caplog.text
        done = shop.app.test_cli_runner().invoke(args=["edda", "upgrade"])
        assert done.exit_code == 0, done.output
        starting.join(20)
        assert shop.edda.result(begin(shop, well_behaved_beside), timeout=15) == 1
    assert [record.levelno for record in caplog.records if "need an upgrade" in record.message] == [logging.ERROR]


def test_a_setting_that_is_misspelt_is_one_line_that_names_the_right_one(sqlite_url: str) -> None:
    with pytest.raises(ConfigurationError) as caught, open_shop(sqlite_url, thredds=3):
        pass
    assert "Did you mean" in str(caught.value)
    assert "threads" in str(caught.value).lower()
    assert len(str(caught.value).splitlines()) == 1


def test_start_takes_no_name(shop: Shop) -> None:
    with shop.app.app_context(), pytest.raises(UsageError, match="start"):
        shop.edda.start("well_behaved_beside")  # type: ignore[arg-type]


@pytest.mark.parametrize("call", ["cancel", "retry"])
def test_requests_about_instances_are_refused_in_a_body(shop: Shop, call: str) -> None:
    @workflow
    async def flow(ctx: WorkflowContext) -> str:
        try:
            getattr(shop.edda, call)(ctx.instance_id)
        except UsageError as error:
            return str(error)
        return "done"

    said = shop.edda.result(begin(shop, flow), timeout=15)
    assert said.startswith(f"{call}() was called in the body of workflow 'flow'")
