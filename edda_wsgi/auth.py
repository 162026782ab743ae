"""Who may deliver events: two ready-made checks for ``EVENTS["AUTH"]``.

Both take their secrets from ``EVENTS["SECRET"]`` and compare in constant time: all of the secrets are tried
always, and how long it takes tells nothing of how much was right.

A signature is the header ``Edda-Signature: t=<unix seconds>,v1=<hex>``. It covers all that an event consists of: the
time, the path, the content type, the ``ce-*`` headers (in binary mode the event's attributes are there) and the body.
One that was overheard is good for nothing else, nor for long, nor does the same event do anything twice. For that to
hold, what is signed must be read by everybody in one way: no byte that an event is made of may be left out of it, and
no line of it may pass for two.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence

from flask import Request, current_app

from edda_wsgi.application import Application
from edda_wsgi.event_settings import EventSettings

SIGNATURE_HEADER = "Edda-Signature"
_MOST_SIGNATURES = 8
_BLANKS = " \t"
"""What HTTP leaves out around a value. Any other blank is part of it: another value, which must be another signature."""


def check_signature(request: Request) -> bool:
    """Whether the request is signed with one of the secrets, and lately: see :func:`sign`."""
    settings = _settings()
    timestamp, signatures = _parsed(request.headers.get(SIGNATURE_HEADER, ""))
    if timestamp is None or abs(time.time() - timestamp) > settings.tolerance_seconds:
        return False
    path, headers = request.root_path + request.path, _sent(request)
    if any("\n" in line for line in (path, *headers, *headers.values())):
        return False  # one line could pass for two
    signed = _signed_content(timestamp, path, headers, request.get_data())
    # Once for each secret: a stranger decides how many signatures there are, and how long the body is.
    expected = [_signature(secret, signed).encode() for secret in settings.secrets]
    found = [hmac.compare_digest(right, given) for right in expected for given in signatures]
    return any(found)


def check_bearer_token(request: Request) -> bool:
    """Whether ``Authorization: Bearer <token>`` holds one of the secrets."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    # WSGI hands each byte on as a character; hashed, because a comparison may tell how long what it compares is.
    given = hashlib.sha256(token.strip(_BLANKS).encode("latin-1", "replace")).digest()
    found = [hmac.compare_digest(hashlib.sha256(secret).digest(), given) for secret in _settings().secrets]
    return any(found) and scheme.lower() == "bearer"


def sign(
    secret: str, *, path: str, headers: Mapping[str, str], body: bytes, timestamp: int | None = None
) -> dict[str, str]:
    """The header that signs a request, for senders written in Python.

    What is signed are these lines, each ended by a line feed, and then the body: the timestamp; the path; the
    headers ``content-type`` and ``ce-*`` that are sent, in lower case and sorted, as ``name:value``; an empty line.
    The signature is its HMAC-SHA256, in hexadecimal digits.

    :param path: Without host and query, and not percent-encoded: ``"/events"``.
    :param headers: Those of the request; the others among them do not matter.
    :param timestamp: Seconds since 1970; now if left out.
    """
    moment = int(time.time()) if timestamp is None else timestamp
    signed = _signed_content(moment, path, headers, body)
    return {SIGNATURE_HEADER: f"t={moment},v1={_signature(secret.encode(), signed)}"}


check_signature.needs_secret = check_signature.has_time = True  # type: ignore[attr-defined]
check_signature.challenge = SIGNATURE_HEADER  # type: ignore[attr-defined]
check_bearer_token.needs_secret = True  # type: ignore[attr-defined]
check_bearer_token.challenge = "Bearer"  # type: ignore[attr-defined]


def _settings() -> EventSettings:
    application: Application = current_app.extensions["edda"]
    settings: EventSettings = application.settings.events
    return settings


def _sent(request: Request) -> dict[str, str]:
    """The headers as they were sent; WSGI hands each byte on as a character."""
    return {
        name: value.encode("latin-1", "replace").decode("utf-8", "surrogateescape")
        for name, value in request.headers.items()
    }


def _signed_content(timestamp: int, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    lower = sorted((name.lower(), value.strip(_BLANKS)) for name, value in headers.items())
    covered = [f"{name}:{value}" for name, value in lower if name == "content-type" or name.startswith("ce-")]
    head = "\n".join([str(timestamp), path, *covered, "", ""])
    return head.encode("utf-8", "surrogateescape") + body


def _signature(secret: bytes, signed: bytes) -> str:
    return hmac.new(secret, signed, hashlib.sha256).hexdigest()


def _parsed(header: str) -> tuple[int | None, Sequence[bytes]]:
    """The timestamp and the signatures of a header; no timestamp if the header is not of this form."""
    timestamp: int | None = None
    signatures: list[bytes] = []
    for part in header.split(","):
        name, _, value = part.strip().partition("=")
        if name == "t" and timestamp is None and value.isascii() and value.isdigit() and len(value) <= 12:
            timestamp = int(value)
        elif name == "v1" and len(signatures) < _MOST_SIGNATURES:
            signatures.append(value.encode("utf-8", "replace"))
        else:
            return None, ()
    return timestamp, signatures
