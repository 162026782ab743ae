"""The signature scheme, as one sees it who has overheard a signed request and wants more of it than it says."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, to_binary_event, to_structured_event
from werkzeug.test import TestResponse, create_environ, run_wsgi_app
from werkzeug.wrappers import Request

from edda_wsgi import ConfigurationError, WorkflowContext, auth, workflow
from edda_wsgi.auth import sign
from edda_wsgi.event_settings import event_settings
from tests.integration.deliveries import ACCEPTED, batch, endpoint, event, post, refusal, said, stored
from tests.integration.flask_apps import Shop

SECRET = "the-secret-of-the-till-0123456789"
SIGNED = {"URL_PREFIX": "/events", "AUTH": "edda_wsgi.auth.check_signature", "SECRET": SECRET}
BEARER = {"URL_PREFIX": "/events", "AUTH": "edda_wsgi.auth.check_bearer_token", "SECRET": SECRET}
UNAUTHORIZED = (401, "UnauthorizedError", False)


@workflow(event_handler=True, name="order.overheard")
async def on_order_overheard(ctx: WorkflowContext, order_id: int) -> int:
    return order_id


@pytest.fixture
def shop(sqlite_url: str) -> Iterator[Shop]:
    with endpoint(sqlite_url, SIGNED) as shop:
        yield shop


def order(**attributes: Any) -> HTTPMessage:
    """In binary mode: there the attributes are headers."""
    made = event("order.overheard", {"order_id": 7}, datacontenttype="application/json", **attributes)
    return to_binary_event(made)


def signed(sent: HTTPMessage, path: str = "/events", **options: Any) -> dict[str, str]:
    return {**sent.headers, **sign(SECRET, path=path, headers=sent.headers, body=sent.body, **options)}


def deliver_raw(shop: Shop, body: bytes, headers: dict[str, str], path: str = "/events") -> TestResponse:
    """Deliver headers as a server hands them on, which may be less strict than werkzeug's client."""
    environ = create_environ(path, method="POST", data=body)
    for name, value in headers.items():
        key = name.upper().replace("-", "_")
        environ["CONTENT_TYPE" if key == "CONTENT_TYPE" else f"HTTP_{key}"] = value
    return TestResponse(*run_wsgi_app(shop.app, environ), request=Request(environ))


# The same event must not pass for another one.

BLANKS = ["\xa0", "\u2003", "\u3000", "\x85", "\x1c", "\x1f", "\u200b"]
"""What Python's strip() takes for a blank, or an eye does, and HTTP does not."""


@pytest.mark.parametrize("blank", BLANKS, ids=ascii)
@pytest.mark.parametrize("name", ["ce-id", "ce-source", "ce-type", "ce-specversion"])
def test_an_overheard_event_cannot_be_made_another_one_by_blanks_around_an_attribute(
    shop: Shop, name: str, blank: str
) -> None:
    sent = order()
    headers = {key.lower(): value for key, value in signed(sent).items()}
    assert said(deliver_raw(shop, sent.body, headers)) == ACCEPTED
    on_the_wire = blank.encode().decode("latin-1")
    for changed in (headers[name] + on_the_wire, on_the_wire + headers[name]):
        answer = deliver_raw(shop, sent.body, {**headers, name: changed})
        assert refusal(answer)[0] in (400, 401)
    assert stored(shop.database_url)["edda_instances"] == 1


@pytest.mark.parametrize("blank", [" ", "\t", "  "], ids=ascii)
def test_blanks_that_http_leaves_out_make_no_other_event_of_it(shop: Shop, blank: str) -> None:
    """Whether the server leaves them out or not."""
    sent = order()
    headers = {key.lower(): value for key, value in signed(sent).items()}
    for changed in (headers["ce-id"], headers["ce-id"] + blank, blank + headers["ce-id"]):
        assert said(deliver_raw(shop, sent.body, {**headers, "ce-id": changed})) == ACCEPTED
    assert stored(shop.database_url)["edda_instances"] == 1


@pytest.mark.parametrize("spelled", ["%65vent-1", "EVENT-1", "event-1,event-1", '"event-1"', "e\u0301vent-1"])
def test_another_spelling_of_an_attribute_needs_another_signature(shop: Shop, spelled: str) -> None:
    sent = order()
    headers = {
        **{key.lower(): value for key, value in signed(sent).items()},
        "ce-id": spelled.encode().decode("latin-1"),
    }
    assert refusal(deliver_raw(shop, sent.body, headers)) == UNAUTHORIZED


def test_an_attribute_that_is_added_or_moved_into_the_next_line_needs_another_signature(shop: Shop) -> None:
    """Headers are lines of what is signed: a line feed inside one must not pass for its end."""
    sent = order(aaa="1", bbb="2")
    headers = {key.lower(): value for key, value in signed(sent).items()}
    folded = {**headers, "ce-aaa": "1\nce-bbb:2"}
    del folded["ce-bbb"]
    assert refusal(deliver_raw(shop, sent.body, folded)) == UNAUTHORIZED
    assert refusal(deliver_raw(shop, sent.body, {**headers, "ce-eddainstanceid": "x"})) == UNAUTHORIZED
    assert stored(shop.database_url)["edda_instances"] == 0


def test_a_path_with_a_line_feed_cannot_carry_a_header(shop: Shop) -> None:
    sent = HTTPMessage({"content-type": "text/plain"}, b"")
    headers = signed(sent, "/events/cancel/x")
    del headers["content-type"]
    assert refusal(post(shop, b"", headers, "/events/cancel/x%0Acontent-type:text/plain")) == UNAUTHORIZED


def test_a_signature_of_one_mode_is_good_for_no_other(shop: Shop) -> None:
    """The body of a structured event, sent as the data of a binary one, and the other way round."""
    structured = to_structured_event(event("order.overheard", {"order_id": 7}))
    for changed in (
        {**signed(structured), "ce-id": "x", "ce-source": "/x", "ce-type": "other", "ce-specversion": "1.0"},
        {**signed(structured), "content-type": "application/cloudevents-batch+json"},
        {**signed(structured), "content-type": "application/cloudevents+json; charset=utf-8"},
    ):
        assert refusal(deliver_raw(shop, structured.body, changed)) == UNAUTHORIZED


def test_a_signed_batch_that_is_replayed_does_nothing_twice_in_whole_or_as_it_is(shop: Shop) -> None:
    sent = batch(*(event("order.overheard", {"order_id": number}, id=str(number)) for number in range(3)))
    headers = signed(sent)
    for _ in range(3):
        assert said(deliver_raw(shop, sent.body, headers)) == ACCEPTED
    assert stored(shop.database_url)["edda_instances"] == 3


# Its time.


@pytest.mark.parametrize("age", [290, -290])
def test_a_signature_is_good_until_its_time_is_over_and_its_event_is_remembered_longer(shop: Shop, age: int) -> None:
    sent = order()
    headers = signed(sent, timestamp=int(time.time()) - age)
    assert said(deliver_raw(shop, sent.body, headers)) == said(deliver_raw(shop, sent.body, headers)) == ACCEPTED
    assert stored(shop.database_url)["edda_instances"] == 1


def test_events_may_not_be_forgotten_while_their_signatures_are_good() -> None:
    minutes = {"DEDUPLICATION_DAYS": 599 / 86_400, "TOLERANCE_SECONDS": 300}
    for check in ("edda_wsgi.auth.check_signature", auth.check_signature):
        with pytest.raises(ConfigurationError, match="twice TOLERANCE_SECONDS"):
            event_settings({**SIGNED, **minutes, "AUTH": check})
        event_settings({**SIGNED, **minutes, "AUTH": check, "DEDUPLICATION_DAYS": 600 / 86_400})
    event_settings({**BEARER, **minutes})  # whose token never expires anyway


@pytest.mark.parametrize(
    "header",
    ["v1={v},t={t}", "t={t},v1={v},t={t}", "t={t},v0={v}", "t={t},v1={V}", "t={t},v1={v},v2={v}", "t={t},none={v}", "t={t},v1"],
)  # fmt: skip
def test_a_header_of_another_form_or_algorithm_is_not_a_signature(shop: Shop, header: str) -> None:
    """The order does not matter; what is not known is never passed over."""
    sent = order()
    good = signed(sent)["Edda-Signature"]
    timestamp, _, value = good.removeprefix("t=").partition(",v1=")
    made = header.replace("{t}", timestamp).replace("{v}", value).replace("{V}", value.upper())
    answer = deliver_raw(shop, sent.body, {**sent.headers, "Edda-Signature": made})
    if header == "v1={v},t={t}":
        assert said(answer) == ACCEPTED
    else:
        assert refusal(answer) == UNAUTHORIZED


@pytest.mark.parametrize("made_with", [b"", b"None", b"edda_wsgi.auth.check_signature", hashlib.sha256(b"").digest()])
def test_a_signature_with_a_secret_that_one_may_guess_is_refused(shop: Shop, made_with: bytes) -> None:
    sent = order()
    for algorithm in ("sha1", "md5", "sha256", "sha512"):
        content = b"1\n/events\n\n" + sent.body
        value = hmac.new(made_with, content, algorithm).hexdigest()
        headers = {**sent.headers, "Edda-Signature": f"t={int(time.time())},v1={value}"}
        assert refusal(deliver_raw(shop, sent.body, headers)) == UNAUTHORIZED


# What a stranger can make this host do.


def test_a_stranger_does_not_make_a_body_be_hashed_more_than_once_for_each_secret(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []
    new = auth.hmac.new
    monkeypatch.setattr(
        auth.hmac, "new", lambda key, content, kind: hashed.append(len(content)) or new(key, content, kind)
    )
    header = f"t={int(time.time())}" + ",v1=00" * 8
    assert refusal(deliver_raw(shop, b"x" * 100_000, {"Edda-Signature": header})) == UNAUTHORIZED
    assert len(hashed) == 1


def test_a_stale_signature_does_not_make_the_body_be_read(shop: Shop) -> None:
    class Body:
        def read(self, _size: int = -1) -> bytes:
            raise AssertionError("nobody may read this")

    environ = create_environ("/events", method="POST") | {"wsgi.input": Body(), "CONTENT_LENGTH": "100"}
    environ["HTTP_EDDA_SIGNATURE"] = f"t={int(time.time()) - 400},v1={'0' * 64}"
    assert run_wsgi_app(shop.app, environ)[1].startswith("401")


# Tokens.


def test_a_token_may_hold_any_characters(sqlite_url: str) -> None:
    token = "Schlüssel-€-0123456789"
    on_the_wire = f"Bearer {token}".encode().decode("latin-1")
    with endpoint(sqlite_url, {**BEARER, "SECRET": token}) as shop:
        sent = order()
        assert said(deliver_raw(shop, sent.body, {**sent.headers, "Authorization": on_the_wire})) == ACCEPTED
        for wrong in (f"Bearer {token}", "Bearer Schl?ssel-?-0123456789", on_the_wire + "\xc2\xa0"):
            given = wrong.encode("latin-1", "replace").decode("latin-1")
            assert refusal(deliver_raw(shop, sent.body, {**sent.headers, "Authorization": given})) == UNAUTHORIZED


def test_what_is_refused_is_logged_without_what_was_given(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    sent = order()
    for given in (signed(sent) | {"ce-id": "other"}, {**sent.headers, "Authorization": "Bearer my-own-token-123"}):
        assert refusal(deliver_raw(shop, sent.body, given)) == UNAUTHORIZED
    for leaked in (SECRET, "my-own-token-123", signed(sent)["Edda-Signature"].partition("v1=")[2]):
        assert leaked not in caplog.text
