"""The page about receiving events shows code that does what it says."""

from __future__ import annotations

import hashlib
import hmac
import re

import httpx
import pytest
from werkzeug.test import create_environ
from werkzeug.wrappers import Request

from edda_wsgi import EddaFlask
from edda_wsgi.auth import sign
from tests.e2e.examples import DOCS, Load, working

PAGE = (DOCS / "howto/receive-events.md").read_text()


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SHOP_EVENTS_SECRET", "a secret of the test")
    return "a secret of the test"


def test_receiving_page_takes_signed_events_that_start_wake_and_are_noted(
    load: Load, sqlite_url: str, secret: str
) -> None:
    module = load("receiving")
    app = module.create_app(sqlite_url)
    edda: EddaFlask = module.edda
    usual = {"specversion": "1.0", "source": "/till"}
    placed = {**usual, "id": "1", "type": "order.placed", "data": {"number": "A7", "amount": 12}}
    paid = {**usual, "id": "2", "type": "order.paid", "data": {"amount": 12}, "subject": "A7"}
    with (
        working(app, edda),
        httpx.Client(transport=httpx.WSGITransport(app), base_url="http://shop") as client,
    ):
        assert module.deliver(client, secret, placed).status_code == 202
        (instance,) = edda.find_instances().instances
        assert module.deliver(client, "another secret", paid).status_code == 401
        # For everybody who waits at that moment, so it is named to come also before that.
        named = {**paid, "eddainstanceid": instance.instance_id}
        assert [module.deliver(client, secret, named).status_code for _ in range(2)] == [202, 202]
        assert edda.result(instance.instance_id, timeout=30) == "A7: 12 of 12"

        answer = module.deliver(client, secret, {**usual, "id": "3", "type": "order.paid"})
        assert (answer.status_code, answer.json()["error_type"]) == (400, "TerminalError")
        payments = [(payment.id, payment.order) for payment in module.db.session.query(module.Payment)]
    assert payments == [("2", "A7")]


def test_receiving_page_has_a_check_of_ones_own(load: Load) -> None:
    module = load("receiving")
    environ = create_environ("/events", method="POST", headers={"X-Forwarded-User": "broker"})
    assert module.may_deliver(Request(environ)) is True
    assert module.may_deliver(Request(create_environ("/events", method="POST"))) is False


def test_receiving_page_writes_down_what_is_signed() -> None:
    (shown,) = re.findall(r"```text\n(\d+\n/events\n.*?)\n```", PAGE, re.DOTALL)
    head, _, body = shown.partition("\n\n")
    timestamp, path, *lines = head.splitlines()
    headers = dict(line.split(":", 1) for line in lines)
    expected = hmac.new(b"secret", shown.encode(), hashlib.sha256).hexdigest()
    made = sign("secret", path=path, headers=headers, body=body.encode(), timestamp=int(timestamp))
    assert made == {"Edda-Signature": f"t={timestamp},v1={expected}"}


@pytest.mark.parametrize(
    "error_type",
    sorted(
        {
            match
            for name in ("intake", "incoming", "cloudevents")
            for match in re.findall(r'"(\w+Error)"', (DOCS.parent / f"edda_wsgi/{name}.py").read_text())
        }
    ),
)
def test_receiving_page_explains_every_error_type(error_type: str) -> None:
    assert f"`{error_type}`" in PAGE
