"""Asking: result, get, find_instances, history."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel
from sqlalchemy import update

from edda_engine.storage.schema import instances
from edda_engine.workflow import workflows
from edda_wsgi import (
    InstanceNotFoundError,
    ResultTimeoutError,
    RetryExhaustedError,
    RetryPolicy,
    TerminalError,
    UsageError,
    WorkflowCancelledError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    workflow,
)
from tests.integration.flask_apps import ONCE, Shop, open_shop
from tests.support import eventually


@pytest.fixture
def shop(database_url: str) -> Iterator[Shop]:
    with open_shop(database_url) as opened:
        yield opened


class Receipt(BaseModel):
    number: int
    total: Decimal
    at: datetime


class OutOfStockError(Exception):
    """Importable, with a constructor of its own."""

    def __init__(self, article: str, *, left: int) -> None:
        super().__init__(f"{article}: only {left} left")
        self.article, self.left = article, left


@dataclass
class Place:
    country: str


def start(shop: Shop, declared: Any, *args: Any, **options: Any) -> str:
    with shop.app.app_context():
        return str(declared.options(session=None, **options).start(*args))


# result()


def test_result_has_the_type_that_the_workflow_names(shop: Shop) -> None:
    receipt = Receipt(number=7, total=Decimal("9.90"), at=datetime(2030, 1, 1, tzinfo=UTC))

    @workflow
    async def bill(ctx: WorkflowContext) -> Receipt:
        return receipt

    shop.edda.start_worker()

    assert shop.edda.result(start(shop, bill), timeout=20) == receipt


def test_result_of_a_workflow_that_goes_on_times_out_and_says_where_it_stands(shop: Shop) -> None:
    @workflow
    async def later(ctx: WorkflowContext) -> None: ...

    instance_id = start(shop, later, delay=3600)

    with pytest.raises(ResultTimeoutError, match=r"did not end within 0\.2 s \(it is pending\)") as caught:
        shop.edda.result(instance_id, timeout=0.2)
    assert (caught.value.instance_id, caught.value.timeout, caught.value.state) == (instance_id, 0.2, "pending")


def test_result_timeout_is_a_timeout_error(shop: Shop) -> None:
    @workflow
    async def later(ctx: WorkflowContext) -> None: ...

    with pytest.raises(TimeoutError):
        shop.edda.result(start(shop, later, delay=3600), timeout=0)


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), "3", True])
def test_result_refuses_a_timeout_that_is_no_number_of_seconds(shop: Shop, timeout: Any) -> None:
    with shop.app.app_context(), pytest.raises(ValueError, match=r"result\(timeout="):
        shop.edda.result("any", timeout=timeout)


def test_result_of_an_unknown_instance_is_an_error_that_names_it(shop: Shop) -> None:
    shop.edda.start_worker()

    with pytest.raises(InstanceNotFoundError, match="'nobody'"):
        shop.edda.result("nobody", timeout=1)


def test_result_of_a_failed_workflow_carries_the_original_exception(shop: Shop) -> None:
    @workflow
    async def fails(ctx: WorkflowContext) -> None:
        raise OutOfStockError("mug", left=2)

    shop.edda.start_worker()
    instance_id = start(shop, fails)

    with pytest.raises(WorkflowFailedError, match=r"fails.*OutOfStockError: mug: only 2 left") as caught:
        shop.edda.result(instance_id, timeout=20)
    cause = caught.value.__cause__
    assert isinstance(cause, OutOfStockError)
    assert (cause.article, cause.left) == ("mug", 2)
    assert caught.value.instance_id == instance_id


def test_result_of_a_workflow_whose_activity_was_exhausted_carries_the_chain(shop: Shop) -> None:
    @activity(retry_policy=RetryPolicy(max_attempts=2, initial_interval=0.01))
    def buy(ctx: WorkflowContext) -> None:
        raise OutOfStockError("mug", left=ctx.attempt)

    @workflow
    async def order(ctx: WorkflowContext) -> None:
        await buy(ctx)

    shop.edda.start_worker()

    with pytest.raises(WorkflowFailedError) as caught:
        shop.edda.result(start(shop, order), timeout=20)
    exhausted = caught.value.__cause__
    assert isinstance(exhausted, RetryExhaustedError)
    assert exhausted.attempts == 2
    assert exhausted.errors == ["OutOfStockError: mug: only 1 left", "OutOfStockError: mug: only 2 left"]
    assert isinstance(exhausted.__cause__, OutOfStockError)


def test_result_of_a_terminal_error_carries_it(shop: Shop) -> None:
    @activity
    def refuse(ctx: WorkflowContext) -> None:
        raise TerminalError("card is stolen")

    @workflow
    async def order(ctx: WorkflowContext) -> None:
        await refuse(ctx)

    shop.edda.start_worker()

    with pytest.raises(WorkflowFailedError) as caught:
        shop.edda.result(start(shop, order), timeout=20)
    assert type(caught.value.__cause__) is TerminalError
    assert str(caught.value.__cause__) == "card is stolen"


def test_result_of_a_cancelled_workflow_says_so_with_the_reason(shop: Shop) -> None:
    @workflow
    async def later(ctx: WorkflowContext) -> None: ...

    instance_id = start(shop, later, delay=3600)
    shop.edda.cancel(instance_id, reason="sold out", session=None)

    with pytest.raises(WorkflowCancelledError, match=r"was cancelled \(sold out\)") as caught:
        shop.edda.result(instance_id, timeout=20)
    assert caught.value.reason == "sold out"


def test_result_wakes_at_once_when_the_instance_is_cancelled_in_this_process(shop: Shop) -> None:
    @workflow
    async def later(ctx: WorkflowContext) -> None: ...

    instance_id = start(shop, later, delay=3600)
    timer = threading.Timer(0.3, lambda: shop.edda.cancel(instance_id, session=None))
    timer.start()
    began = time.monotonic()

    with pytest.raises(WorkflowCancelledError):
        shop.edda.result(instance_id, timeout=20)
    assert time.monotonic() - began < 3
    timer.join()


def test_result_holds_no_connection_while_it_waits(shop: Shop) -> None:
    reached, go_on = threading.Event(), threading.Event()

    @activity
    def wait(ctx: WorkflowContext) -> str:
        reached.set()
        go_on.wait(20)
        return "done"

    @workflow
    async def flow(ctx: WorkflowContext) -> str:
        return await wait(ctx)

    with shop.app.app_context():
        pool = shop.engine.pool
    shop.edda.start_worker()
    instance_id = start(shop, flow)
    answers: list[str] = []
    waiters = [
        threading.Thread(target=lambda: answers.append(shop.edda.result(instance_id, timeout=20))) for _ in range(10)
    ]
    for waiter in waiters:
        waiter.start()
    reached.wait(20)
    held = eventually(lambda: pool.checkedout() == 0)
    go_on.set()
    for waiter in waiters:
        waiter.join(20)

    assert held is True
    assert answers == ["done"] * 10


# get() and history()


def test_get_shows_the_instance_from_start_to_end(shop: Shop) -> None:
    @workflow
    async def order(ctx: WorkflowContext, number: int, place: Place) -> dict[str, int]:
        return {"number": number}

    instance_id = start(shop, order, 7, Place("SE"))
    before = shop.edda.get(instance_id)
    shop.edda.start_worker()
    shop.edda.result(instance_id, timeout=20)
    after = shop.edda.get(instance_id)

    assert (before.status, before.input, before.output) == ("pending", {"number": 7, "place": {"country": "SE"}}, None)
    assert (before.workflow_name, before.service, before.started_at) == ("order", "edda", None)
    assert (after.status, after.output, after.locked_by, after.wake_at) == ("completed", {"number": 7}, None, None)
    assert after.created_at.tzinfo is not None
    assert after.started_at is not None
    assert after.completed_at is not None
    assert after.created_at <= after.started_at <= after.completed_at


def test_get_shows_the_error_of_a_failed_instance(shop: Shop) -> None:
    @workflow
    async def fails(ctx: WorkflowContext) -> None:
        raise ValueError("no")

    shop.edda.start_worker()
    instance_id = start(shop, fails)
    eventually(lambda: shop.edda.get(instance_id).status == "failed")

    found = shop.edda.get(instance_id)
    assert found.error_summary == "ValueError: no"
    assert found.error is not None
    assert 'raise ValueError("no")' in found.error["traceback"]


def test_get_of_an_unknown_instance_is_a_lookup_error(shop: Shop) -> None:
    shop.edda.start_worker()

    with pytest.raises(LookupError, match="'nobody'"):
        shop.edda.get("nobody")


def test_history_tells_each_step_in_order_with_its_input_and_result(shop: Shop) -> None:
    @activity
    def double(ctx: WorkflowContext, number: int) -> int:
        return number * 2

    @activity(retry_policy=ONCE)
    def fail(ctx: WorkflowContext) -> None:
        raise ValueError("no")

    @workflow
    async def flow(ctx: WorkflowContext) -> None:
        await double(ctx, 1)
        await double(ctx, number=2, activity_id="by-hand")
        try:
            await fail(ctx)
        except RetryExhaustedError:
            await double(ctx, 3)

    shop.edda.start_worker()
    instance_id = start(shop, flow)
    shop.edda.result(instance_id, timeout=20)
    events = shop.edda.history(instance_id)

    assert [(event.activity_id, event.event_type) for event in events] == [
        ("double:1", "ActivityCompleted"),
        ("by-hand", "ActivityCompleted"),
        ("fail:1", "ActivityFailed"),
        ("double:2", "ActivityCompleted"),
    ]
    first = events[0].event_data
    assert (first["activity_name"], first["input"], first["result"]) == ("double", {"number": 1}, 2)
    assert "retry_metadata" not in first
    assert events[2].event_data["error"]["message"] == "no"
    assert all(event.created_at.tzinfo is not None for event in events)


def test_history_tells_of_retries(shop: Shop) -> None:
    @activity(retry_policy=RetryPolicy(max_attempts=3, initial_interval=0.01))
    def flaky(ctx: WorkflowContext) -> int:
        if ctx.attempt < 3:
            raise ValueError(f"attempt {ctx.attempt}")
        return ctx.attempt

    @workflow
    async def flow(ctx: WorkflowContext) -> int:
        return await flaky(ctx)

    shop.edda.start_worker()
    instance_id = start(shop, flow)
    shop.edda.result(instance_id, timeout=20)
    metadata = shop.edda.history(instance_id)[0].event_data["retry_metadata"]

    assert metadata["total_attempts"] == 3
    assert metadata["exhausted"] is False
    assert metadata["last_error"] == {"error_type": "ValueError", "message": "attempt 2"}
    assert [(error["attempt"], error["message"]) for error in metadata["errors"]] == [
        (1, "attempt 1"),
        (2, "attempt 2"),
    ]


def test_history_of_an_unknown_instance_is_an_error(shop: Shop) -> None:
    shop.edda.start_worker()

    with pytest.raises(InstanceNotFoundError):
        shop.edda.history("nobody")


def test_history_of_an_instance_that_has_not_run_is_empty(shop: Shop) -> None:
    @workflow
    async def later(ctx: WorkflowContext) -> None: ...

    assert shop.edda.history(start(shop, later, delay=3600)) == []


# retry()


def test_a_failed_instance_that_is_taken_up_again_tries_the_failed_step_anew(shop: Shop) -> None:
    is_fixed = threading.Event()
    ran: list[str] = []

    @activity
    def first(ctx: WorkflowContext) -> None:
        ran.append("first")

    @activity(retry_policy=ONCE)
    def second(ctx: WorkflowContext) -> str:
        ran.append("second")
        if not is_fixed.is_set():
            raise ValueError("not yet")
        return "done"

    @workflow
    async def flow(ctx: WorkflowContext) -> str:
        await first(ctx)
        return await second(ctx)

    shop.edda.start_worker()
    instance_id = start(shop, flow)
    with pytest.raises(WorkflowFailedError):
        shop.edda.result(instance_id, timeout=20)
    is_fixed.set()

    assert shop.edda.retry(instance_id) is True
    assert shop.edda.result(instance_id, timeout=20) == "done"
    assert ran == ["first", "second", "second"]
    assert shop.edda.retry(instance_id) is False


def test_result_does_not_tell_of_a_failure_that_was_retried_before_it_asked(database_url: str) -> None:
    is_fixed, is_written, is_asked = threading.Event(), threading.Event(), threading.Event()

    def hold_back_the_news(point: str) -> None:
        if point == "end.after_commit" and not is_written.is_set():
            is_written.set()
            assert is_asked.wait(20)

    @workflow
    async def flow(ctx: WorkflowContext) -> str:
        if not is_fixed.is_set():
            raise ValueError("not yet")
        return "done"

    with open_shop(database_url, probe=hold_back_the_news) as shop, ThreadPoolExecutor(1) as pool:
        shop.edda.start_worker()
        instance_id = start(shop, flow)
        assert is_written.wait(20)
        is_fixed.set()
        assert shop.edda.retry(instance_id) is True
        asking = pool.submit(shop.edda.result, instance_id, timeout=20)
        time.sleep(0.3)  # until it waits to be told
        is_asked.set()

        assert asking.result() == "done"


# find_instances()


@pytest.fixture
def many(shop: Shop) -> list[str]:
    """Seven instances, oldest first; none has run."""

    @workflow
    async def order(ctx: WorkflowContext, order_id: int, customer: dict[str, Any] | None = None) -> None: ...

    @workflow
    async def refund(ctx: WorkflowContext, order_id: int) -> None: ...

    ids = [
        start(shop, order, 1, {"country": "SE", "vip": True}, instance_id="a"),
        start(shop, order, 2, {"country": "DE", "vip": False}, instance_id="b"),
        start(shop, order, 3, {"country": "SE", "tags": ["x", 1], "address": {"zip code": "1"}}, instance_id="c"),
        start(shop, order, 10, {"country": None, "vip": 1, "rate": 1.5}, instance_id="d"),
        start(shop, refund, 1, instance_id="e"),
        start(shop, refund, 2, instance_id="f", delay=3600),
        start(shop, refund, 3, instance_id="g"),
    ]
    # SQLite tells milliseconds, and several starts are made in one.
    with shop.edda._application().database.write() as conn:
        for number, instance_id in enumerate(ids):
            moment = datetime(2026, 1, 1, second=number, tzinfo=UTC)
            conn.execute(
                update(instances).where(instances.c.instance_id == instance_id),
                {"created_at": moment},
            )
    shop.edda.cancel("g", session=None)
    return ids


def found_ids(shop: Shop, **filters: Any) -> list[str]:
    return [found.instance_id for found in shop.edda.find_instances(**filters).instances]


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, "gfedcba"),
        ({"status": "cancelled"}, "g"),
        ({"status": ["cancelled", "pending"]}, "gfedcba"),
        ({"status": "completed"}, ""),
        ({"status": []}, ""),
        ({"workflow_name": "refund"}, "gfe"),
        ({"workflow_name": "unknown"}, ""),
        ({"instance_id": "c"}, "c"),
        ({"workflow_name": "refund", "status": "pending"}, "fe"),
        ({"input_filters": {"order_id": 1}}, "ea"),
        ({"input_filters": {"order_id": 1}, "workflow_name": "order"}, "a"),
        ({"input_filters": {"order_id": "1"}}, ""),
        ({"input_filters": {"customer.country": "SE"}}, "ca"),
        ({"input_filters": {"customer.country": "SE", "order_id": 3}}, "c"),
        ({"input_filters": {"customer.vip": True}}, "a"),
        ({"input_filters": {"customer.vip": False}}, "b"),
        ({"input_filters": {"customer.vip": 1}}, "d"),
        ({"input_filters": {"customer.rate": 1.5}}, "d"),
        ({"input_filters": {"customer.tags": ["x", 1]}}, "c"),
        ({"input_filters": {"customer": {"country": "DE", "vip": False}}}, "b"),
        ({"input_filters": {"customer.address.zip code": "1"}}, "c"),
        ({"input_filters": {"customer.country": None}}, "d"),
        ({"input_filters": {"nothing.like.it": 1}}, ""),
        ({"input_filters": {"customer.country": "'; DROP TABLE edda_instances; --"}}, ""),
        ({"input_filters": {"customer.it's \"odd": 1}}, ""),
    ],
    ids=str,
)
def test_find_instances_returns_what_matches_newest_first(shop: Shop, filters: dict[str, Any], expected: str) -> None:
    assert found_ids(shop, **filters) == list(expected)


@pytest.mark.usefixtures("many")
def test_find_instances_pages_through_everything_once(shop: Shop) -> None:
    pages = []
    token = None
    while True:
        page = shop.edda.find_instances(limit=3, page_token=token)
        pages.append([found.instance_id for found in page.instances])
        token = page.next_page_token
        if token is None:
            break

    assert pages == [["g", "f", "e"], ["d", "c", "b"], ["a"]]


@pytest.mark.usefixtures("many")
def test_find_instances_pages_keep_their_place_when_new_ones_start(shop: Shop) -> None:
    first = shop.edda.find_instances(limit=2, workflow_name="order")

    with shop.app.app_context():
        workflows.find("order").options(session=None, instance_id="newer").start(11)  # type: ignore[attr-defined]
    second = shop.edda.find_instances(limit=2, workflow_name="order", page_token=first.next_page_token)

    assert [found.instance_id for found in second.instances] == ["b", "a"]
    assert second.next_page_token is None


def test_find_instances_pages_through_instances_of_one_transaction(shop: Shop) -> None:
    @workflow
    async def order(ctx: WorkflowContext, number: int) -> None: ...

    with shop.app.app_context():
        started = {order.start(number) for number in range(25)}
        shop.session().commit()
    seen: list[str] = []
    token = None
    while True:
        page = shop.edda.find_instances(limit=10, page_token=token)
        seen += [found.instance_id for found in page.instances]
        token = page.next_page_token
        if token is None:
            break

    assert len(seen) == 25
    assert set(seen) == started


def test_find_instances_by_time_includes_the_lower_end_and_excludes_the_upper(shop: Shop, many: list[str]) -> None:
    third = shop.edda.get(many[2]).created_at
    fifth = shop.edda.get(many[4]).created_at

    assert found_ids(shop, started_after=third, started_before=fifth) == ["d", "c"]
    assert found_ids(shop, started_after=fifth + timedelta(days=1)) == []
    in_another_zone = third.astimezone(ZoneInfo("Asia/Tokyo"))
    assert found_ids(shop, started_before=in_another_zone) == ["b", "a"]


def test_find_instances_sees_only_its_own_service(database_url: str) -> None:
    @workflow
    async def order(ctx: WorkflowContext) -> None: ...

    with open_shop(database_url, service_name="shop") as shop, open_shop(database_url, service_name="depot") as depot:
        own = start(shop, order)
        start(depot, order)

        assert found_ids(shop) == [own]


def test_find_instances_does_not_show_an_uncommitted_start(shop: Shop) -> None:
    @workflow
    async def order(ctx: WorkflowContext) -> None: ...

    start(shop, order, instance_id="first")
    with shop.app.app_context():
        order.options(instance_id="second").start()
        uncommitted = found_ids(shop)
        shop.session().commit()

    assert uncommitted == ["first"]
    assert found_ids(shop) == ["second", "first"]


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"status": "done"}, "'done'.*completed"),
        ({"limit": 0}, "between 1 and 1000"),
        ({"limit": 1001}, "between 1 and 1000"),
        ({"page_token": "nonsense"}, "page_token 'nonsense'"),
        ({"started_after": datetime(2030, 1, 1)}, "started_after.*aware"),
    ],
    ids=["status", "limit 0", "limit 1001", "page_token", "naive time"],
)
def test_find_instances_refuses_wrong_filters_with_a_sentence(shop: Shop, filters: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        shop.edda.find_instances(**filters)


def test_get_says_when_no_live_worker_knows_the_workflow(shop: Shop) -> None:
    @workflow
    async def known(ctx: WorkflowContext) -> None: ...

    shop.edda.start_worker()
    snapshot = workflows.snapshot()

    @workflow
    async def newer(ctx: WorkflowContext) -> None: ...

    instance_id = start(shop, newer, delay=3600)
    workflows.restore(snapshot)

    # The worker may have heard of it for a moment, and says within another one that it does not know it any more.
    eventually(lambda: shop.edda.get(instance_id).is_runnable is False)
