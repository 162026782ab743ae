"""Whatever is sent to the event endpoint: never a 500, and never a row for what was refused."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from sqlalchemy import Engine, create_engine, text
from werkzeug.test import create_environ, run_wsgi_app

from edda_wsgi import WorkflowContext, workflow
from tests.integration.deliveries import OPEN, TABLES, endpoint
from tests.integration.flask_apps import Shop, driver_url

ANSWERS = {202, 400, 411, 413, 415}
OF_CANCELLING = {200, 202, 400, 404}


class Order(BaseModel):
    order_id: int
    names: dict[str, float] = {}


@workflow(event_handler=True, name="placed")
async def on_placed(ctx: WorkflowContext, order_id: int, **more: Any) -> None:
    pass


@workflow(event_handler=True, name="modelled")
async def on_modelled(ctx: WorkflowContext, order: Order) -> None:
    pass


class Target:
    """A shop that takes events, and what it has stored."""

    def __init__(self, shop: Shop, engine: Engine) -> None:
        self._shop, self._engine = shop, engine
        self._count = self._rows()

    def send(self, body: bytes, headers: dict[str, str], *, is_terminated: bool = True, path: str = "/events") -> int:
        """Deliver, as a server would hand it on, and judge the answer."""
        environ = create_environ(path, method="POST", data=body)
        environ |= {"wsgi.input_terminated": is_terminated} if is_terminated else {}
        for name, value in headers.items():
            key = name.upper().replace("-", "_")
            environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
        answer, status, answer_headers = run_wsgi_app(self._shop.app, environ, buffered=True)
        code, content = int(status.split()[0]), json.loads(b"".join(answer))
        before, self._count = self._count, self._rows()
        assert code in (ANSWERS if path == "/events" else OF_CANCELLING), content
        assert answer_headers["Content-Type"] == "application/json"
        if code < 300:
            assert content == {"status": "accepted" if code == 202 else "ended already"}
        else:
            assert content["retryable"] is False
            assert (type(content["error"]), type(content["error_type"])) == (str, str)
            assert self._count == before, "a refused request was stored"
        return code

    def _rows(self) -> int:
        with self._engine.connect() as conn:
            return sum(conn.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in TABLES)


@pytest.fixture
def target(database_url: str) -> Iterator[Target]:
    engine = create_engine(driver_url(database_url))
    with endpoint(database_url, {**OPEN, "MAX_BYTES": 100_000}, max_payload_bytes=50_000) as shop:
        shop.app.extensions["edda"].tables.ensure()
        with shop.app.app_context():
            on_placed.options(session=None, instance_id="known", delay=3600).start(order_id=1)
        yield Target(shop, engine)
    engine.dispose()


# Texts with everything that databases, headers and JSON readers dislike.
awkward = st.text(st.characters(codec=None), max_size=20) | st.sampled_from(
    [
        "",
        "\0",
        "\ud800",
        "\udfff\ud800",
        "'; DROP TABLE edda_messages; --",
        "%00",
        "%ED%A0%80",
        "%",
        "x" * 300,
        "\r\n",
        "\u202e",
    ]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**400)
    | st.floats()
    | awkward,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(awkward, inner, max_size=4),
    max_leaves=15,
)
names = st.sampled_from(
    ["specversion", "id", "source", "type", "time", "subject", "datacontenttype", "dataschema", "data", "data_base64",
     "eddainstanceid", "extension", "Extension", "datacontentencoding"]
) | awkward  # fmt: skip
times = st.datetimes(timezones=st.none() | st.timezones()).map(lambda moment: moment.isoformat()) | st.sampled_from(
    ["2020", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2020-01-01T24:00:00Z", "2020-02-30T00:00:00Z"]
)
media_types = st.sampled_from(
    ["application/json", "text/plain", "text/plain; charset=utf-16", "text/plain; charset=rot13", "application/xml",
     "application/octet-stream", "application/json; charset=\"", "a/b+json", ";;;", "text/json"]
)  # fmt: skip
right = st.fixed_dictionaries(
    {
        "specversion": st.just("1.0"),
        "id": st.text("abc", min_size=1, max_size=8),
        "source": st.just("/till"),
        "type": st.sampled_from(["placed", "modelled", "other"]),
    },
    optional={
        "data": values | st.fixed_dictionaries({"order_id": st.integers() | values}, optional={"names": values}),
        "time": times,
        "datacontenttype": media_types,
        "data_base64": st.binary(max_size=20).map(lambda content: base64.b64encode(content).decode()) | awkward,
    },
)
nearly = st.builds(lambda whole, changes: {**whole, **changes}, right, st.dictionaries(names, values, max_size=3))
bodies = (
    st.binary(max_size=300)
    | nearly.map(lambda event: json.dumps(event).encode())
    | st.lists(nearly, max_size=3).map(lambda events: json.dumps(events).encode())
    | values.map(lambda value: json.dumps(value).encode())
    | st.builds(lambda event, cut: json.dumps(event).encode()[:cut], right, st.integers(0, 200))
)
JSON_TYPES = ["application/cloudevents+json", "application/cloudevents-batch+json"]
header_values = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=30)

many = settings(
    max_examples=int(os.environ.get("EDDA_FUZZ_EXAMPLES", "80")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@many
@given(body=bodies, content_type=st.sampled_from(JSON_TYPES), is_terminated=st.booleans())
@example(body=b"[" * 90_000, content_type=JSON_TYPES[1], is_terminated=True)
@example(body=b'{"a":' * 15_000, content_type=JSON_TYPES[0], is_terminated=True)
@example(body=b"9" * 90_000, content_type=JSON_TYPES[0], is_terminated=True)
@example(body=b"x" * 100_001, content_type=JSON_TYPES[0], is_terminated=True)
def test_no_body_in_structured_or_batch_mode_breaks_the_endpoint(
    target: Target, body: bytes, content_type: str, is_terminated: bool
) -> None:
    target.send(body, {"Content-Type": content_type}, is_terminated=is_terminated)


@many
@given(event=right)
def test_events_that_are_nearly_right_do_not_break_the_endpoint(target: Target, event: dict[str, Any]) -> None:
    target.send(json.dumps(event).encode(), {"Content-Type": JSON_TYPES[0]})


@many
@given(
    headers=st.dictionaries(
        st.sampled_from(
            ["Content-Type", "Content-Encoding", "Content-Length", "Ce-Specversion", "Ce-Id", "Ce-Source", "Ce-Type",
             "Ce-Time", "Ce-Subject", "Ce-Data", "Ce-Datacontenttype", "Ce-Eddainstanceid", "Ce-A-B", "Ce-", "Ce-Ü",
             "Transfer-Encoding", "Edda-Signature", "Authorization"]
        ),
        header_values | media_types | times | st.sampled_from(["1.0", "gzip", "identity", "placed", "modelled"]),
    ),
    body=st.binary(max_size=100) | values.map(lambda value: json.dumps(value).encode()),
)  # fmt: skip
def test_no_headers_break_the_endpoint(target: Target, headers: dict[str, str], body: bytes) -> None:
    target.send(body, headers)


@many
@given(
    path=st.text(st.characters(codec=None), min_size=1, max_size=20)
    | st.sampled_from(["%00", "%ED%A0%80", "%2F", "..%2f..", "%", "//", "?", "#", "a;b", "x" * 300, "known"]),
    body=st.binary(max_size=50)
    | values.map(lambda value: json.dumps({"reason": value}).encode())
    | values.map(lambda value: json.dumps(value).encode()),
)
@example(path="known", body=b'{"reason": ' + b"[" * 90_000)
@example(path="known", body=b"[" * 90_000)
@example(path="known", body=b"")
@example(path="known", body=b"{}")
def test_no_path_and_no_body_break_cancelling(target: Target, path: str, body: bytes) -> None:
    quoted = path if path.startswith(("%", ".")) else quote(path, safe="", errors="surrogatepass")
    target.send(body, {}, path=f"/events/cancel/{quoted}")


@many
@given(
    body=values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=100),
    content_type=media_types,
    event_id=st.text("abc", min_size=1, max_size=8),
    event_type=st.sampled_from(["placed", "modelled", "other"]),
)
def test_no_data_in_binary_mode_breaks_the_endpoint(
    target: Target, body: bytes, content_type: str, event_id: str, event_type: str
) -> None:
    headers = {"Ce-Specversion": "1.0", "Ce-Id": event_id, "Ce-Source": "/till", "Ce-Type": event_type}
    target.send(body, {**headers, "Content-Type": content_type})
