"""CloudEvents as the package of that name makes them, delivered to a shop; and what the shop has stored of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from cloudevents.core.bindings.http import HTTPMessage, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from sqlalchemy import inspect, text
from werkzeug.test import TestResponse

from tests.integration.flask_apps import Shop, open_shop, outside

OPEN = {"URL_PREFIX": "/events", "AUTH": None}
STRUCTURED = {"Content-Type": "application/cloudevents+json"}
BATCH = {"Content-Type": "application/cloudevents-batch+json"}
ACCEPTED = (202, {"status": "accepted"})
TABLES = ("edda_instances", "edda_messages", "edda_received_events")


def event(event_type: str = "order.paid", content: Any = None, **attributes: Any) -> CloudEvent:
    """An event of the real package; the same arguments make the same event."""
    usual = {"type": event_type, "source": "/till", "id": "event-1", "time": datetime(2026, 5, 4, tzinfo=UTC)}
    return CloudEvent({**usual, **attributes}, content)


def attributes_of(sent: CloudEvent) -> dict[str, Any]:
    """What the package writes as JSON."""
    found: dict[str, Any] = json.loads(to_structured_event(sent).body)
    return found


def batch(*sent: CloudEvent) -> HTTPMessage:
    """Several events in one request; the package has no function for it."""
    return HTTPMessage(dict(BATCH), json.dumps([attributes_of(each) for each in sent]).encode())


def deliver(
    shop: Shop, sent: CloudEvent | HTTPMessage, *, binary: bool = False, headers: Mapping[str, str] | None = None
) -> TestResponse:
    """Deliver an event, structured if nothing else is said."""
    if isinstance(sent, CloudEvent):
        sent = to_binary_event(sent) if binary else to_structured_event(sent)
    return post(shop, sent.body, {**sent.headers, **(headers or {})})


def post(shop: Shop, body: bytes | str, headers: Mapping[str, str], path: str = "/events") -> TestResponse:
    return shop.app.test_client().post(path, data=body, headers=dict(headers))


def said(answer: TestResponse) -> tuple[int, Any]:
    return answer.status_code, answer.get_json()


def refusal(answer: TestResponse) -> tuple[int, str, bool]:
    """Status, error type and whether it may be delivered again, of an answer that has just these keys."""
    content = answer.get_json()
    assert set(content) == {"error", "error_type", "retryable"}
    assert isinstance(content["error"], str)
    assert content["error"]
    return answer.status_code, content["error_type"], content["retryable"]


def stored(database_url: str) -> dict[str, int]:
    """How many rows are committed in the tables that events write to; events count once for the service."""
    which = {"edda_received_events": " WHERE service <> ''"}
    with outside(database_url) as engine, engine.connect() as conn:
        if not inspect(conn).has_table("edda_instances"):
            return dict.fromkeys(TABLES, 0)
        return {
            table: conn.execute(text(f"SELECT count(*) FROM {table}{which.get(table, '')}")).scalar_one()
            for table in TABLES
        }


def rows(database_url: str, query: str) -> Sequence[Any]:
    with outside(database_url) as engine, engine.connect() as conn:
        return conn.execute(text(query)).all()


def change(database_url: str, statement: str) -> None:
    with outside(database_url) as engine, engine.begin() as conn:
        conn.execute(text(statement))


@contextmanager
def endpoint(database_url: str, events: Mapping[str, Any] = OPEN, **options: Any) -> Iterator[Shop]:
    """A shop that takes events."""
    with open_shop(database_url, events=dict(events), **options) as shop:
        yield shop


NOTHING = dict.fromkeys(TABLES, 0)
