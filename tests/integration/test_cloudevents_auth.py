"""Who may deliver: the endpoint without, with wrong and with replayed credentials."""

from __future__ import annotations

import json
import logging
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, to_binary_event, to_structured_event
from flask import Request, abort, redirect
from werkzeug.test import TestResponse

from edda_wsgi import ConfigurationError, WorkflowContext, auth, workflow
from edda_wsgi.auth import check_bearer_token, check_signature, sign
from tests.integration.deliveries import (
    ACCEPTED,
    NOTHING,
    deliver,
    endpoint,
    event,
    post,
    refusal,
    said,
    stored,
)
from tests.integration.flask_apps import Shop, open_shop

SECRET, OLD_SECRET = "the-new-secret-0123456789", "the-old-secret-0123456789"
SIGNED = {"URL_PREFIX": "/events", "AUTH": "edda_wsgi.auth.check_signature", "SECRET": SECRET}
BEARER = {"URL_PREFIX": "/events", "AUTH": "edda_wsgi.auth.check_bearer_token", "SECRET": [SECRET, OLD_SECRET]}
UNAUTHORIZED = (401, "UnauthorizedError", False)


@workflow(event_handler=True, name="order.signed")
async def on_order_signed(ctx: WorkflowContext, order_id: int) -> int:
    return order_id


@pytest.fixture(autouse=True)
def no_secret_is_told(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Neither a log record nor, by :func:`deliver_signed`, an answer may hold a secret."""
    caplog.set_level(logging.DEBUG)
    yield
    assert SECRET not in caplog.text
    assert OLD_SECRET not in caplog.text


def signed(sent: HTTPMessage, secret: str = SECRET, *, age: int = 0, path: str = "/events") -> dict[str, str]:
    timestamp = int(time.time()) - age
    return {**sent.headers, **sign(secret, path=path, headers=sent.headers, body=sent.body, timestamp=timestamp)}


def send(shop: Shop, body: bytes, headers: dict[str, str], path: str = "/events") -> TestResponse:
    answer = post(shop, body, headers, path)
    assert SECRET not in answer.text
    assert OLD_SECRET not in answer.text
    return answer


def order(number: int = 7, **attributes: Any) -> HTTPMessage:
    return to_structured_event(event("order.signed", {"order_id": number}, **attributes))


# Signatures.


def test_a_signed_event_is_accepted(database_url: str) -> None:
    with endpoint(database_url, SIGNED) as shop:
        assert said(send(shop, order().body, signed(order()))) == ACCEPTED
        binary = to_binary_event(
            event("order.signed", {"order_id": 7}, id="ü 2", subject='"ä"', datacontenttype="application/json")
        )
        assert said(send(shop, binary.body, signed(binary))) == ACCEPTED
    assert stored(database_url)["edda_instances"] == 2


def test_a_signature_is_what_the_documentation_says() -> None:
    """Computed by hand, as a sender in another language would."""
    import hashlib
    import hmac

    headers = {"Content-Type": "application/json", "ce-id": "1", "CE-Type": "order.signed", "X-Other": "ignored"}
    lines = b"1700000000\n/events\nce-id:1\nce-type:order.signed\ncontent-type:application/json\n\n"
    expected = hmac.new(SECRET.encode(), lines + b'{"order_id": 7}', hashlib.sha256).hexdigest()
    made = sign(SECRET, path="/events", headers=headers, body=b'{"order_id": 7}', timestamp=1_700_000_000)
    assert made == {"Edda-Signature": f"t=1700000000,v1={expected}"}


def test_an_unsigned_event_is_refused(database_url: str) -> None:
    with endpoint(database_url, SIGNED) as shop:
        answer = send(shop, order().body, order().headers)
        assert refusal(answer) == UNAUTHORIZED
        assert answer.headers["WWW-Authenticate"] == "Edda-Signature"
    assert stored(database_url) == NOTHING


def test_an_event_signed_with_another_secret_is_refused(database_url: str) -> None:
    with endpoint(database_url, SIGNED) as shop:
        for secret in (OLD_SECRET, SECRET[:-1], SECRET + "x", " "):
            assert refusal(send(shop, order().body, signed(order(), secret))) == UNAUTHORIZED
    assert stored(database_url) == NOTHING


def test_while_a_secret_is_exchanged_both_are_good(database_url: str) -> None:
    with endpoint(database_url, {**SIGNED, "SECRET": [SECRET, OLD_SECRET]}) as shop:
        for number, secret in enumerate((SECRET, OLD_SECRET)):
            sent = order(id=str(number))
            assert said(send(shop, sent.body, signed(sent, secret))) == ACCEPTED
        assert refusal(send(shop, order().body, signed(order(), "neither"))) == UNAUTHORIZED


def test_a_sender_may_sign_with_the_old_and_the_new_secret_at_once(database_url: str) -> None:
    with endpoint(database_url, SIGNED) as shop:
        old, new = (signed(order(), secret)["Edda-Signature"] for secret in (OLD_SECRET, SECRET))
        both = {**order().headers, "Edda-Signature": old + "," + new.partition(",")[2]}
        assert said(send(shop, order().body, both)) == ACCEPTED


@pytest.mark.parametrize("age", [301, 100_000, -400, -100_000])
def test_a_signature_that_was_kept_for_long_or_dated_ahead_is_refused(database_url: str, age: int) -> None:
    with endpoint(database_url, SIGNED) as shop:
        assert refusal(send(shop, order().body, signed(order(), age=age))) == UNAUTHORIZED
    assert stored(database_url) == NOTHING


def test_how_old_a_signature_may_be_can_be_set(database_url: str) -> None:
    with endpoint(database_url, {**SIGNED, "TOLERANCE_SECONDS": 1000}) as shop:
        assert said(send(shop, order().body, signed(order(), age=900))) == ACCEPTED


def test_a_replayed_request_does_nothing_twice(database_url: str) -> None:
    with endpoint(database_url, SIGNED) as shop:
        headers = signed(order())
        assert said(send(shop, order().body, headers)) == said(send(shop, order().body, headers)) == ACCEPTED
    assert stored(database_url)["edda_instances"] == 1


def test_a_signature_is_good_for_no_other_body_or_attributes_or_path(database_url: str) -> None:
    binary = to_binary_event(event("order.paid", {"order_id": 7}, datacontenttype="application/json"))
    good = signed(binary)
    changed: list[tuple[bytes, dict[str, str], str]] = [
        (b'{"order_id": 8}', good, "/events"),
        (binary.body, {**good, "ce-type": "order.signed"}, "/events"),
        (binary.body, {**good, "ce-id": "another"}, "/events"),
        (binary.body, {**good, "ce-eddainstanceid": "another"}, "/events"),
        (binary.body, {**good, "content-type": "application/octet-stream"}, "/events"),
        (binary.body, {name: value for name, value in good.items() if name != "ce-time"}, "/events"),
        (binary.body, good, "/events/cancel/order-7"),
        (b"", good, "/events/cancel/order-7"),
    ]
    with endpoint(database_url, SIGNED) as shop:
        for body, headers, path in changed:
            assert refusal(send(shop, body, headers, path)) == UNAUTHORIZED
        assert stored(database_url) == NOTHING
        assert said(send(shop, binary.body, good)) == ACCEPTED


def test_a_signature_for_cancelling_one_instance_cancels_no_other(database_url: str) -> None:
    with endpoint(database_url, SIGNED) as shop:
        with shop.app.app_context():
            for instance_id in ("order-7", "order-8"):
                on_order_signed.options(instance_id=instance_id, session=None).start(order_id=7)
        empty = HTTPMessage({}, b"")
        headers = signed(empty, path="/events/cancel/order-7")
        assert refusal(send(shop, b"", headers, "/events/cancel/order-8")) == UNAUTHORIZED
        assert refusal(send(shop, b"", {}, "/events/cancel/order-8")) == UNAUTHORIZED
        assert said(send(shop, b"", headers, "/events/cancel/order-7")) == ACCEPTED
        assert [shop.edda.get(each).status for each in ("order-7", "order-8")] == ["cancelled", "pending"]


@pytest.mark.parametrize(
    "garbled",
    [
        "", "t=", "t=1", "v1=00", "t=x,v1=00", "t=-1,v1=00", "t=1e9,v1=00", "t=99999999999999999999,v1=00", "t={t}",
        "t={t},v1=", "t={t},v2={v}", "t={t};v1={v}", "t={t},t={t},v1={v}", "t={t},v1={v},x=1", "{v}", "t={t},v1={v}0",
        "t={t},v1=é{v}", "t=²,v1={v}", "t={t}" + ",v1=00" * 9, "," * 1000,
    ],
)  # fmt: skip
def test_a_garbled_signature_is_refused(database_url: str, garbled: str) -> None:
    with endpoint(database_url, SIGNED) as shop:
        good = signed(order())["Edda-Signature"]
        timestamp, _, signature = good.removeprefix("t=").partition(",v1=")
        headers = {**order().headers, "Edda-Signature": garbled.replace("{t}", timestamp).replace("{v}", signature)}
        assert refusal(send(shop, order().body, headers)) == UNAUTHORIZED
    assert stored(database_url) == NOTHING


def test_all_secrets_are_tried_always(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a comparison takes the same time whatever it finds is the standard library's promise; that all are made, ours."""
    compared: list[int] = []
    compare = auth.hmac.compare_digest
    monkeypatch.setattr(auth.hmac, "compare_digest", lambda *given: compared.append(1) or compare(*given))
    with endpoint(database_url, {**SIGNED, "SECRET": [SECRET, OLD_SECRET]}) as shop:
        for secret in (SECRET, OLD_SECRET, "neither"):
            send(shop, order().body, signed(order(), secret))
            assert len(compared) == 2
            compared.clear()


# Bearer tokens.


def test_a_request_with_a_known_token_is_accepted(database_url: str) -> None:
    with endpoint(database_url, BEARER) as shop:
        for number, scheme in enumerate((f"Bearer {SECRET}", f"bearer {OLD_SECRET}")):
            sent = order(id=str(number))
            assert said(send(shop, sent.body, {**sent.headers, "Authorization": scheme})) == ACCEPTED


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {SECRET}",
        SECRET,
        f"Bearer {SECRET}x",
        f"Bearer {SECRET} x",
        "Bearer é",
        "Bearer \ud800"[:8],
    ],
)
def test_a_request_without_a_known_token_is_refused(database_url: str, authorization: str) -> None:
    with endpoint(database_url, BEARER) as shop:
        answer = send(shop, order().body, {**order().headers, "Authorization": authorization})
        assert refusal(answer) == UNAUTHORIZED
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert stored(database_url) == NOTHING


# Checks of the application's own.


@pytest.fixture
def check_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("shop_guards")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_a_check_of_the_application_decides(database_url: str, check_module: Any) -> None:
    check_module.may_deliver = lambda request: request.headers.get("X-Key") == "open sesame"
    with endpoint(database_url, {"URL_PREFIX": "/events", "AUTH": "shop_guards.may_deliver"}) as shop:
        assert refusal(deliver(shop, event())) == UNAUTHORIZED
        assert said(deliver(shop, event(), headers={"X-Key": "open sesame"})) == ACCEPTED


def test_a_check_may_read_the_body(database_url: str) -> None:
    def may_deliver(request: Request) -> bool:
        return bool(json.loads(request.get_data())["source"] == "/till")

    with endpoint(database_url, {"URL_PREFIX": "/events", "AUTH": may_deliver}) as shop:
        assert said(deliver(shop, event())) == ACCEPTED
        assert refusal(deliver(shop, event(source="/web"))) == UNAUTHORIZED


def test_who_may_not_deliver_does_not_make_the_body_be_read(database_url: str) -> None:
    class Body:
        def read(self, _size: int = -1) -> bytes:
            raise AssertionError("nobody may read this")

    from werkzeug.test import create_environ, run_wsgi_app

    with endpoint(database_url, BEARER) as shop:
        environ = create_environ("/events", method="POST") | {"wsgi.input": Body(), "CONTENT_LENGTH": "100"}
        assert run_wsgi_app(shop.app, environ)[1].startswith("401")


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        (lambda request: None, UNAUTHORIZED),
        (lambda request: abort(403), (403, "ForbiddenError", False)),
        (lambda request: abort(429), (429, "InvalidRequestError", False)),
        (lambda request: abort(redirect("/login")), UNAUTHORIZED),
        (lambda request: abort(503), (503, "ServiceUnavailable", True)),
        (lambda request: 1 / 0, (500, "ZeroDivisionError", True)),
        (lambda request: "yes", (500, "ConfigurationError", True)),
        (lambda request: 1, (500, "ConfigurationError", True)),
        (lambda: True, (500, "TypeError", True)),
    ],
)
def test_nobody_is_let_in_unless_the_check_says_true(
    database_url: str, check: Callable[..., Any], expected: tuple[int, str, bool]
) -> None:
    with endpoint(database_url, {"URL_PREFIX": "/events", "AUTH": check}) as shop:
        assert refusal(deliver(shop, event())) == expected
        assert refusal(post(shop, b"", {}, "/events/cancel/x")) == expected
    assert stored(database_url) == NOTHING


@pytest.mark.parametrize(
    "path", ["no_such_module.check", "shop_guards.nothing", "shop_guards.number", "shop_guards.kind"]
)
def test_a_check_that_cannot_be_loaded_lets_nobody_in_and_is_named_by_the_command(
    database_url: str, check_module: Any, path: str
) -> None:
    check_module.number, check_module.kind = 5, dict
    with endpoint(database_url, {"URL_PREFIX": "/events", "AUTH": path}) as shop:
        assert refusal(deliver(shop, event())) == (500, "ConfigurationError", True)
        result = shop.app.test_cli_runner().invoke(args=["edda", "check"])
    assert result.exit_code == 1
    assert "EVENTS['AUTH']" in result.output
    assert stored(database_url) == NOTHING


def test_a_coroutine_function_is_no_check(database_url: str, check_module: Any) -> None:
    async def may_deliver(_request: Any) -> bool:
        return False

    check_module.may_deliver = may_deliver
    with endpoint(database_url, {"URL_PREFIX": "/events", "AUTH": "shop_guards.may_deliver"}) as shop:
        assert refusal(deliver(shop, event())) == (500, "ConfigurationError", True)
    with (
        pytest.raises(ConfigurationError, match="async def"),
        open_shop(database_url, events={"URL_PREFIX": "/events", "AUTH": may_deliver}),
    ):
        pass


def test_the_ready_made_checks_may_be_given_as_functions(database_url: str) -> None:
    for check in (check_signature, check_bearer_token):
        with (
            pytest.raises(ConfigurationError, match="SECRET"),
            open_shop(database_url, events={"URL_PREFIX": "/events", "AUTH": check}),
        ):
            pass
    with endpoint(database_url, {**SIGNED, "AUTH": check_signature}) as shop:
        assert said(send(shop, order().body, signed(order()))) == ACCEPTED


def test_flask_edda_check_shows_the_endpoint_without_its_secrets(database_url: str) -> None:
    with endpoint(database_url, BEARER) as shop:
        for arguments in (["edda", "check"], ["edda", "check", "--json"]):
            output = shop.app.test_cli_runner().invoke(args=arguments).output
            assert "/events" in output
            assert "check_bearer_token" in output
            assert SECRET not in output
            assert OLD_SECRET not in output
    assert SECRET not in repr(shop.app.extensions["edda"].settings)


def test_an_application_below_a_path_signs_the_whole_path(database_url: str) -> None:
    with endpoint(database_url, SIGNED) as shop:
        answer = shop.app.test_client().post(
            "/events",
            data=order().body,
            headers=signed(order(), path="/shop/events"),
            environ_overrides={"SCRIPT_NAME": "/shop"},
        )
    assert said(answer) == ACCEPTED
