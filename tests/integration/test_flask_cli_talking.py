"""``flask edda send-event``: who gets the event, and what is said when it cannot be sent; and how history words what came."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from edda_engine import Status
from edda_wsgi import (
    EventTimeoutError,
    SyncWorkflowContext,
    WorkflowContext,
    publish,
    receive,
    send_event,
    sleep,
    subscribe,
    wait_event,
    workflow,
)
from tests.integration.flask_apps import Shop, open_shop
from tests.integration.test_flask_cli import assert_one_clear_line, cli, cli_json, start
from tests.support import eventually


@pytest.fixture
def shop(database_url: str) -> Iterator[Shop]:
    with open_shop(database_url) as opened:
        yield opened


def declare() -> Any:
    @workflow
    async def order(ctx: WorkflowContext, number: int) -> list[Any]:
        event = await wait_event(ctx, "paid")
        return [number, event.source, event.data]

    return order


def start_waiting(shop: Shop, declared: Any, *args: Any, **options: Any) -> str:
    """Start an instance, and come back when it waits."""
    shop.edda.start_worker()
    instance_id = start(shop, declared, *args, **options)
    eventually(lambda: shop.edda.get(instance_id).status == Status.WAITING_FOR_EVENT)
    return instance_id


def test_send_event_reaches_every_instance_that_waits_for_its_type(shop: Shop) -> None:
    order = declare()
    waiting = [start_waiting(shop, order, number) for number in (1, 2)]

    done = cli(shop, "send-event", "paid", "--data", '{"amount": 5}', "--source", "bank")

    assert done.exit_code == 0
    assert re.fullmatch(r"[0-9a-f-]{32,36}\n", done.stdout)
    assert [shop.edda.result(instance_id, timeout=20) for instance_id in waiting] == [
        [1, "bank", {"amount": 5}],
        [2, "bank", {"amount": 5}],
    ]


def test_send_event_with_an_instance_reaches_that_one_even_if_it_waits_only_later(shop: Shop) -> None:
    order = declare()
    other = start_waiting(shop, order, 1)
    start(shop, order, 2, instance_id="order-2", delay=0.2)

    cli(shop, "send-event", "paid", "--instance", "order-2", "--data", "[1, null]")

    assert shop.edda.result("order-2", timeout=20) == [2, "flask edda", [1, None]]
    assert shop.edda.get(other).status == Status.WAITING_FOR_EVENT


def test_send_event_without_data_sends_null(shop: Shop) -> None:
    instance_id = start_waiting(shop, declare(), 1)

    cli(shop, "send-event", "paid")

    assert shop.edda.result(instance_id, timeout=20) == [1, "flask edda", None]


def test_send_event_as_json_prints_an_object_also_on_a_new_database(shop: Shop) -> None:
    told = cli_json(shop, "send-event", "paid")

    assert list(told) == ["event_id"]


@pytest.mark.parametrize("given", ["order=7", "{'a': 1}", "", "{", "NaN", '{"a": -Infinity}', "[" * 100_000])
def test_send_event_with_data_that_is_no_json_shows_an_example(shop: Shop, given: str) -> None:
    done = cli(shop, "send-event", "paid", "--data", given)

    assert done.exit_code != 0
    assert done.stdout == ""
    assert "not JSON" in done.stderr
    assert "--data '{\"order_id\": 7}'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["paid", "--instance", "nobody"], "There is no workflow instance 'nobody'"),
        ([""], "event_type=''.*1 to 255"),
        (["paid", "--source", ""], "source=''"),
        (["paid", "--data", '"\\u0000"'], "NUL"),
        (["paid", "--data", '"\\ud800"'], "surrogate"),
    ],
)
def test_send_event_that_cannot_be_sent_is_one_clear_line(shop: Shop, arguments: list[str], said: str) -> None:
    assert_one_clear_line(cli(shop, "send-event", *arguments), said)


def test_send_event_with_data_beyond_the_limit_is_one_clear_line(database_url: str) -> None:
    with open_shop(database_url, max_payload_bytes=100) as shop:
        done = cli(shop, "send-event", "paid", "--data", json.dumps("x" * 200))

    assert_one_clear_line(done, "MAX_PAYLOAD_BYTES|100 bytes")


def test_list_says_until_when_an_instance_waits(shop: Shop) -> None:
    @workflow
    async def patient(ctx: WorkflowContext) -> None:
        await wait_event(ctx, "paid", timeout_seconds=3600)

    start_waiting(shop, patient)

    (row,) = cli(shop, "list").stdout.splitlines()[1:]

    assert re.search(r"waiting_for_event .* until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC$", row)


def test_show_tells_what_was_waited_for(shop: Shop) -> None:
    @workflow
    def talk(ctx: SyncWorkflowContext) -> None:
        subscribe(ctx, "news")
        publish(ctx, "news", {"headline": "rain"})
        receive(ctx, "news")
        send_event("greeting", "talk", b"\x00", instance_id=ctx.instance_id)
        wait_event(ctx, "greeting")
        sleep(ctx, 0)
        try:
            wait_event(ctx, "nothing", timeout_seconds=0)
        except EventTimeoutError:
            ctx.first_of(lambda: sleep(ctx, 0), lambda: wait_event(ctx, "nothing"))

    shop.edda.start_worker()
    instance_id = start(shop, talk)
    shop.edda.result(instance_id, timeout=20)

    printed = cli(shop, "show", instance_id).stdout

    told = dict(re.findall(r" s  \+  (\S+) +(.*)", printed))
    assert told["subscribe:1"] == '{"channel": "news", "mode": "broadcast"}'
    assert told["receive:1"] == 'news {"headline": "rain"}'
    assert told["wait_event:1"] == "greeting some bytes"
    assert told["sleep:1"] == "time is up"
    assert told["wait_event:2"] == "nothing came in time"
    assert told["ctx.first_of:1"] == "0"
