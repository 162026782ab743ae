"""``HttpPublisher``: events as CloudEvents 1.0, posted to one URL.

Needs the extra ``cloudevents``. Import it from :mod:`edda_engine.outbox.publishers`.

How it thinks. An answer of 2xx means taken. 408, 425, 429 and 5xx, a network error and silence mean "later"; so
does a redirect or an answer that is not HTTP, which say something about the address and nothing about the event.
Any other 4xx means "never". Of an answer's body only the beginning is read: it may be endless.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Literal

import httpx
from cloudevents.core.bindings.http import HTTPMessage, to_binary, to_structured
from cloudevents.core.exceptions import BaseCloudEventException
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from edda_engine.errors import ConfigurationError, PublishLaterError, PublishRefusedError
from edda_engine.outbox.outgoing import OutgoingEvent

_LATER = (408, 425, 429)
_TOLD_CHARACTERS = 300
_READ_BYTES = 65_536
_READ_SECONDS = 1.0


class HttpPublisher:
    """Post each event to a URL as a CloudEvent 1.0.

    :param url: Where to; ``http`` or ``https``.
    :param mode: ``"structured"`` (one JSON document) or ``"binary"`` (attributes as headers, data as the body).
    :param timeout_seconds: How long one whole request may take; then it is tried again later.
    :param headers: Added to each request, such as ``{"Authorization": "Bearer ..."}``.
    """

    def __init__(
        self,
        url: str,
        *,
        mode: Literal["structured", "binary"] = "structured",
        timeout_seconds: float = 10.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._url = _checked_url(url)
        if mode not in ("structured", "binary"):
            raise ConfigurationError(f"MODE of HttpPublisher is 'structured' or 'binary', not {mode!r}.")
        if not _is_number(timeout_seconds) or not 0 < timeout_seconds <= 300:
            raise ConfigurationError(
                f"TIMEOUT_SECONDS of HttpPublisher is a number above 0, at most 300, not {timeout_seconds!r}."
            )
        self._mode, self._timeout_seconds = mode, float(timeout_seconds)
        self._headers = _checked_headers(headers or {})
        self._client: httpx.AsyncClient | None = None

    async def publish(self, event: OutgoingEvent) -> None:
        """Post one event.

        :raises PublishRefusedError: 4xx, or an event that cannot be written as a CloudEvent.
        :raises PublishLaterError: 408, 425, 429, 5xx, no answer in time, or none that makes sense.
        """
        message = self._message(event)
        answer = _Answer()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._post(message, answer)
        except TimeoutError:
            if answer.status is None:
                raise PublishLaterError(f"no answer within {self._timeout_seconds:g} s") from None
        except (httpx.LocalProtocolError, UnicodeError) as error:
            raise PublishRefusedError(f"the event cannot be sent over HTTP: {error}") from error
        except httpx.HTTPError as error:
            if answer.status is None:
                raise PublishLaterError(f"{type(error).__name__}: {error}") from error
        answer.judge()

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _post(self, message: HTTPMessage, answer: _Answer) -> None:
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=self._timeout_seconds, follow_redirects=False)
        headers = self._headers | message.headers
        async with self._client.stream("POST", self._url, content=message.body, headers=headers) as response:
            answer.status, answer.headers = response.status_code, response.headers
            # What it has to say is known; the rest is read for the reason, and so that the connection can be used again.
            with suppress(httpx.HTTPError, TimeoutError):
                async with asyncio.timeout(_READ_SECONDS):
                    async for chunk in response.aiter_raw():
                        answer.body += chunk
                        if len(answer.body) > _READ_BYTES:
                            break

    def _message(self, event: OutgoingEvent) -> HTTPMessage:
        is_binary = self._mode == "binary"
        try:
            made = CloudEvent(_attributes(event), _body(event) if is_binary else _value(event))
            return to_binary(made, JSONFormat()) if is_binary else to_structured(made, JSONFormat())
        except (BaseCloudEventException, ValueError, TypeError) as error:
            raise PublishRefusedError(f"the event cannot be written as a CloudEvent: {error}") from error


class _Answer:
    """What is known of a broker's answer so far."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.body = b""

    def judge(self) -> None:
        """Return if the event was taken, raise if not."""
        status = self.status or 0
        if 200 <= status < 300:
            return
        if 300 <= status < 400:
            where = self.headers.get("location", "nowhere")[:_TOLD_CHARACTERS]
            raise PublishLaterError(f"{status} to {where}: redirects are not followed; correct the URL")
        told = self._told()
        if status in _LATER or status >= 500 or status < 300:
            raise PublishLaterError(told, retry_after_seconds=_retry_after(self.headers))
        raise PublishRefusedError(told)

    def _told(self) -> str:
        try:
            phrase = HTTPStatus(self.status or 0).phrase
        except ValueError:
            phrase = "(not a status of HTTP)"
        body = " ".join(self.body[: 4 * _TOLD_CHARACTERS].decode(errors="replace").split())
        return f"{self.status} {phrase}" + (f": {body[:_TOLD_CHARACTERS]}" if body else "")


def _attributes(event: OutgoingEvent) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "id": event.event_id,
        "type": event.type,
        "source": event.source,
        "time": event.time,
        "datacontenttype": event.content_type,
    }
    if event.subject:
        attributes["subject"] = event.subject
    if event.ordering_key:
        attributes["partitionkey"] = event.ordering_key  # the documented extension of CloudEvents for this
    return attributes


def _is_json(content_type: str) -> bool:
    return re.match(JSONFormat.JSON_CONTENT_TYPE_PATTERN, content_type) is not None


def _value(event: OutgoingEvent) -> Any:
    """What stands under ``data``; under another content type than JSON only text or bytes may."""
    if event.data_binary is not None or _is_json(event.content_type):
        return event.data
    return _body(event).decode()


def _body(event: OutgoingEvent) -> bytes:
    """The payload itself: a text under another content type than JSON goes without quotes."""
    if event.data_binary is not None:
        return event.data_binary
    text = event.data_json or "null"
    if not _is_json(event.content_type):
        value = event.data
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode()


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, or an instant by the clock of whoever answered; what makes no sense counts as not said."""
    said = headers.get("retry-after", "").strip()
    if said.isascii() and said.isdigit():
        return float(said[:12])
    moment = _instant(said)
    if moment is None:
        return None
    now = _instant(headers.get("date", "")) or datetime.now(UTC)
    return max(0.0, (moment - now).total_seconds())


def _instant(text: str) -> datetime | None:
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _checked_url(url: object) -> str:
    try:
        parsed = httpx.URL(url) if isinstance(url, str) else None
    except httpx.InvalidURL:
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        shown = repr(url) if parsed is None or not parsed.userinfo else "it"
        raise ConfigurationError(
            f"URL of HttpPublisher is an address such as https://broker.example/events; {shown} is not."
        )
    return str(url)


def _checked_headers(headers: object) -> dict[str, str]:
    if isinstance(headers, Mapping) and all(_is_header(name, value) for name, value in headers.items()):
        return {name.lower(): value for name, value in headers.items()}
    # Without the values, which may be secret.
    raise ConfigurationError("HEADERS of HttpPublisher is a dict: names of headers, and their values in plain ASCII.")


def _is_header(name: object, value: object) -> bool:
    # A wrong one would only be noticed with each event, and look like the event's fault.
    is_name = isinstance(name, str) and re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII) is not None
    return is_name and isinstance(value, str) and re.fullmatch(r"[\x20-\x7e]*", value) is not None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
