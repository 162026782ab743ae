"""The event endpoint: what a sender is told, and what is stored by then."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cloudevents.core.bindings.http import to_binary_event
from flask import Flask
from pydantic import BaseModel, RootModel
from sqlalchemy import make_url
from werkzeug.test import TestResponse, create_environ, run_wsgi_app
from werkzeug.wrappers import Request

from edda_wsgi import EddaFlask, ReceivedEvent, WorkflowContext, wait_event, workflow
from tests.integration.deliveries import (
    ACCEPTED,
    BATCH,
    NOTHING,
    OPEN,
    STRUCTURED,
    attributes_of,
    batch,
    change,
    deliver,
    endpoint,
    event,
    post,
    refusal,
    rows,
    said,
    stored,
)
from tests.integration.flask_apps import LITE, SCOPED_SESSION, SESSIONMAKER, Shop, saved_instances
from tests.support import eventually


@workflow(event_handler=True, name="order.placed")
async def on_order_placed(ctx: WorkflowContext, order_id: int, note: str = "") -> int:
    return order_id


@workflow
async def audit(ctx: WorkflowContext, order_id: int = 0) -> int:
    return order_id


@workflow
async def await_payment(ctx: WorkflowContext) -> dict[str, Any]:
    paid = await wait_event(ctx, "order.paid")
    return {"data": paid.data, "source": paid.source, "id": paid.id, "subject": paid.subject}


class Order(BaseModel):
    order_id: int
    lock_timeout_seconds: float = 0.0


class Lines(RootModel[list[int]]):
    pass


@workflow(event_handler=True, name="order.modelled")
async def on_order_modelled(ctx: WorkflowContext, order: Order) -> int:
    return order.order_id


@workflow(event_handler=True, name="order.lines")
async def on_order_lines(ctx: WorkflowContext, lines: Lines) -> int:
    return sum(lines.root)


def inputs(database_url: str) -> list[tuple[str, Any]]:
    found = rows(database_url, "SELECT workflow_name, input FROM edda_instances ORDER BY created_at, instance_id")
    return [(name, json.loads(given) if isinstance(given, str) else given) for name, given in found]


# Whether there is one.


def test_there_is_no_endpoint_unless_a_prefix_is_set(database_url: str) -> None:
    with endpoint(database_url, {}) as shop:
        assert deliver(shop, event()).status_code == 404
        assert "edda_events" not in shop.app.blueprints


def test_the_endpoint_works_in_a_process_that_only_starts_and_asks(database_url: str) -> None:
    with endpoint(database_url, role="client") as shop:
        assert said(deliver(shop, event("order.placed", {"order_id": 7}))) == ACCEPTED
        assert shop.app.extensions["edda"].is_running is False
    assert inputs(database_url) == [("order.placed", {"order_id": 7, "note": ""})]


def test_a_slash_at_the_end_of_the_prefix_does_not_matter(database_url: str) -> None:
    with endpoint(database_url) as shop:
        answer = post(shop, json.dumps(attributes_of(event())), STRUCTURED, "/events/")
    assert said(answer) == ACCEPTED


# Who gets an event.


@pytest.mark.parametrize("binary", [False, True], ids=["structured", "binary"])
def test_a_workflow_that_handles_events_starts_on_one_of_its_name_with_the_data_as_arguments(
    database_url: str, binary: bool
) -> None:
    with endpoint(database_url) as shop:
        sent = event("order.placed", {"order_id": 7}, datacontenttype="application/json")
        assert said(deliver(shop, sent, binary=binary)) == ACCEPTED

    assert inputs(database_url) == [("order.placed", {"order_id": 7, "note": ""})]
    assert stored(database_url)["edda_messages"] == 0  # it is used up


def test_a_started_workflow_runs_when_there_is_a_worker(database_url: str) -> None:
    with endpoint(database_url) as shop:
        shop.edda.start_worker()
        deliver(shop, event("order.placed", {"order_id": 7}))
        (instance_id,) = saved_instances(database_url)
        assert shop.edda.result(instance_id, timeout=30) == 7


def test_an_event_with_the_name_of_a_workflow_that_does_not_handle_events_starts_nothing(database_url: str) -> None:
    with endpoint(database_url) as shop:
        assert said(deliver(shop, event("audit", {"order_id": 7}))) == ACCEPTED
    assert stored(database_url) == {"edda_instances": 0, "edda_messages": 1, "edda_received_events": 1}


def test_an_event_that_may_start_a_workflow_which_only_workers_know_is_not_given_away(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with endpoint(database_url) as shop:
        shop.edda.start_worker()
        change(database_url, """UPDATE edda_workers SET workflows = '["order.elsewhere", "order.placed"]'""")
        assert refusal(deliver(shop, event("order.elsewhere"))) == (500, "ConfigurationError", True)
        assert stored(database_url) == NOTHING
        assert "WORKFLOWS" in caplog.text
        assert said(deliver(shop, event("order.placed", {"order_id": 7}))) == ACCEPTED
        assert said(deliver(shop, event("order.paid", id="2"))) == ACCEPTED


def test_data_cannot_choose_another_workflow_or_any_option_of_the_start(database_url: str) -> None:
    with endpoint(database_url) as shop:
        for number, name in enumerate(("workflow", "name", "instance_id", "session", "delay", "priority", "service")):
            sent = event("order.placed", {"order_id": 7, name: "audit"}, id=str(number))
            assert refusal(deliver(shop, sent)) == (400, "InvalidInputError", False)
    assert stored(database_url) == NOTHING


def test_the_reserved_keyword_in_data_is_without_effect(database_url: str) -> None:
    with endpoint(database_url) as shop:
        assert said(deliver(shop, event("order.placed", {"order_id": 7, "lock_timeout_seconds": 1}))) == ACCEPTED
        assert (
            said(deliver(shop, event("order.placed", {"order_id": 8, "lock_timeout_seconds": "x"}, id="2"))) == ACCEPTED
        )
    assert [row[0] for row in rows(database_url, "SELECT lock_timeout_seconds FROM edda_instances")] == [300.0, 300.0]


@pytest.mark.parametrize(
    ("event_type", "content", "expected"),
    [
        ("order.modelled", {"order_id": 7}, {"order": {"order_id": 7, "lock_timeout_seconds": 0.0}}),
        ("order.modelled", {"order": {"order_id": 7}}, {"order": {"order_id": 7, "lock_timeout_seconds": 0.0}}),
        (
            "order.modelled",
            {"order_id": 7, "lock_timeout_seconds": 5},
            {"order": {"order_id": 7, "lock_timeout_seconds": 5.0}},
        ),
        ("order.lines", [1, 2, 3], {"lines": [1, 2, 3]}),
    ],
)
def test_the_whole_data_is_the_one_model_parameter(
    database_url: str, event_type: str, content: Any, expected: Any
) -> None:
    with endpoint(database_url) as shop:
        assert said(deliver(shop, event(event_type, content))) == ACCEPTED
    assert inputs(database_url) == [(event_type, expected)]
    assert rows(database_url, "SELECT lock_timeout_seconds FROM edda_instances")[0][0] == 300.0


@pytest.mark.parametrize(
    ("event_type", "content"),
    [
        ("order.placed", {"order_id": "seven"}),
        ("order.placed", {}),
        ("order.placed", None),
        ("order.placed", {"order_id": 7, "colour": "red"}),
        ("order.placed", [7]),
        ("order.placed", "7"),
        ("order.placed", b"\xff"),
        ("order.modelled", {"order_id": "seven"}),
        ("order.modelled", [7]),
        ("order.lines", {"order_id": 7}),
    ],
)
def test_data_that_does_not_fit_the_workflow_is_refused(database_url: str, event_type: str, content: Any) -> None:
    with endpoint(database_url) as shop:
        assert refusal(deliver(shop, event(event_type, content))) == (400, "InvalidInputError", False)
    assert stored(database_url) == NOTHING


def test_any_other_event_goes_to_the_instances_that_wait_for_it(database_url: str) -> None:
    with endpoint(database_url) as shop:
        shop.edda.start_worker()
        with shop.app.app_context():
            ids = [await_payment.options(session=None).start() for _ in range(3)]
        eventually(lambda: all(shop.edda.get(each).status == "waiting_for_event" for each in ids))

        assert said(deliver(shop, event("order.paid", {"sum": 5}, subject="order 7"))) == ACCEPTED

        expected = {"data": {"sum": 5}, "source": "/till", "id": "event-1", "subject": "order 7"}
        assert [shop.edda.result(each, timeout=30) for each in ids] == [expected] * 3


def test_an_event_for_one_instance_goes_to_it_alone_even_if_it_waits_only_later(database_url: str) -> None:
    with endpoint(database_url) as shop:
        with shop.app.app_context():
            first, second = (await_payment.options(session=None).start() for _ in range(2))

        assert said(deliver(shop, event("order.paid", 1, eddainstanceid=first), binary=True)) == ACCEPTED

        shop.edda.start_worker()
        assert shop.edda.result(first, timeout=30)["data"] == 1
        eventually(lambda: shop.edda.get(second).status == "waiting_for_event")
        assert shop.edda.history(second) == []


def test_an_event_for_one_instance_starts_no_workflow_of_its_name(database_url: str) -> None:
    with endpoint(database_url) as shop:
        with shop.app.app_context():
            waiting = await_payment.options(session=None).start()
        assert said(deliver(shop, event("order.placed", {"order_id": 7}, eddainstanceid=waiting))) == ACCEPTED
    assert saved_instances(database_url) == [waiting]
    assert rows(database_url, "SELECT addressee FROM edda_messages") == [(waiting,)]


def test_an_event_for_an_instance_that_does_not_exist_is_refused(database_url: str) -> None:
    with endpoint(database_url) as shop:
        answer = deliver(shop, event("order.paid", eddainstanceid="nobody"))
        assert refusal(answer) == (400, "InstanceNotFoundError", False)
    assert stored(database_url) == NOTHING


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_an_event_for_an_instance_that_has_ended_is_accepted_and_does_nothing(database_url: str, status: str) -> None:
    with endpoint(database_url) as shop:
        with shop.app.app_context():
            ended = await_payment.options(session=None).start()
        change(database_url, f"UPDATE edda_instances SET status = '{status}', wake_at = NULL")
        assert said(deliver(shop, event("order.paid", eddainstanceid=ended))) == ACCEPTED
    assert stored(database_url) == {"edda_instances": 1, "edda_messages": 0, "edda_received_events": 1}


def test_an_event_for_a_run_that_has_recurred_is_kept_for_its_successors(database_url: str) -> None:
    with endpoint(database_url) as shop:
        with shop.app.app_context():
            before = await_payment.options(session=None).start()
        change(database_url, "UPDATE edda_instances SET status = 'recurred', wake_at = NULL")
        assert said(deliver(shop, event("order.paid", eddainstanceid=before))) == ACCEPTED
    assert rows(database_url, "SELECT addressee FROM edda_messages") == [(before,)]


@pytest.mark.parametrize("content", [None, 0, "", "ü€😀", [], {"a": [1.5, True, None]}, 2**80, b"", b"\x00\xff"])
def test_the_data_of_an_event_may_be_any_json_value_or_bytes(database_url: str, content: Any) -> None:
    with endpoint(database_url) as shop:
        with shop.app.app_context():
            waiting = take_anything.options(session=None).start()
        assert said(deliver(shop, event("anything", content, eddainstanceid=waiting))) == ACCEPTED
        shop.edda.start_worker()
        assert shop.edda.result(waiting, timeout=30) == repr(content)


@workflow
async def take_attributes(ctx: WorkflowContext) -> list[Any]:
    found: ReceivedEvent[Any] = await wait_event(ctx, "anything")
    return [found.id, found.time, found.datacontenttype, found.subject]


def test_attributes_that_an_event_has_not_are_not_made_up(sqlite_url: str) -> None:
    with endpoint(sqlite_url) as shop:
        with shop.app.app_context():
            waiting = take_attributes.options(session=None).start()
        bare = {"specversion": "1.0", "id": "1", "source": "/till", "type": "anything", "eddainstanceid": waiting}
        assert said(post(shop, json.dumps({**bare, "data": 5}), STRUCTURED)) == ACCEPTED
        shop.edda.start_worker()
        assert shop.edda.result(waiting, timeout=30) == ["1", None, None, None]


@workflow
async def take_anything(ctx: WorkflowContext) -> str:
    found: ReceivedEvent[Any] = await wait_event(ctx, "anything")
    return repr(found.data)


# Once.


def test_a_redelivery_is_accepted_again_and_does_nothing_twice(database_url: str) -> None:
    with endpoint(database_url) as shop:
        placed, paid = event("order.placed", {"order_id": 7}), event("order.paid", id="event-2")
        for sent in (placed, paid, placed, paid):
            assert said(deliver(shop, sent)) == ACCEPTED
    assert stored(database_url) == {"edda_instances": 1, "edda_messages": 1, "edda_received_events": 2}


def test_the_same_id_from_another_source_is_another_event(database_url: str) -> None:
    with endpoint(database_url) as shop:
        deliver(shop, event("order.placed", {"order_id": 7}))
        deliver(shop, event("order.placed", {"order_id": 7}, source="/web"))
    assert stored(database_url)["edda_instances"] == 2


def test_long_sources_and_ids_that_differ_at_their_end_are_told_apart(database_url: str) -> None:
    with endpoint(database_url) as shop:
        for ending in ("a", "b", "a"):
            sent = event("order.placed", {"order_id": 7}, source="/" + "s" * 1500 + ending, id="i" * 1500)
            assert said(deliver(shop, sent)) == ACCEPTED
    assert stored(database_url)["edda_instances"] == 2


def test_of_deliveries_that_race_one_does_what_the_event_says(database_url: str) -> None:
    with endpoint(database_url) as shop:
        shop.app.extensions["edda"].tables.ensure()
        together = threading.Barrier(6)

        def race(_number: int) -> list[tuple[int, Any]]:
            answers = []
            for round_number in range(5):
                together.wait(20)
                answers.append(said(deliver(shop, event("order.placed", {"order_id": 7}, id=f"round {round_number}"))))
            return answers

        with ThreadPoolExecutor(6) as pool:
            answers = [answer for some in pool.map(race, range(6)) for answer in some]
    assert answers == [ACCEPTED] * 30
    assert stored(database_url) == {"edda_instances": 5, "edda_messages": 0, "edda_received_events": 5}


def test_batches_with_the_same_events_in_opposite_order_do_not_lock_each_other_out(database_url: str) -> None:
    with endpoint(database_url) as shop:
        shop.app.extensions["edda"].tables.ensure()
        together = threading.Barrier(4)
        sent = [event("order.placed", {"order_id": n}, id=f"{n:02}") for n in range(20)]

        def race(number: int) -> tuple[int, Any]:
            together.wait(20)
            return said(deliver(shop, batch(*(sent if number % 2 else reversed(sent)))))

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(race, range(4)))
    assert answers == [ACCEPTED] * 4
    assert stored(database_url)["edda_instances"] == 20


def test_an_event_is_forgotten_when_its_time_is_over_and_the_rows_go_with_later_events(database_url: str) -> None:
    with endpoint(database_url, {**OPEN, "DEDUPLICATION_DAYS": 1}) as shop:
        for number in range(5):
            deliver(shop, event("order.placed", {"order_id": 7}, id=str(number)))
        change(
            database_url, "UPDATE edda_received_events SET expires_at = '2001-01-01 00:00:00.000' WHERE event_id < '4'"
        )

        assert said(deliver(shop, event("order.placed", {"order_id": 7}, id="0"))) == ACCEPTED  # happens again
        assert said(deliver(shop, event("order.placed", {"order_id": 7}, id="4"))) == ACCEPTED  # does not

    assert stored(database_url)["edda_instances"] == 6
    assert [row[0] for row in rows(database_url, "SELECT event_id FROM edda_received_events ORDER BY 1")] == ["0", "4"]


def test_a_service_that_gets_batches_forgets_more_events_than_come(sqlite_url: str) -> None:
    many = 60
    with endpoint(sqlite_url, {**OPEN, "DEDUPLICATION_DAYS": 1}) as shop:
        for number in range(4):
            deliver(shop, batch(*(event("order.paid", id=f"{number}-{each}") for each in range(many))))
            change(sqlite_url, "UPDATE edda_received_events SET expires_at = '2001-01-01 00:00:00.000'")
        deliver(shop, event("order.paid", id="last"))
    assert rows(sqlite_url, "SELECT count(*) FROM edda_received_events")[0][0] <= 2 * many


@pytest.fixture
def two_services(database_url: str) -> Iterator[tuple[Shop, Shop]]:
    """Of one database; each starts its own workflow when an order is placed."""
    with (
        endpoint(database_url, name="shop", service_name="shop") as shop,
        endpoint(database_url, name="billing", service_name="billing") as billing,
    ):
        yield shop, billing


def test_each_of_two_services_on_a_database_starts_and_calls_what_is_its_own(
    database_url: str, two_services: tuple[Shop, Shop]
) -> None:
    called = []
    for number, service in enumerate(two_services):
        service.edda.on_event("order.placed")(lambda _, number=number: called.append(number))
    for service in (*two_services, *two_services):
        assert said(deliver(service, event("order.placed", {"order_id": 7}))) == ACCEPTED
    started = rows(database_url, "SELECT service FROM edda_instances ORDER BY service")
    assert ([row[0] for row in started], called) == (["billing", "shop"], [0, 1])


def test_an_event_delivered_to_two_services_reaches_who_waits_once(
    database_url: str, two_services: tuple[Shop, Shop]
) -> None:
    called = []
    two_services[1].edda.on_event("order.paid")(lambda received: called.append(received.id))
    for service in two_services:
        assert said(deliver(service, batch(event("order.paid"), event("order.paid", id="event-2")))) == ACCEPTED
    sent = rows(database_url, "SELECT CAST(metadata AS TEXT) FROM edda_messages ORDER BY seq")
    assert [json.loads(row[0])["id"] for row in sent] == ["event-1", "event-2"]
    assert called == ["event-1", "event-2"]


# Batches.


def test_a_batch_is_one_transaction(database_url: str) -> None:
    with endpoint(database_url) as shop:
        several = [event("order.placed", {"order_id": n}, id=str(n)) for n in range(3)]
        assert said(deliver(shop, batch(*several, event("order.paid", id="3"), several[0]))) == ACCEPTED
        assert stored(database_url) == {"edda_instances": 3, "edda_messages": 1, "edda_received_events": 4}

        wrong = event("order.placed", {"order_id": "x"}, id="5")
        answer = deliver(shop, batch(event("order.paid", id="4"), wrong))
        assert refusal(answer) == (400, "InvalidInputError", False)
        assert "event 1 of the batch" in answer.get_json()["error"]
        unknown = event("order.paid", id="6", eddainstanceid="nobody")
        answer = deliver(shop, batch(event("order.paid", id="4"), unknown))
        assert refusal(answer)[1] == "InstanceNotFoundError"
        assert "event 1 of the batch" in answer.get_json()["error"]
    assert stored(database_url) == {"edda_instances": 3, "edda_messages": 1, "edda_received_events": 4}


def test_the_events_of_a_batch_are_sent_in_its_order(database_url: str) -> None:
    ids = [str(number) for number in (5, 3, 9, 1)]
    with endpoint(database_url) as shop:
        deliver(shop, batch(*(event("order.paid", id=each) for each in ids)))
    found = rows(database_url, "SELECT metadata FROM edda_messages ORDER BY seq")
    assert [(json.loads(each) if isinstance(each, str) else each)["id"] for (each,) in found] == ids


def test_an_empty_batch_is_accepted(database_url: str) -> None:
    with endpoint(database_url) as shop:
        assert said(post(shop, "[]", BATCH)) == ACCEPTED
    assert stored(database_url) == NOTHING


# What is refused.


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b"hello"),
        ({"Content-Type": "application/json"}, b"{}"),
        ({"Content-Type": "text/plain"}, b""),
        ({"Content-Type": "application/cloudevents+xml"}, b"<event/>"),
        ({"Content-Type": "application/cloudevents"}, b"{}"),
        ({**STRUCTURED, "Content-Encoding": "gzip"}, b"\x1f\x8b"),
        ({"Content-Type": "application/cloudevents+json; charset=utf-16"}, b"{}"),
    ],
)
def test_what_is_no_cloud_event_is_not_supported(database_url: str, headers: dict[str, str], body: bytes) -> None:
    with endpoint(database_url) as shop:
        assert refusal(post(shop, body, headers)) == (415, "UnsupportedMediaTypeError", False)
    assert stored(database_url) == NOTHING


def test_a_giant_is_not_read_to_its_end(database_url: str) -> None:
    with endpoint(database_url, {**OPEN, "MAX_BYTES": 1000}) as shop:
        body = json.dumps(attributes_of(event(content="x" * 1000)))
        assert refusal(post(shop, body, STRUCTURED)) == (413, "PayloadTooLargeError", False)

        # Also one that does not say how long it is.
        endless = _Endless(b'{"specversion": "1.0", ')
        answer = as_a_server_would(shop, STRUCTURED, endless, {"wsgi.input_terminated": True})
        assert refusal(answer) == (413, "PayloadTooLargeError", False)
        assert endless.count < 100_000
    assert stored(database_url) == NOTHING


def as_a_server_would(shop: Shop, headers: dict[str, str], stream: Any, environ: dict[str, Any]) -> TestResponse:
    """Deliver a body that is read from the connection, with or without a length that is known beforehand."""
    environ = create_environ("/events", method="POST", headers=headers) | {"wsgi.input": stream} | environ
    return TestResponse(*run_wsgi_app(shop.app, environ), request=Request(environ))


class _Endless:
    """A body that goes on for ever."""

    def __init__(self, beginning: bytes) -> None:
        self._beginning, self.count = beginning, 0

    def read(self, size: int = -1) -> bytes:
        assert size > 0, "nobody may ask for all of it"
        found, self._beginning = self._beginning.ljust(size)[:size], b""
        self.count += size
        return found


def test_a_body_of_just_the_limit_is_read(database_url: str) -> None:
    body = json.dumps(attributes_of(event(content="x")))
    with endpoint(database_url, {**OPEN, "MAX_BYTES": len(body)}) as shop:
        assert said(post(shop, body, STRUCTURED)) == ACCEPTED
        assert refusal(post(shop, body + " ", STRUCTURED))[0] == 413


def test_an_event_larger_than_a_payload_may_be_is_a_giant_too(database_url: str) -> None:
    with endpoint(database_url, max_payload_bytes=100) as shop:
        assert refusal(deliver(shop, event("order.paid", "x" * 100))) == (413, "PayloadError", False)
        started = deliver(shop, event("order.placed", {"order_id": 1, "note": "x" * 100}))
        assert refusal(started) == (413, "InvalidInputError", False)
    assert stored(database_url) == NOTHING


@pytest.mark.parametrize("environ", [{}, {"wsgi.input_terminated": True}], ids=["open", "terminated"])
def test_a_body_that_ends_too_early_is_refused(database_url: str, environ: dict[str, Any]) -> None:
    with endpoint(database_url) as shop:
        sent = to_binary_event(event(content=b"half of it", datacontenttype="application/octet-stream"))
        environ |= {"CONTENT_LENGTH": str(len(sent.body) + 1)}
        answer = as_a_server_would(shop, sent.headers, io.BytesIO(sent.body), environ)
        assert refusal(answer) == (400, "InvalidRequestError", False)
    assert stored(database_url) == NOTHING


# When something is wrong here.


def test_an_event_that_was_not_committed_is_not_acknowledged(database_url: str) -> None:
    def fail_once(name: str) -> None:
        if name == "events.before_commit" and failures:
            failures.pop()
            raise RuntimeError("cut off")

    failures = [1]
    with endpoint(database_url, probe=fail_once) as shop:
        assert refusal(deliver(shop, event("order.placed", {"order_id": 7}))) == (500, "RuntimeError", True)
        assert stored(database_url) == NOTHING
        assert said(deliver(shop, event("order.placed", {"order_id": 7}))) == ACCEPTED
    assert stored(database_url)["edda_instances"] == 1


def test_a_lost_acknowledgement_and_its_redelivery_do_nothing_twice(database_url: str) -> None:
    def fail_once(name: str) -> None:
        if name == "events.after_commit" and failures:
            failures.pop()
            raise RuntimeError("cut off")

    failures = [1]
    with endpoint(database_url, probe=fail_once) as shop:
        assert refusal(deliver(shop, event("order.placed", {"order_id": 7}))) == (500, "RuntimeError", True)
        assert said(deliver(shop, event("order.placed", {"order_id": 7}))) == ACCEPTED
    assert stored(database_url) == {"edda_instances": 1, "edda_messages": 0, "edda_received_events": 1}


def test_while_the_database_does_not_answer_the_sender_is_told_to_come_again(
    database_url: str, postgres_admin_url: str
) -> None:
    with endpoint(database_url) as shop:
        assert said(deliver(shop, event(id="before"))) == ACCEPTED
        with shop.app.app_context():
            shop.engine.dispose()
        with away(database_url, postgres_admin_url):
            answer = deliver(shop, event("order.placed", {"order_id": 7}))
            assert refusal(answer) == (503, "DatabaseUnavailableError", True)
            assert answer.headers["Retry-After"] == "1"
            cancelled = post(shop, b"", {}, "/events/cancel/anything")
            assert refusal(cancelled) == (503, "DatabaseUnavailableError", True)
        assert said(deliver(shop, event("order.placed", {"order_id": 7}))) == ACCEPTED
    assert stored(database_url)["edda_instances"] == 1


class away:
    """The database takes no connections inside the block."""

    def __init__(self, database_url: str, admin_url: str) -> None:
        self._url, self._admin_url = make_url(database_url), admin_url

    def __enter__(self) -> None:
        if self._url.get_backend_name() == "sqlite":
            path = Path(str(self._url.database))
            path.rename(path.with_suffix(".away"))
            path.mkdir()
        else:
            self._allow("false")

    def __exit__(self, *_: object) -> None:
        if self._url.get_backend_name() == "sqlite":
            path = Path(str(self._url.database))
            path.rmdir()
            path.with_suffix(".away").rename(path)
        else:
            self._allow("true")

    def _allow(self, word: str) -> None:
        with psycopg.connect(self._admin_url, autocommit=True) as conn:
            conn.execute(f'ALTER DATABASE "{self._url.database}" ALLOW_CONNECTIONS {word}')


def test_what_fails_here_is_logged_and_not_told_to_the_sender(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with endpoint(database_url, workflows=["no_such_module_of_the_shop"]) as shop:
        answer = deliver(shop, event())
    assert refusal(answer) == (500, "ConfigurationError", True)
    assert "no_such_module_of_the_shop" not in answer.get_json()["error"]
    assert "no_such_module_of_the_shop" in caplog.text


# The session of the request.


@pytest.mark.parametrize("kind", ["flask-sqlalchemy", LITE, SCOPED_SESSION, SESSIONMAKER])
def test_the_endpoint_leaves_the_session_of_the_request_alone(database_url: str, kind: str) -> None:
    with endpoint(database_url, kind=kind) as shop:
        seen = []

        @shop.app.after_request
        def look(response: Any) -> Any:
            if kind != SESSIONMAKER:
                session = shop.db.session() if kind == "flask-sqlalchemy" else shop.session()
                seen.append((session.in_transaction(), list(session.new), list(session.dirty)))
            return response

        assert said(deliver(shop, event("order.placed", {"order_id": 7}))) == ACCEPTED
        assert refusal(deliver(shop, event("order.placed", {}, id="2")))[0] == 400
    assert seen == ([] if kind == SESSIONMAKER else [(False, [], [])] * 2)
    assert stored(database_url)["edda_instances"] == 1


def test_the_endpoint_needs_no_db_and_no_session(tmp_path: Path, database_url: str) -> None:
    app = Flask("plain")
    app.testing = True
    edda = EddaFlask(app, database_url=database_url, events=dict(OPEN))
    message = attributes_of(event("order.placed", {"order_id": 7}))
    answer = app.test_client().post("/events", data=json.dumps(message), headers=STRUCTURED)
    edda.shutdown()
    assert said(answer) == ACCEPTED
    assert inputs(database_url) == [("order.placed", {"order_id": 7, "note": ""})]


# Cancelling.


def test_an_instance_is_cancelled_by_its_id(database_url: str) -> None:
    with endpoint(database_url) as shop:
        with shop.app.app_context():
            waiting = await_payment.options(session=None, instance_id="order/7").start()
        answer = post(shop, b'{"reason": "gone"}', {"Content-Type": "application/json"}, f"/events/cancel/{waiting}")
        assert said(answer) == ACCEPTED
        found = shop.edda.get(waiting)
        assert (found.status, found.cancel_reason) == ("cancelled", "gone")
        assert said(post(shop, b"", {}, f"/events/cancel/{waiting}")) == (200, {"status": "ended already"})


@pytest.mark.parametrize("instance_id", ["nobody", "%00", "%ED%A0%80", "x" * 300, "';DROP TABLE edda_instances;--"])
def test_an_instance_that_does_not_exist_cannot_be_cancelled(database_url: str, instance_id: str) -> None:
    with endpoint(database_url) as shop:
        answer = post(shop, b"", {}, f"/events/cancel/{instance_id}")
        assert refusal(answer) == (404, "InstanceNotFoundError", False)


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b'{"reason": 5}', b'{"reason": "\\u0000"}', b'{"reason": "\\ud800"}', b"\xff"]
)
def test_a_cancellation_with_a_garbled_body_is_refused(database_url: str, body: bytes) -> None:
    with endpoint(database_url) as shop:
        with shop.app.app_context():
            waiting = await_payment.options(session=None).start()
        assert refusal(post(shop, body, {}, f"/events/cancel/{waiting}"))[0::2] == (400, False)
        assert shop.edda.get(waiting).status == "pending"


# Names.


@pytest.mark.parametrize("word", ["'; DROP TABLE edda_instances; --", '"', "%s", ":name", "\\", "ü€😀", "a\u202eb"])
def test_no_name_in_an_event_is_anything_but_a_name(database_url: str, word: str) -> None:
    with endpoint(database_url) as shop:
        sent = event(word, {word: word}, source=word, id=word, subject=word, extension=word)
        assert said(deliver(shop, sent)) == ACCEPTED
        assert said(deliver(shop, sent, binary=True)) == ACCEPTED  # the same event
        assert refusal(deliver(shop, event(word, eddainstanceid=word))) == (400, "InstanceNotFoundError", False)
    assert rows(database_url, "SELECT name FROM edda_messages") == [(word,)]
    assert rows(database_url, "SELECT DISTINCT source, event_id FROM edda_received_events") == [(word, word)]
