"""Requests to events: the three content modes of CloudEvents over HTTP, read by the ``cloudevents`` package.

How it thinks. The package knows the specification; around it stands what a door to the outside needs. JSON is read
once more strictly: what two readers could understand differently (the same key twice), what JSON has no word for
(NaN), and what is built to exhaust a reader is refused. Required attributes are never made up. Nothing here touches
the database, and whatever is wrong with a request is an :class:`UnacceptableError` that says what.

This module is imported only when there is an endpoint, because the package is an extra.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import unquote

from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.http import HTTPMessage, from_binary, from_structured
from cloudevents.core.exceptions import BaseCloudEventException
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from werkzeug.http import parse_options_header

from edda_engine.core.codec import MAX_ID_LENGTH
from edda_engine.events import EventMetadata, ReceivedEvent
from edda_wsgi.intake import UnacceptableError

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"

_REQUIRED = ("specversion", "id", "source", "type")
_DATA = ("data", "data_base64")
_OPTIONAL = ("datacontenttype", "dataschema", "subject", "time")
_KNOWN = frozenset({"specversion", "id", "source", "type", "datacontenttype", "subject", "time"})
_LONGEST_ATTRIBUTE = 2000
_LONGEST_TIME = 64
_MOST_ATTRIBUTES = 256
_LARGEST_INTEGER = 2**31
_NOT_IN_ATTRIBUTES = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE)
_JSON_MEDIA_TYPE = re.compile(r"(application|text)/([a-z0-9.!#$&^_-]+\+)?json")
_CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin-1")

T = TypeVar("T")


def read_events(headers: Mapping[str, str], body: bytes, *, most: int = 1000) -> list[ReceivedEvent[Any]]:
    """The events of a request, in order; a batch has at most so many.

    :raises UnacceptableError: 415 for what is no CloudEvent in JSON or in headers, 413 for too many, 400 for one that
        is wrong.
    """
    # Not every server leaves out the blanks around a value, and a signature does.
    sent = {name.lower(): value.strip(" \t") for name, value in headers.items()}
    if sent.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise _unsupported(f"The body is encoded as {sent['content-encoding']!r}. Send it as it is.")
    media_type, options = parse_options_header(sent.get("content-type", ""))
    media_type = media_type.lower()
    if media_type in (STRUCTURED, BATCH) and options.get("charset", "utf-8").lower() not in ("utf-8", "utf8"):
        raise _unsupported(f"CloudEvents in JSON are UTF-8, not {options['charset']!r}.")
    if media_type == STRUCTURED:
        return [_attempt(lambda: _structured(_strictly_parsed(body)))]
    if media_type == BATCH:
        return _batch(_attempt(lambda: _strictly_parsed(body)), most)
    if media_type.startswith("application/cloudevents"):
        raise _unsupported(f"The event format {media_type!r} is not supported. Send {STRUCTURED} or {BATCH}.")
    if any(name.startswith("ce-") for name in sent):
        return [_attempt(lambda: _binary(sent, body))]
    raise _unsupported(
        f"This is no CloudEvent: Content-Type is {media_type or 'missing'} and there are no ce- headers."
        f" Send {STRUCTURED}, {BATCH}, or the headers ce-specversion, ce-id, ce-source and ce-type with the data as body."
    )


def read_object(body: bytes) -> dict[str, Any]:
    """A JSON object, read as strictly as events are; an empty body is an empty one.

    :raises UnacceptableError: it is anything else.
    """

    def parsed() -> dict[str, Any]:
        found = _strictly_parsed(body) if body.strip() else {}
        if not isinstance(found, dict):
            raise ValueError("it must be a JSON object")
        return found

    return _attempt(parsed)


def _batch(found: Any, most: int) -> list[ReceivedEvent[Any]]:
    if not isinstance(found, list):
        raise _invalid("a batch is a JSON array of events")
    if len(found) > most:
        said = f"A batch of {len(found)} events: EVENTS['MAX_BATCH'] allows {most} in one transaction. Send several batches."
        raise UnacceptableError(413, "PayloadTooLargeError", said)
    return [
        _attempt(partial(_structured, attributes), where=f"in event {number} of the batch ")
        for number, attributes in enumerate(found)
    ]


def _binary(sent: dict[str, str], body: bytes) -> ReceivedEvent[Any]:
    if "ce-datacontenttype" in sent:
        raise ValueError("its datacontenttype belongs into the header Content-Type")
    _check_time(unquote(sent["ce-time"]) if "ce-time" in sent else None)
    found = from_binary(HTTPMessage(sent, body), _StrictFormat(), _strictly_made)
    return _received(found, has_time="ce-time" in sent)


def _attempt(read: Callable[[], T], where: str = "") -> T:
    try:
        return read()
    except RecursionError:
        raise _invalid(f"{where}it is nested too deeply") from None
    except Exception as error:  # the package lets through whatever its parts raise on what they do not expect
        raise _invalid(where + _said(error)) from error


def _said(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, (ValueError, BaseCloudEventException)):
        return str(error).removeprefix("Failed to create CloudEvent due to the validation errors:: ")
    return f"an attribute is not what it should be ({type(error).__name__}: {error})"


def _structured(found: Any) -> ReceivedEvent[Any]:
    if not isinstance(found, dict):
        raise ValueError("an event is a JSON object")
    payload, encoded = found.get("data"), found.get("data_base64")
    # An attribute without a value is one that is not there.
    attributes = {name: value for name, value in found.items() if value is not None and name not in _DATA}
    _check_attributes(attributes)
    if encoded is not None:
        if payload is not None:
            raise ValueError("there are both data and data_base64")
        payload = _decoded(encoded, attributes.get("datacontenttype"))
    message = HTTPMessage({"content-type": STRUCTURED}, json.dumps(attributes).encode())
    made = from_structured(message, JSONFormat(), lambda known, _: _strictly_made(known, payload))
    return _received(made, has_time="time" in attributes)


class _StrictFormat(JSONFormat):
    """The data of an event in binary mode, as its media type says and not as it happens to look."""

    def read_data(self, body: bytes, datacontenttype: str | None) -> Any:
        """JSON by default, text, or bytes."""
        return _payload(body, datacontenttype or self.DEFAULT_CONTENT_TYPE) if body else None


def _strictly_made(attributes: dict[str, Any], payload: Any) -> BaseCloudEvent:
    """A CloudEvent, none of whose attributes is made up or cannot be stored."""
    _check_attributes(attributes)
    return CloudEvent(attributes, payload)


def _check_attributes(attributes: Mapping[str, Any]) -> None:
    missing = [name for name in _REQUIRED if name not in attributes]
    if missing:
        raise ValueError(f"the attribute {missing[0]!r} is missing")
    if len(attributes) > _MOST_ATTRIBUTES:
        raise ValueError(f"there are {len(attributes)} attributes, more than {_MOST_ATTRIBUTES}")
    for name, value in attributes.items():
        _check_attribute(name, value)


def _check_attribute(name: str, value: Any) -> None:
    if len(name) > MAX_ID_LENGTH:
        raise ValueError(f"the name {name[:20]!r}... of an attribute is too long")
    if name == "time":
        if not isinstance(value, datetime):  # read already
            _check_time(value)
        return
    if isinstance(value, str):
        if not 0 < len(value) <= _limit_of(name):
            raise ValueError(f"the attribute {name!r} is a text of 1 to {_limit_of(name)} characters")
        if _NOT_IN_ATTRIBUTES.search(value):
            raise ValueError(f"the attribute {name!r} holds a control character or half a surrogate pair")
        return
    if name in _REQUIRED or name in _OPTIONAL or name == "eddainstanceid":
        raise ValueError(f"the attribute {name!r} is a text")
    if not isinstance(value, int) or not -_LARGEST_INTEGER <= value < _LARGEST_INTEGER:
        raise ValueError(f"the extension {name!r} is a text, a truth value, or an integer of 32 bits")


def _check_time(value: Any) -> None:
    if value is not None and (not isinstance(value, str) or len(value) > _LONGEST_TIME or not _TIME.fullmatch(value)):
        raise ValueError("the attribute 'time' is an RFC 3339 time with its zone, such as '2026-05-04T03:02:01Z'")


def _limit_of(name: str) -> int:
    return MAX_ID_LENGTH if name in ("type", "eddainstanceid") else _LONGEST_ATTRIBUTE


def _received(event: BaseCloudEvent, *, has_time: bool) -> ReceivedEvent[Any]:
    time: datetime | None = event.get_time() if has_time else None  # the package makes one up
    attributes = event.get_attributes()
    return ReceivedEvent(
        data=event.get_data(),
        metadata=EventMetadata(
            type=event.get_type(),
            source=event.get_source(),
            id=event.get_id(),
            time=None if time is None else time.astimezone(UTC),
            subject=event.get_subject(),
            datacontenttype=event.get_datacontenttype(),
        ),
        extensions=MappingProxyType({name: value for name, value in attributes.items() if name not in _KNOWN}),
    )


def _decoded(encoded: Any, datacontenttype: Any) -> Any:
    """``data_base64`` means the same as those bytes would as the body of an event in binary mode."""
    if not isinstance(encoded, str):
        raise ValueError("data_base64 is a text")
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("data_base64 is not base64") from None
    return _payload(content, datacontenttype) if isinstance(datacontenttype, str) else content


def _payload(content: bytes, datacontenttype: str) -> Any:
    media_type, options = parse_options_header(datacontenttype)
    media_type = media_type.lower()
    if _JSON_MEDIA_TYPE.fullmatch(media_type):
        return _strictly_parsed(content)
    if not media_type.startswith("text/"):
        return content
    charset = options.get("charset", "utf-8").lower()
    try:
        if charset not in _CHARSETS:
            raise ValueError
        return content.decode(charset)
    except ValueError:
        raise ValueError(f"the data is not the text that {datacontenttype!r} says") from None


def _strictly_parsed(content: bytes) -> Any:
    try:
        return json.loads(
            content.decode(), object_pairs_hook=_unambiguous, parse_constant=_refuse_constant, parse_float=_finite
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from None


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:50]!r} is there twice")
    return found


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {digits[:20]} is too large")
    return number


def _invalid(message: str) -> UnacceptableError:
    return UnacceptableError(400, "InvalidEventError", f"The event is not valid: {message}.")


def _unsupported(message: str) -> UnacceptableError:
    return UnacceptableError(415, "UnsupportedMediaTypeError", message)
