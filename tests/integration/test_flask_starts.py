"""``start()`` in a view is like ``db.session.add()``: saved by its commit, gone with its rollback, never forgotten silently."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text

from edda_wsgi import (
    InstanceConflictError,
    InstanceNotFoundError,
    InvalidInputError,
    ResultTimeoutError,
    StartNotCommittedError,
    UsageError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    workflow,
)
from tests.integration.flask_apps import (
    FLASK_SQLALCHEMY,
    LITE,
    ONCE,
    SCOPED_SESSION,
    SESSIONMAKER,
    Note,
    Shop,
    open_shop,
    outside,
    run_python,
    saved_instances,
    saved_notes,
)
from tests.support import eventually


@pytest.fixture
def shop(database_url: str) -> Iterator[Shop]:
    with open_shop(database_url) as opened:
        yield opened


@pytest.fixture(params=[FLASK_SQLALCHEMY, LITE, SCOPED_SESSION])
def any_shop(request: pytest.FixtureRequest, database_url: str) -> Iterator[Shop]:
    with open_shop(database_url, kind=request.param) as opened:
        yield opened


def declare_order():  # type: ignore[no-untyped-def]
    @workflow
    async def order(ctx: WorkflowContext, number: int) -> int:
        return number * 10

    return order


# Joining the session.


def test_a_start_is_saved_by_the_commit_of_the_session(any_shop: Shop) -> None:
    order = declare_order()

    with any_shop.app.app_context():
        any_shop.session().add(Note(text="a"))
        instance_id = order.start(number=1)
        before = saved_instances(any_shop.database_url)
        any_shop.session().commit()

    assert before == []
    assert saved_instances(any_shop.database_url) == [instance_id]
    assert saved_notes(any_shop.database_url) == ["a"]


def test_a_start_whose_session_rolled_back_never_was(any_shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    order = declare_order()
    any_shop.edda.start_worker()

    with any_shop.app.app_context():
        any_shop.session().add(Note(text="a"))
        instance_id = order.start(number=1)
        any_shop.session().rollback()
        with pytest.raises(InstanceNotFoundError):
            any_shop.edda.get(instance_id)

    assert saved_instances(any_shop.database_url) == []
    assert saved_notes(any_shop.database_url) == []
    assert not [record for record in caplog.records if instance_id in record.getMessage()]


def test_a_start_after_a_rollback_in_the_same_session_is_saved(shop: Shop) -> None:
    order = declare_order()

    with shop.app.app_context():
        order.start(number=1)
        shop.session().rollback()
        instance_id = order.start(number=2)
        shop.session().commit()

    assert saved_instances(shop.database_url) == [instance_id]


def test_a_start_in_a_savepoint_goes_with_the_savepoint(any_shop: Shop) -> None:
    order = declare_order()

    with any_shop.app.app_context():
        session = any_shop.session()
        session.add(Note(text="a"))
        session.flush()
        kept = order.start(number=1)
        savepoint = session.begin_nested()
        order.start(number=2)
        savepoint.rollback()
        session.commit()

    assert saved_instances(any_shop.database_url) == [kept]


def test_a_start_whose_savepoint_rolled_back_is_not_called_lost(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    order = declare_order()

    with shop.app.app_context():
        session = shop.session()
        savepoint = session.begin_nested()
        undone = order.start(number=1)
        savepoint.rollback()
        with pytest.raises(InstanceNotFoundError):
            shop.edda.result(undone, timeout=0)

    assert not [record for record in caplog.records if undone in record.getMessage()]


def test_a_released_savepoint_does_not_wake_nor_forget_the_start(shop: Shop) -> None:
    order = declare_order()

    with shop.app.app_context():
        with shop.session().begin_nested():
            instance_id = order.start(number=1)
        with pytest.raises(StartNotCommittedError):
            shop.edda.result(instance_id, timeout=5)
        shop.session().commit()

    assert saved_instances(shop.database_url) == [instance_id]


def test_a_start_whose_savepoint_was_released_and_session_then_rolled_back_never_was(shop: Shop) -> None:
    order = declare_order()

    with shop.app.app_context():
        with shop.session().begin_nested():
            order.start(number=1)
        shop.session().rollback()

    assert saved_instances(shop.database_url) == []


def test_a_context_that_ends_without_commit_warns_once_naming_the_instance(
    any_shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    order = declare_order()

    with caplog.at_level(logging.WARNING, logger="edda_wsgi"), any_shop.app.app_context():
        instance_id = order.start(number=1)

    warnings = [record.getMessage() for record in caplog.records if instance_id in record.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"Instance {instance_id} was started in a session that ended without commit")
    assert saved_instances(any_shop.database_url) == []


def test_a_committed_start_warns_of_nothing(any_shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    order = declare_order()

    with caplog.at_level(logging.WARNING, logger="edda_wsgi"), any_shop.app.app_context():
        order.start(number=1)
        any_shop.session().commit()

    assert [record for record in caplog.records if record.name.startswith("edda_wsgi")] == []


def test_a_view_that_fails_before_its_commit_starts_nothing(shop: Shop) -> None:
    order = declare_order()

    @shop.app.post("/orders")
    def create() -> str:
        shop.session().add(Note(text="a"))
        order.start(number=1)
        raise ValueError("too early")

    shop.app.config["PROPAGATE_EXCEPTIONS"] = False
    response = shop.app.test_client().post("/orders")

    assert response.status_code == 500
    assert saved_instances(shop.database_url) == []
    assert saved_notes(shop.database_url) == []


def test_the_first_start_of_all_may_follow_a_write_of_the_same_session(any_shop: Shop) -> None:
    order = declare_order()

    with any_shop.app.app_context():
        any_shop.session().add(Note(text="a"))
        any_shop.session().flush()
        instance_id = order.start(number=1)
        any_shop.session().commit()

    assert saved_instances(any_shop.database_url) == [instance_id]


def test_start_with_session_none_is_committed_at_once(any_shop: Shop) -> None:
    order = declare_order()

    with any_shop.app.app_context():
        instance_id = order.options(session=None).start(number=1)
        at_once = saved_instances(any_shop.database_url)
        any_shop.session().rollback()

    assert at_once == [instance_id]
    assert saved_instances(any_shop.database_url) == [instance_id]


def test_start_joins_the_session_that_is_given(database_url: str) -> None:
    with open_shop(database_url, kind=SESSIONMAKER) as shop:
        order = declare_order()
        with shop.app.app_context():
            with shop.db() as session:
                order.options(session=session).start(number=1)
                session.rollback()
            with shop.db.begin() as session:
                kept = order.options(session=session).start(number=2)
                before = saved_instances(database_url)

        assert before == []
        assert saved_instances(database_url) == [kept]


def test_start_with_a_plain_sessionmaker_is_committed_at_once(database_url: str) -> None:
    with open_shop(database_url, kind=SESSIONMAKER) as shop:
        order = declare_order()
        with shop.app.app_context():
            instance_id = order.start(number=1)

        assert saved_instances(database_url) == [instance_id]


def test_start_without_any_sessions_is_committed_at_once(database_url: str, tmp_path: Path) -> None:
    from flask import Flask

    from edda_wsgi import EddaFlask

    order = declare_order()
    app = Flask("plain", instance_path=str(tmp_path / "instance"))
    app.testing = True
    edda = EddaFlask(app, database_url=database_url)
    with app.app_context():
        instance_id = order.start(number=1)

    assert saved_instances(database_url) == [instance_id]
    edda.start_worker()
    assert edda.result(instance_id, timeout=20) == 10
    edda.shutdown()


def test_edda_start_is_the_same_as_workflow_start(shop: Shop) -> None:
    order = declare_order()

    with shop.app.app_context():
        instance_id = shop.edda.start(order, number=4)
        before = saved_instances(shop.database_url)
        shop.session().commit()

    assert before == []
    assert saved_instances(shop.database_url) == [instance_id]


def test_the_commit_of_a_start_wakes_the_engine_at_once(database_url: str) -> None:
    order = declare_order()
    with open_shop(database_url, poll_interval_seconds=60.0) as shop:
        shop.edda.start_worker()
        with shop.app.app_context():
            began = time.monotonic()
            instance_id = order.start(number=1)
            shop.session().commit()
        result = shop.edda.result(instance_id, timeout=10)

        assert result == 10
        assert time.monotonic() - began < 2


def test_a_start_committed_at_once_wakes_the_engine_at_once(database_url: str) -> None:
    order = declare_order()
    with open_shop(database_url, poll_interval_seconds=60.0) as shop:
        shop.edda.start_worker()
        with shop.app.app_context():
            began = time.monotonic()
            instance_id = order.options(session=None).start(number=1)
        shop.edda.result(instance_id, timeout=10)

        assert time.monotonic() - began < 2


def test_result_of_an_uncommitted_start_says_so_at_once(any_shop: Shop) -> None:
    order = declare_order()

    with any_shop.app.app_context():
        instance_id = order.start(number=1)
        began = time.monotonic()
        with pytest.raises(StartNotCommittedError, match=f"{instance_id}.*Commit the session first"):
            any_shop.edda.result(instance_id, timeout=30)
        assert time.monotonic() - began < 2
        any_shop.session().commit()
        with pytest.raises(ResultTimeoutError):
            any_shop.edda.result(instance_id, timeout=0)


# Options.


def test_the_same_instance_id_with_the_same_input_starts_one(shop: Shop) -> None:
    order = declare_order()

    @shop.app.post("/orders")
    def create() -> str:
        instance_id = order.options(instance_id="order-1").start(number=1)
        shop.session().commit()
        return instance_id

    client = shop.app.test_client()
    answers = [client.post("/orders").text for _ in range(3)]

    assert answers == ["order-1"] * 3
    assert saved_instances(shop.database_url) == ["order-1"]


def test_the_same_instance_id_again_after_the_end_starts_nothing(shop: Shop) -> None:
    order = declare_order()
    shop.edda.start_worker()

    with shop.app.app_context():
        order.options(instance_id="order-1", session=None).start(number=1)
        shop.edda.result("order-1", timeout=20)
        again = order.options(instance_id="order-1", session=None).start(1)

    assert again == "order-1"
    assert shop.edda.get("order-1").status == "completed"


def test_two_requests_with_one_instance_id_at_once_start_one(shop: Shop) -> None:
    order = declare_order()
    answers: list[str] = []
    at_once = threading.Barrier(2)

    @shop.app.post("/orders")
    def create() -> str:
        at_once.wait(10)
        instance_id = order.options(instance_id="order-1").start(number=1)
        shop.session().commit()
        return instance_id

    threads = [
        threading.Thread(target=lambda: answers.append(shop.app.test_client().post("/orders").text)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert answers == ["order-1", "order-1"]
    assert saved_instances(shop.database_url) == ["order-1"]


def test_the_same_instance_id_with_another_input_is_a_conflict(shop: Shop) -> None:
    order = declare_order()

    with shop.app.app_context():
        order.options(instance_id="order-1", session=None).start(number=1)
        with pytest.raises(InstanceConflictError) as caught:
            order.options(instance_id="order-1").start(number=2)
        shop.session().commit()

    assert caught.value.instance_id == "order-1"
    assert '"number":1' in caught.value.recorded.replace(" ", "")
    assert '"number":2' in caught.value.requested.replace(" ", "")


def test_the_same_instance_id_for_another_workflow_is_a_conflict(shop: Shop) -> None:
    order = declare_order()

    @workflow
    async def refund(ctx: WorkflowContext, number: int) -> None: ...

    with shop.app.app_context():
        order.options(instance_id="order-1", session=None).start(number=1)
        with pytest.raises(InstanceConflictError, match=r"already runs order.*cannot be started again as refund"):
            refund.options(instance_id="order-1", session=None).start(number=1)


def test_a_conflict_leaves_the_session_usable(shop: Shop) -> None:
    order = declare_order()

    with shop.app.app_context():
        order.options(instance_id="order-1", session=None).start(number=1)
        shop.session().add(Note(text="a"))
        with pytest.raises(InstanceConflictError):
            order.options(instance_id="order-1").start(number=2)
        shop.session().commit()

    assert saved_notes(shop.database_url) == ["a"]


@pytest.mark.parametrize("delay", [3600, timedelta(hours=1)])
def test_a_delayed_start_is_due_after_its_delay(shop: Shop, delay: float | timedelta) -> None:
    order = declare_order()

    with shop.app.app_context():
        instance_id = order.options(delay=delay, session=None).start(number=1)

    found = shop.edda.get(instance_id)
    assert found.wake_at is not None
    assert abs((found.wake_at - found.created_at).total_seconds() - 3600) < 5


def test_a_start_at_an_instant_is_due_then(shop: Shop) -> None:
    order = declare_order()
    due = datetime.now(UTC) + timedelta(days=2)

    with shop.app.app_context():
        instance_id = order.options(start_at=due, session=None).start(number=1)

    found = shop.edda.get(instance_id)
    assert found.wake_at is not None
    assert abs((found.wake_at - due).total_seconds()) < 0.01


def test_a_short_delay_runs_when_it_is_over(shop: Shop) -> None:
    order = declare_order()
    shop.edda.start_worker()

    with shop.app.app_context():
        instance_id = order.options(delay=0.5, session=None).start(number=1)
    shop.edda.result(instance_id, timeout=20)

    found = shop.edda.get(instance_id)
    assert found.started_at is not None
    assert 0.5 <= (found.started_at - found.created_at).total_seconds() < 5


def test_priority_decides_which_due_instance_is_claimed_first(database_url: str) -> None:
    ran: list[int] = []

    @workflow
    async def note(ctx: WorkflowContext, number: int) -> None:
        ran.append(number)

    with open_shop(database_url, max_running=1) as shop:
        with shop.app.app_context():
            started = [note.options(priority=priority, session=None).start(priority) for priority in (0, -5, 9, 5)]
        shop.edda.start_worker()
        for instance_id in started:
            shop.edda.result(instance_id, timeout=20)
        assert shop.edda.get(started[2]).priority == 9

    assert ran == [9, 5, 0, -5]


def test_the_lock_timeout_of_a_start_wins_over_the_decorator_and_the_settings(database_url: str) -> None:
    @workflow(lock_timeout_seconds=50)
    async def decorated(ctx: WorkflowContext) -> None: ...

    @workflow
    async def plain(ctx: WorkflowContext) -> None: ...

    with open_shop(database_url, lock_timeout_seconds=70.0) as shop, shop.app.app_context():
        ids = [
            decorated.options(lock_timeout_seconds=20, session=None).start(),
            decorated.options(session=None).start(),
            plain.options(session=None).start(),
            shop.edda.start(decorated, lock_timeout_seconds=30),
        ]
        shop.session().commit()

        assert [shop.edda.get(instance_id).lock_timeout_seconds for instance_id in ids] == [20, 50, 70, 30]


# Bad input: an error at once, and nothing started.


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((1, 2), {}),
        ((), {"nummer": 1}),
        ((), {"number": "many"}),
        ((object(),), {}),
    ],
    ids=["missing", "too many", "unknown", "wrong type", "no JSON"],
)
def test_wrong_arguments_are_refused_at_once_and_nothing_is_started(
    shop: Shop, args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    order = declare_order()

    with shop.app.app_context():
        with pytest.raises(InvalidInputError, match=r"order.*nothing was started"):
            order.start(*args, **kwargs)
        shop.session().commit()

    assert saved_instances(shop.database_url) == []


def test_wrong_arguments_are_a_type_error_as_with_any_function(shop: Shop) -> None:
    order = declare_order()

    with shop.app.app_context(), pytest.raises(TypeError):
        order.start()


def test_an_input_over_the_limit_is_refused_at_once(database_url: str) -> None:
    @workflow
    async def read(ctx: WorkflowContext, text: str) -> None: ...

    with (
        open_shop(database_url, max_payload_bytes=1000) as shop,
        shop.app.app_context(),
        pytest.raises(InvalidInputError, match="MAX_PAYLOAD_BYTES = 1000"),
    ):
        read.start("x" * 1001)


def test_a_naive_start_at_is_refused(shop: Shop) -> None:
    order = declare_order()

    with shop.app.app_context(), pytest.raises(ValueError, match="aware"):
        order.options(start_at=datetime(2030, 1, 1)).start(number=1)


@pytest.mark.parametrize(
    "options",
    [
        {"instance_id": ""},
        {"instance_id": "x" * 256},
        {"delay": -1},
        {"priority": 100_000},
        {"delay": 1, "start_at": datetime(2030, 1, 1, tzinfo=UTC)},
    ],
    ids=["empty id", "long id", "negative delay", "huge priority", "delay and start_at"],
)
def test_wrong_options_are_refused_with_a_sentence(shop: Shop, options: dict[str, object]) -> None:
    order = declare_order()

    with shop.app.app_context():
        with pytest.raises(UsageError):
            order.options(**options).start(number=1)
        shop.session().commit()

    assert saved_instances(shop.database_url) == []


# Inside workflows and activities.


def test_a_start_in_a_sync_activity_is_saved_with_its_step(shop: Shop) -> None:
    order = declare_order()

    def start_one(ctx: WorkflowContext) -> str:
        shop.session().add(Note(text="a"))
        return order.start(number=5)

    child = shop.run(start_one)

    assert shop.edda.result(child, timeout=20) == 50


def test_a_start_in_a_sync_activity_that_fails_never_was(shop: Shop) -> None:
    order = declare_order()

    def start_one(ctx: WorkflowContext) -> None:
        order.options(instance_id="child").start(number=5)
        shop.session().commit()
        raise ValueError("after the start")

    with pytest.raises(WorkflowFailedError):
        shop.run(start_one)

    assert "child" not in saved_instances(shop.database_url)


def test_a_start_in_a_sync_activity_is_not_durable_before_its_end(shop: Shop) -> None:
    order = declare_order()

    def start_one(ctx: WorkflowContext) -> bool:
        order.options(instance_id="child").start(number=5)
        shop.session().commit()
        return "child" in saved_instances(shop.database_url)

    assert shop.run(start_one) is False
    assert shop.edda.result("child", timeout=20) == 50


def test_a_start_in_an_async_activity_is_saved_with_its_step(shop: Shop) -> None:
    order = declare_order()

    async def start_one(ctx: WorkflowContext) -> str:
        return order.start(number=5)

    assert shop.edda.result(shop.run(start_one), timeout=20) == 50


def test_a_start_in_an_async_activity_that_fails_never_was(shop: Shop) -> None:
    order = declare_order()

    async def start_one(ctx: WorkflowContext) -> None:
        order.options(instance_id="child").start(number=5)
        raise ValueError("after the start")

    with pytest.raises(WorkflowFailedError):
        shop.run(start_one)

    assert "child" not in saved_instances(shop.database_url)


def test_a_start_in_a_nested_app_context_of_an_activity_belongs_to_its_step(shop: Shop) -> None:
    order = declare_order()

    def start_one(ctx: WorkflowContext) -> None:
        with shop.app.app_context():
            order.options(instance_id="child").start(number=5)
        raise ValueError("after the start")

    with pytest.raises(WorkflowFailedError):
        shop.run(start_one)

    assert "child" not in saved_instances(shop.database_url)


def test_a_start_in_a_body_is_refused_with_a_sentence(shop: Shop) -> None:
    order = declare_order()

    @workflow
    async def parent(ctx: WorkflowContext) -> str:
        return order.start(number=1)

    shop.edda.start_worker()
    with shop.app.app_context():
        instance_id = parent.options(session=None).start()

    with pytest.raises(WorkflowFailedError, match=r"order\.start\(\) was called in the body of workflow 'parent'"):
        shop.edda.result(instance_id, timeout=20)
    assert saved_instances(shop.database_url) == [instance_id]


def test_workflow_called_like_a_function_in_a_view_is_refused_with_a_sentence(shop: Shop) -> None:
    order = declare_order()

    with shop.app.app_context(), pytest.raises(UsageError, match=r"order\.start\(\.\.\.\)"):
        order(None, number=1)


def test_an_activity_started_in_a_loop_starts_each_once(shop: Shop) -> None:
    order = declare_order()

    @activity(retry_policy=ONCE)
    def start_many(ctx: WorkflowContext, count: int) -> list[str]:
        return [order.options(instance_id=f"child-{number}").start(number) for number in range(count)]

    @workflow
    async def parent(ctx: WorkflowContext) -> list[str]:
        return await start_many(ctx, 20)

    shop.edda.start_worker()
    with shop.app.app_context():
        instance_id = parent.options(session=None).start()
    children = shop.edda.result(instance_id, timeout=20)

    assert [shop.edda.result(child, timeout=20) for child in children] == [number * 10 for number in range(20)]


# Which application is meant.

ONE_OR_TWO_APPS = """
import sys
from flask import Flask
from edda_wsgi import ConfigurationError, EddaFlask, WorkflowContext, workflow

@workflow
async def order(ctx: WorkflowContext, number: int) -> int:
    return number

apps = []
for name in sys.argv[1:] or {names!r}:
    app = Flask(name, instance_path=f"{{name}}-instance".join(["{folder}/", ""]))
    EddaFlask(app)
    apps.append(app)
try:
    print("started", order.options(instance_id="one").start(number=1))
except ConfigurationError as error:
    print("refused", error)
"""


def test_a_start_outside_any_app_context_goes_to_the_only_application(tmp_path: Path) -> None:
    script = ONE_OR_TWO_APPS.format(names=["shop"], folder=tmp_path)

    assert run_python(script, folder=tmp_path) == "started one\n"
    assert saved_instances(f"sqlite:///{tmp_path}/shop-instance/edda.db") == ["one"]


def test_a_start_outside_any_app_context_is_refused_with_several_applications(tmp_path: Path) -> None:
    script = ONE_OR_TWO_APPS.format(names=["shop", "other"], folder=tmp_path)

    printed = run_python(script, folder=tmp_path)

    assert printed == "refused 2 applications have edda; say which one is meant with `with app.app_context():`.\n"


def test_a_start_without_any_application_is_refused_with_a_sentence(tmp_path: Path) -> None:
    printed = run_python(ONE_OR_TWO_APPS.format(names=[], folder=tmp_path), folder=tmp_path)

    assert printed.startswith("refused No application has edda yet.")


# Cancelling.


def test_cancel_in_a_view_takes_effect_with_the_commit(any_shop: Shop) -> None:
    order = declare_order()

    with any_shop.app.app_context():
        instance_id = order.options(session=None, delay=3600).start(number=1)
        answer = any_shop.edda.cancel(instance_id, reason="changed my mind")
        with outside(any_shop.database_url) as engine, engine.connect() as conn:
            before = conn.execute(text("SELECT status FROM edda_instances")).scalar()
        any_shop.session().commit()

    assert answer is True
    assert before == "pending"
    found = any_shop.edda.get(instance_id)
    assert (found.status, found.cancel_reason) == ("cancelled", "changed my mind")


def test_cancel_whose_session_rolled_back_never_was(any_shop: Shop) -> None:
    order = declare_order()

    with any_shop.app.app_context():
        instance_id = order.options(session=None, delay=3600).start(number=1)
        any_shop.edda.cancel(instance_id)
        any_shop.session().rollback()

    assert any_shop.edda.get(instance_id).status == "pending"


def test_cancel_with_session_none_is_committed_at_once(shop: Shop) -> None:
    order = declare_order()

    with shop.app.app_context():
        instance_id = order.options(session=None, delay=3600).start(number=1)
        shop.edda.cancel(instance_id, session=None)
        shop.session().rollback()

    assert shop.edda.get(instance_id).status == "cancelled"


def test_cancel_in_a_sync_activity_is_part_of_its_step(shop: Shop) -> None:
    order = declare_order()
    with shop.app.app_context():
        order.options(session=None, delay=3600, instance_id="other").start(number=1)

    def cancel_and_fail(ctx: WorkflowContext) -> None:
        shop.edda.cancel("other")
        raise ValueError("after the cancel")

    def cancel(ctx: WorkflowContext) -> bool:
        return shop.edda.cancel("other", reason="by an activity")

    with pytest.raises(WorkflowFailedError):
        shop.run(cancel_and_fail)
    after_failure = shop.edda.get("other").status

    assert after_failure == "pending"
    assert shop.run(cancel) is True
    assert shop.edda.get("other").status == "cancelled"


def test_cancel_stops_a_running_instance_at_its_next_step(shop: Shop) -> None:
    reached, go_on = threading.Event(), threading.Event()
    ran: list[str] = []

    @activity
    def first(ctx: WorkflowContext) -> None:
        ran.append("first")
        reached.set()
        go_on.wait(20)

    @activity
    def second(ctx: WorkflowContext) -> None:
        ran.append("second")

    @workflow
    async def two_steps(ctx: WorkflowContext) -> None:
        await first(ctx)
        await second(ctx)

    shop.edda.start_worker()
    with shop.app.app_context():
        instance_id = two_steps.options(session=None).start()
        reached.wait(20)
        answer = shop.edda.cancel(instance_id, session=None)
        go_on.set()

    assert answer is True
    assert eventually(lambda: shop.edda.get(instance_id).status == "cancelled")
    assert ran == ["first"]
    assert [event.activity_id for event in shop.edda.history(instance_id)] == ["first:1"]


def test_cancel_of_an_ended_instance_says_false_and_changes_nothing(shop: Shop) -> None:
    order = declare_order()
    shop.edda.start_worker()

    with shop.app.app_context():
        instance_id = order.options(session=None).start(number=1)
        shop.edda.result(instance_id, timeout=20)

        assert shop.edda.cancel(instance_id) is False
    assert shop.edda.get(instance_id).status == "completed"


def test_cancel_of_an_unknown_instance_is_an_error_that_names_it(shop: Shop) -> None:
    with shop.app.app_context():
        shop.edda.start_worker()
        with pytest.raises(InstanceNotFoundError, match="'nobody'"):
            shop.edda.cancel("nobody")


def test_cancel_in_the_first_request_of_a_new_database_is_an_unknown_instance(shop: Shop) -> None:
    @shop.app.delete("/orders")
    def cancel() -> str:
        with pytest.raises(InstanceNotFoundError, match="'nobody'"):
            shop.edda.cancel("nobody")
        return "refused"

    assert shop.app.test_client().delete("/orders").text == "refused"


def declare_two_steps(reached: threading.Event, go_on: threading.Event) -> Any:
    """A workflow that waits in its first step until it may go on to its second one."""

    @activity
    def first(ctx: WorkflowContext) -> None:
        reached.set()
        go_on.wait(20)

    @activity
    def second(ctx: WorkflowContext) -> str:
        return "both steps ran"

    @workflow
    async def two_steps(ctx: WorkflowContext) -> str:
        await first(ctx)
        return await second(ctx)

    return two_steps


def test_a_cancel_in_a_rolled_back_savepoint_stops_nothing(shop: Shop) -> None:
    reached, go_on = threading.Event(), threading.Event()
    two_steps = declare_two_steps(reached, go_on)

    shop.edda.start_worker()
    with shop.app.app_context():
        instance_id = two_steps.options(session=None).start()
        reached.wait(20)
        savepoint = shop.session().begin_nested()
        shop.edda.cancel(instance_id)
        savepoint.rollback()
        shop.session().commit()
        go_on.set()

    assert shop.edda.result(instance_id, timeout=20) == "both steps ran"


def test_a_cancel_that_an_activity_takes_back_stops_nothing(shop: Shop) -> None:
    reached, go_on = threading.Event(), threading.Event()
    two_steps = declare_two_steps(reached, go_on)

    @activity
    def changes_its_mind(ctx: WorkflowContext, instance_id: str) -> bool:
        savepoint = shop.session().begin_nested()
        shop.session().execute(text("SELECT 1"))
        is_cancelled = shop.edda.cancel(instance_id)
        savepoint.rollback()
        return is_cancelled

    @workflow
    async def hesitates(ctx: WorkflowContext, instance_id: str) -> bool:
        return await changes_its_mind(ctx, instance_id)

    shop.edda.start_worker()
    with shop.app.app_context():
        instance_id = two_steps.options(session=None).start()
        reached.wait(20)
        hesitating = hesitates.options(session=None).start(instance_id)
    assert shop.edda.result(hesitating, timeout=20) is True
    go_on.set()
    assert shop.edda.result(instance_id, timeout=20) == "both steps ran"


@pytest.mark.parametrize("call", ["cancel", "retry"])
def test_a_request_waits_for_the_one_that_writes_instead_of_being_refused(sqlite_url: str, call: str) -> None:
    """SQLite would not even let it wait, had it read what another one was about to change."""

    @workflow
    async def fails(ctx: WorkflowContext) -> None:
        raise ValueError("no")

    with open_shop(sqlite_url) as shop:
        with shop.app.app_context():
            instance_id = fails.options(session=None).start()
            if call == "retry":
                shop.edda.start_worker()
                with pytest.raises(WorkflowFailedError):
                    shop.edda.result(instance_id, timeout=20)
                shop.edda.shutdown()
        with sqlite3.connect(str(make_url(sqlite_url).database), check_same_thread=False) as writer:
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("UPDATE edda_instances SET priority = priority + 1")
            goes_on = threading.Timer(0.3, writer.commit)
            goes_on.start()
            with shop.app.app_context():
                with shop.session().begin_nested():
                    assert getattr(shop.edda, call)(instance_id) is True
                shop.session().commit()
            goes_on.join()
        writer.close()

        expected = "cancelled" if call == "cancel" else "running"
        with shop.app.app_context():
            assert shop.edda.get(instance_id).status == expected
