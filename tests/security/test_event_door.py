"""What somebody who may deliver, or anybody if AUTH is None, can send to the event endpoint to exhaust or to fool it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from flask import request
from werkzeug.test import TestResponse, create_environ, run_wsgi_app
from werkzeug.wrappers import Request

from edda_wsgi import WorkflowContext, workflow
from edda_wsgi.incoming import read_events
from edda_wsgi.intake import UnacceptableError
from tests.integration.deliveries import (
    ACCEPTED,
    BATCH,
    NOTHING,
    OPEN,
    STRUCTURED,
    attributes_of,
    endpoint,
    event,
    post,
    refusal,
    said,
    stored,
)
from tests.integration.flask_apps import Shop

TOO_LARGE = (413, "PayloadTooLargeError", False)
INVALID = (400, "InvalidEventError", False)


@workflow(name="order.waits")
async def order_waits(ctx: WorkflowContext) -> None:
    pass


@pytest.fixture
def shop(sqlite_url: str) -> Iterator[Shop]:
    with endpoint(sqlite_url, {**OPEN, "MAX_BYTES": 20_000_000}) as shop:
        yield shop


# Giants.


@pytest.mark.parametrize("each", [{}, attributes_of(event())], ids=["nothing", "an event"])
def test_a_batch_of_a_hundred_thousand_events_is_refused_before_any_of_them_is_looked_at(
    shop: Shop, each: dict[str, Any]
) -> None:
    body = "[" + ",".join([json.dumps(each)] * 100_000) + "]"
    assert refusal(post(shop, body, BATCH)) == TOO_LARGE
    assert stored(shop.database_url) == NOTHING


def test_a_batch_of_just_the_limit_is_taken(sqlite_url: str) -> None:
    three = [attributes_of(event(id=str(number))) for number in range(3)]
    with endpoint(sqlite_url, {**OPEN, "MAX_BATCH": 3}) as shop:
        assert refusal(post(shop, json.dumps([*three, attributes_of(event(id="4"))]), BATCH)) == TOO_LARGE
        assert stored(sqlite_url)["edda_messages"] == 0
        assert said(post(shop, json.dumps(three), BATCH)) == ACCEPTED
    assert stored(sqlite_url)["edda_messages"] == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({f"a{number}": "x" for number in range(300)}, "attributes, more than 256"),
        ({"a" * 256: "x"}, "is too long"),
        ({"subject": "x" * 2001}, "1 to 2000 characters"),
        ({"time": "2020-01-01T00:00:00." + "9" * 100_000 + "Z"}, "RFC 3339"),
        ({"datacontenttype": "a/b" + ";a=b" * 100_000, "data_base64": "AAAA"}, "1 to 2000 characters"),
        ({"extension": 2**31}, "32 bits"),
        ({"extension": 10**4000}, "32 bits"),
        ({"extension": [1]}, "32 bits"),
        ({"id": "x" * 2001}, "1 to 2000 characters"),
        ({"type": "x" * 256}, "1 to 255 characters"),
        ({"eddainstanceid": "x" * 256}, "1 to 255 characters"),
    ],
    ids=lambda value: None,
)
def test_attributes_are_few_and_short(changes: dict[str, Any], words: str) -> None:
    attributes = {name: value for name, value in attributes_of(event()).items() if name != "data"}
    with pytest.raises(UnacceptableError, match=words) as caught:
        read_events(STRUCTURED, json.dumps({**attributes, **changes}).encode())
    assert len(str(caught.value)) <= 1000


def test_a_media_type_that_is_too_long_is_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes time that grows with the square of its length."""
    read: list[str] = []
    monkeypatch.setattr(
        "edda_wsgi.incoming.parse_options_header", lambda given: read.append(given) or ("text/plain", {})
    )
    attributes = {**attributes_of(event()), "datacontenttype": "a/b" + ";a=b" * 1000, "data_base64": "AAAA"}
    with pytest.raises(UnacceptableError):
        read_events(BATCH, json.dumps([attributes]).encode())
    assert [given for given in read if len(given) > 2000] == []


def test_attributes_count_as_payload_too(sqlite_url: str) -> None:
    with endpoint(sqlite_url, max_payload_bytes=1000) as shop:
        sent = {**attributes_of(event()), **{f"a{number}": "x" * 400 for number in range(3)}}
        assert refusal(post(shop, json.dumps(sent), STRUCTURED)) == (413, "PayloadError", False)
    assert stored(sqlite_url) == NOTHING


BOMBS = {
    "deep lists": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "lists that never end": "[" * 1_000_000,
    "a long integer": "9" * 1_000_000,
    "a long negative integer": "-" + "9" * 4301,
    "a large float": "1e999999999",
    "a long fraction": "0." + "9" * 1_000_000 + "e9999",
    "a NUL": '"\\u0000"',
    "half a pair": '"\\ud800"',
    "a key twice": '{"a": 1, "a": 2}',
    "NaN": "NaN",
}
REFUSED_BY_READING = {"deep lists", "deep objects", "lists that never end", "a long integer", "a long negative integer",
                      "a large float", "a long fraction", "a key twice", "NaN"}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_for_a_reader_of_json_is_refused_in_every_mode(shop: Shop, name: str) -> None:
    whole = json.dumps(attributes_of(event()))[:-1] + f', "data": {BOMBS[name]}}}'
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/till", "ce-type": "order.paid"}
    for body, sent in (
        (whole, STRUCTURED),
        (f"[{whole}]", BATCH),
        (BOMBS[name], {**headers, "Content-Type": "text/json"}),
    ):
        status, error_type, is_retryable = refusal(post(shop, body, sent))
        assert (status, is_retryable) == (400, False)
        assert error_type == ("InvalidEventError" if name in REFUSED_BY_READING else "PayloadError")
    assert stored(shop.database_url) == NOTHING


# Bodies that cannot be read.


def test_a_body_in_chunks_is_refused_where_the_server_does_not_read_them(shop: Shop) -> None:
    """It would look like an event without data, and be acknowledged."""
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/till", "ce-type": "order.paid"}
    environ = create_environ("/events", method="POST", headers={**headers, "Transfer-Encoding": "chunked"})
    environ.pop("CONTENT_LENGTH", None)
    environ["wsgi.input"] = io.BytesIO(b"5\r\n12345\r\n0\r\n\r\n")
    answer = TestResponse(*run_wsgi_app(shop.app, environ), request=Request(environ))
    assert refusal(answer) == (411, "InvalidRequestError", False)
    assert stored(shop.database_url) == NOTHING

    environ |= {"wsgi.input": io.BytesIO(b"12345"), "wsgi.input_terminated": True, "CONTENT_TYPE": "application/json"}
    assert said(TestResponse(*run_wsgi_app(shop.app, environ), request=Request(environ))) == ACCEPTED


def test_a_body_that_the_application_has_used_up_is_not_taken_for_an_empty_one(shop: Shop) -> None:
    @shop.app.before_request
    def look_into_the_form() -> None:
        request.form.get("order")

    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/till", "ce-type": "order.paid"}
    sent = {**headers, "Content-Type": "application/x-www-form-urlencoded"}
    assert refusal(post(shop, b"order=7", sent)) == (500, "ConfigurationError", True)
    assert stored(shop.database_url) == NOTHING
    assert said(post(shop, b"7", {**headers, "Content-Type": "application/json"})) == ACCEPTED


def test_the_limit_of_the_application_for_bodies_holds_as_well(shop: Shop) -> None:
    shop.app.config["MAX_CONTENT_LENGTH"] = 10
    assert refusal(post(shop, json.dumps(attributes_of(event())), STRUCTURED)) == TOO_LARGE
    assert stored(shop.database_url) == NOTHING


# Cancelling: whatever an id looks like, it is that instance and no other.

ODD_IDS = ["/x", "//x", "x/", "x//y", ".", "..", "../x", "./x", "x?y=1", "x#y", "%2Fx", "%00", "x y", "x;y", "x\\y", "ü",
           "a\u0301", "\u202e", "cancel/x", "'; DROP TABLE edda_instances; --", "<script>", "{{x}}", "x" * 255]  # fmt: skip


@pytest.mark.parametrize("instance_id", ODD_IDS)
def test_an_instance_with_an_odd_id_is_cancelled_and_no_other(shop: Shop, instance_id: str) -> None:
    looks_like_it = {"x", "x/y", "x/x", instance_id.strip("/"), instance_id.replace("//", "/"), quote(instance_id)}
    others = sorted(other for other in looks_like_it - {instance_id} if len(other) <= 255)
    with shop.app.app_context():
        for each in [instance_id, *others]:
            order_waits.options(session=None, instance_id=each).start()
    answer = post(shop, b"", {}, "/events/cancel/" + quote(instance_id, safe=""))
    assert said(answer) == ACCEPTED
    assert shop.edda.get(instance_id).status == "cancelled"
    assert {shop.edda.get(other).status for other in others} <= {"pending"}


@pytest.mark.parametrize(
    "path", ["/events/cancel", "/events/cancel/", "/events/x", "/events/cancel/x/../../y", "//events"]
)
def test_a_path_that_is_none_of_ours_does_nothing(shop: Shop, path: str) -> None:
    answer = post(shop, json.dumps(attributes_of(event())), STRUCTURED, path)
    assert answer.status_code in (308, 404, 405)
    assert stored(shop.database_url)["edda_messages"] == 0


def test_no_other_method_delivers_or_cancels(shop: Shop) -> None:
    with shop.app.app_context():
        order_waits.options(session=None, instance_id="x").start()
    body = json.dumps(attributes_of(event()))
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        for path in ("/events", "/events/cancel/x"):
            environ = create_environ(path, data=body, content_type="application/cloudevents+json")
            environ |= {"REQUEST_METHOD": method, "HTTP_X_HTTP_METHOD_OVERRIDE": "POST"}
            status = int(run_wsgi_app(shop.app, environ)[1].split()[0])
            assert status == (200 if method == "OPTIONS" else 405)
    assert shop.edda.get("x").status == "pending"
    assert stored(shop.database_url)["edda_messages"] == 0
