"""Requests that no client would send, written byte by byte to a real gunicorn: lies about bodies, forged headers.

What is refused by whom does not matter: that nothing of it is taken, and that the next event is.
"""

from __future__ import annotations

import gzip
import socket

import pytest
from cloudevents.core.bindings.http import HTTPMessage, to_binary_event, to_structured_event

from edda_wsgi.auth import sign
from tests.e2e.test_cloudevents_gunicorn import SECRET, Server
from tests.integration.deliveries import ACCEPTED, event, rows
from tests.support import eventually


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """What a request is made of has nothing to do with the kind of database."""
    return sqlite_url


def head(message: HTTPMessage, *more: str, path: str = "/events", without: str = "") -> str:
    """The head of a request that is signed for ``/events``, with more lines."""
    signature = sign(SECRET, path="/events", headers=message.headers, body=message.body)
    lines = [f"{name}: {value}" for name, value in {**message.headers, **signature}.items() if name != without]
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: shop", "Connection: close", *lines, *more, "", ""])


def answers(server: Server, request: bytes) -> list[int]:
    """Every status that comes back: more than one, and a second request was smuggled in."""
    host, port = server._url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            told = b""
            while piece := connection.recv(65_536):
                told += piece
        except ConnectionError:
            pass  # it has hung up on us, which is an answer as well
    return [int(line[9:12]) for line in told.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]


def test_no_lie_about_a_request_is_believed(server: Server) -> None:
    eventually(lambda: server.deliver(event("order.paid", 1)) == ACCEPTED, timeout=40)
    sent = to_structured_event(event("order.paid", 2, id="2"))
    binary = to_binary_event(event("order.paid", 3, id="3", datacontenttype="application/json"))
    size, chunks = (
        f"Content-Length: {len(sent.body)}",
        f"{len(sent.body):x}\r\n".encode() + sent.body + b"\r\n0\r\n\r\n",
    )
    smuggled = head(sent, size).encode() + sent.body
    bare = to_structured_event(event("order.paid", 4, id="4"))  # never signed as it is sent
    packed = gzip.compress(b" " * 50_000_000)

    requests = {
        "two lengths": head(sent, size, "Content-Length: 0").encode() + smuggled,
        "a length and chunks": head(sent, "Content-Length: 5", "Transfer-Encoding: chunked").encode() + b"0\r\n\r\n" + smuggled,
        "chunks of another name": head(sent, "Transfer-Encoding: xchunked").encode() + chunks,
        "chunks twice": head(sent, "Transfer-Encoding: chunked, chunked").encode() + chunks,
        "a negative length": head(sent, "Content-Length: -5").encode() + sent.body,
        "a length with a sign": head(sent, f"Content-Length: +{len(sent.body)}").encode() + sent.body,
        "a length in hexadecimal": head(sent, f"Content-Length: 0x{len(sent.body):x}").encode() + sent.body,
        "an endless length": head(sent, "Content-Length: " + "9" * 4000).encode() + sent.body,
        "a length that is too short": head(sent, f"Content-Length: {len(sent.body) - 1}").encode() + sent.body,
        "no length at all": head(sent).encode() + sent.body,
        "a chunk without end": head(sent, "Transfer-Encoding: chunked").encode() + b"FFFFFFFFFFFFFFFF\r\n" + sent.body,
        "a chunk of negative size": head(sent, "Transfer-Encoding: chunked").encode() + b"-5\r\n" + sent.body,
        "a name with an underscore": head(binary, "Content-Length: 1", "ce_id: 3", without="ce-id").encode() + binary.body,
        "an attribute twice": head(binary, "Content-Length: 1", "ce-id: 5").encode() + binary.body,
        "a folded header": head(binary, "Content-Length: 1", "ce-other: a", "  ce-id:5").encode() + binary.body,
        "a header with a NUL": head(binary, "Content-Length: 1", "ce-other: a\0b").encode() + binary.body,
        "a name with a blank": head(binary, "Content-Length: 1", "ce-id : 5", without="ce-id").encode() + binary.body,
        "a bare line feed": head(binary, "Content-Length: 1", "ce-x: 1\nce-y: 2").encode() + binary.body,
        "a bomb": head(HTTPMessage(sent.headers, packed), f"Content-Length: {len(packed)}", "Content-Encoding: gzip").encode() + packed,
        "a path of its own": head(sent, size, path="/events/../events").encode() + sent.body,
        "a path with a host": head(sent, size, path="http://other/events/").encode() + sent.body,
        "no signature": b"\r\n".join([b"POST /events HTTP/1.1", b"Host: shop", b"Content-Type: application/cloudevents+json",
                                      b"Content-Length: %d" % len(bare.body), b"", bare.body]),
    }  # fmt: skip
    for name, request in requests.items():
        found = answers(server, request)  # in which nobody waits for what never comes
        assert all(400 <= status < 500 or status == 501 for status in found), (name, found)
        assert len(found) <= 1, (name, found)

    assert server.deliver(event("order.paid", 9, id="9")) == ACCEPTED
    assert server.notes() == ["handled 1", "handled 9"]
    assert rows(server.database_url, "SELECT DISTINCT event_id FROM edda_received_events ORDER BY 1") == [
        ("9",),
        ("event-1",),
    ]
    assert SECRET not in server.process.log
    assert "Traceback" not in server.process.log
