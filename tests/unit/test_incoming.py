"""Requests to events: what a real client sends is read as it was meant, and nothing is read two ways."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from cloudevents.v1.conversion import to_binary, to_structured
from cloudevents.v1.http import CloudEvent as OldCloudEvent

from edda_engine import ReceivedEvent
from edda_wsgi.incoming import BATCH, STRUCTURED, read_events, read_object
from edda_wsgi.intake import UnacceptableError

MOMENT = datetime(2026, 5, 4, 3, 2, 1, 123456, tzinfo=UTC)
USUAL = {"specversion": "1.0", "type": "order.paid", "source": "/till", "id": "event-1"}


def read(message: HTTPMessage) -> ReceivedEvent[Any]:
    (found,) = read_events(message.headers, message.body)
    return found


def read_json(event: Any, content_type: str = STRUCTURED) -> list[ReceivedEvent[Any]]:
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    return read_events({"Content-Type": content_type}, body)


def refused(headers: Mapping[str, str], body: bytes) -> UnacceptableError:
    with pytest.raises(UnacceptableError) as caught:
        read_events(headers, body)
    return caught.value


@pytest.mark.parametrize("write", [to_structured_event, to_binary_event], ids=["structured", "binary"])
@pytest.mark.parametrize(
    ("content", "media_type", "expected"),
    [
        ({"sum": 5, "lines": [1.5, None, True]}, "application/json", {"sum": 5, "lines": [1.5, None, True]}),
        ({"sum": 5}, "application/vnd.shop+json; charset=utf-8", {"sum": 5}),
        (b'{"sum": 5}', "application/json", {"sum": 5}),
        (b"\x00\xff", "application/octet-stream", b"\x00\xff"),
        (b"text that is bytes", "application/octet-stream", b"text that is bytes"),
        ("<paid>5 \u20ac</paid>", "text/xml", "<paid>5 \u20ac</paid>"),
        ("5 \u20ac".encode(), "text/plain", "5 \u20ac"),
        (None, "application/json", None),
        (None, "application/octet-stream", None),
    ],
)
def test_what_a_client_sends_is_read_as_it_was_meant_in_both_modes(
    write: Any, content: Any, media_type: str, expected: Any
) -> None:
    sent = CloudEvent(
        {**USUAL, "time": MOMENT, "subject": "Bestellung \u00fc 7", "datacontenttype": media_type, "tenant": "blue"},
        content,
    )
    found = read(write(sent))
    assert found.data == expected
    assert type(found.data) is type(expected)
    assert (found.type, found.source, found.id, found.subject) == (
        "order.paid",
        "/till",
        "event-1",
        "Bestellung \u00fc 7",
    )
    assert (found.time, found.datacontenttype) == (MOMENT, media_type)
    assert dict(found.extensions) == {"tenant": "blue"}


@pytest.mark.parametrize("write", [to_structured, to_binary], ids=["structured", "binary"])
def test_what_a_client_of_the_first_version_sends_is_read(write: Any) -> None:
    sent = OldCloudEvent(
        {"type": "order.paid", "source": "/till", "id": "1", "datacontenttype": "application/json"}, {"sum": 5}
    )
    headers, body = write(sent)
    (found,) = read_events(headers, body)
    assert (found.id, found.data) == ("1", {"sum": 5})


def test_a_batch_is_read_in_its_order() -> None:
    found = read_json([{**USUAL, "id": str(number), "data": number} for number in range(3)], BATCH)
    assert [(each.id, each.data) for each in found] == [("0", 0), ("1", 1), ("2", 2)]
    assert read_json([], BATCH) == []


def test_names_of_headers_and_media_types_are_read_without_regard_to_case() -> None:
    headers = {
        "CE-SpecVersion": "1.0",
        "Ce-Id": "1",
        "cE-source": "/till",
        "ce-TYPE": "t",
        "content-type": "Application/JSON",
    }
    (found,) = read_events(headers, b"5")
    assert found.data == 5
    assert read_json(USUAL, "Application/CloudEvents+JSON; Charset=UTF-8")[0].type == "order.paid"


def test_the_content_type_decides_about_the_mode_before_the_headers() -> None:
    headers = {"Content-Type": STRUCTURED, "ce-specversion": "1.0", "ce-id": "2", "ce-type": "t", "ce-source": "/"}
    (found,) = read_events(headers, json.dumps(USUAL).encode())
    assert found.id == "event-1"


def test_an_attribute_that_is_null_is_not_there() -> None:
    (found,) = read_json({**USUAL, "subject": None, "tenant": None, "data": None, "data_base64": None})
    assert (found.subject, dict(found.extensions), found.data) == (None, {}, None)


def test_extensions_keep_their_types() -> None:
    (found,) = read_json({**USUAL, "flag": True, "number": -(2**31), "word": "5", "dataschema": "/s"})
    assert dict(found.extensions) == {"flag": True, "number": -(2**31), "word": "5", "dataschema": "/s"}


def test_times_come_in_utc() -> None:
    moment = datetime(2026, 5, 4, 3, 2, 1, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    (found,) = read_json({**USUAL, "time": moment.isoformat()})
    assert found.time == moment
    assert found.time.tzinfo is UTC


def test_binary_data_without_a_media_type_is_bytes_and_a_body_without_one_is_json() -> None:
    assert read_json({**USUAL, "data_base64": "MTIz"})[0].data == b"123"
    headers = {f"ce-{name}": value for name, value in USUAL.items()}
    assert read_events(headers, b"123")[0].data == 123
    assert refused(headers, b"abc").status == 400


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id": None}, "'id' is missing"),
        ({"source": None}, "'source' is missing"),
        ({"type": None}, "'type' is missing"),
        ({"specversion": None}, "'specversion' is missing"),
        ({"id": ""}, "'id'"),
        ({"id": 5}, "'id' is a text"),
        ({"id": "x" * 2001}, "1 to 2000"),
        ({"type": "x" * 256}, "1 to 255"),
        ({"specversion": "0.3"}, "specversion"),
        ({"specversion": "2.0"}, "specversion"),
        ({"time": "yesterday"}, "RFC 3339"),
        ({"time": "2026-05-04T03:02:01"}, "with its zone"),
        ({"time": "2026-13-04T03:02:01Z"}, "month"),
        ({"time": 5}, "'time'"),
        ({"time": "0001-01-01T00:00:00+14:00"}, "attribute"),
        ({"subject": ""}, "'subject'"),
        ({"subject": ["a"]}, "'subject'"),
        ({"datacontenttype": 5}, "'datacontenttype'"),
        ({"Tenant": "blue"}, "Tenant"),
        ({"ten-ant": "blue"}, "ten-ant"),
        ({"": "blue"}, "at least 1 character"),
        ({"x" * 256: "blue"}, "too long"),
        ({"tenant": {"a": 1}}, "'tenant'"),
        ({"tenant": ["a"]}, "'tenant'"),
        ({"tenant": 1.5}, "'tenant'"),
        ({"tenant": 2**31}, "'tenant'"),
        ({"tenant": "a\0"}, "control character"),
        ({"source": "a\nb"}, "control character"),
        ({"id": "a\ud800"}, "surrogate"),
        ({"eddainstanceid": 5}, "'eddainstanceid' is a text"),
        ({"eddainstanceid": "x" * 256}, "1 to 255"),
        ({"data_base64": 5}, "data_base64 is a text"),
        ({"data_base64": "MTIz!"}, "data_base64 is not base64"),
        ({"data_base64": "MTI"}, "data_base64 is not base64"),
        ({"data_base64": "MTIz", "data": 1}, "both"),
        ({"data_base64": "eA==", "datacontenttype": "application/json"}, "not JSON"),
        ({"data_base64": "/w==", "datacontenttype": "text/plain"}, "not the text"),
        ({"data_base64": "eA==", "datacontenttype": "text/plain; charset=zlib"}, "not the text"),
    ],
)
def test_an_event_with_a_wrong_attribute_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnacceptableError, match=words) as caught:
        read_json({**USUAL, **changes})
    assert (caught.value.status, caught.value.error_type) == (400, "InvalidEventError")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON|BOM"),
        (b"[]", "JSON object"),
        (b"5", "JSON object"),
        (b'{"specversion": "1.0", "id": "1", "id": "2"}', "'id' is there twice"),
        (b'{"data": {"a": {"b": 1, "b": 1}}}', "'b' is there twice"),
        (b'{"data": NaN}', "NaN"),
        (b'{"data": -Infinity}', "-Infinity"),
        (b'{"data": 1e400}', "too large"),
        (b'{"data": ' + b"9" * 5000 + b"}", "4300"),
        (b'{"data": ' * 50_000, "nested too deeply"),
        (b"[" * 50_000 + b"]" * 50_000, "nested too deeply"),
    ],
)
def test_json_that_is_not_quite_json_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(UnacceptableError, match=words):
        read_json(body)


def test_a_wrong_event_of_a_batch_is_named() -> None:
    with pytest.raises(UnacceptableError, match="in event 1 of the batch the attribute 'id' is missing"):
        read_json([USUAL, {**USUAL, "id": None}], BATCH)
    with pytest.raises(UnacceptableError, match="in event 0 of the batch an event is a JSON object"):
        read_json([[]], BATCH)
    with pytest.raises(UnacceptableError, match="JSON array"):
        read_json(USUAL, BATCH)


@pytest.mark.parametrize("missing", USUAL)
def test_a_header_that_is_missing_is_named(missing: str) -> None:
    headers = {f"ce-{name}": value for name, value in USUAL.items() if name != missing}
    error = refused(headers, b"")
    assert (error.status, f"'{missing}' is missing" in str(error)) == (400, True)


def test_the_media_type_of_the_data_has_one_place_in_binary_mode() -> None:
    headers = {f"ce-{name}": value for name, value in USUAL.items()}
    assert "Content-Type" in str(refused({**headers, "ce-datacontenttype": "text/plain"}, b""))


def test_an_object_is_read_as_strictly() -> None:
    assert read_object(b"") == read_object(b" \n") == {}
    assert read_object(b'{"reason": "gone"}') == {"reason": "gone"}
    with pytest.raises(UnacceptableError, match="JSON object"):
        read_object(b"[]")


def test_long_words_are_not_repeated_in_full() -> None:
    with pytest.raises(UnacceptableError) as caught:
        read_json({**USUAL, "data": 1, "T" * 200: "x", **{f"{n}" * 100 + "!": 1 for n in range(100)}})
    assert len(str(caught.value)) <= 1000
