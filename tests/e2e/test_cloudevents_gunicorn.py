"""Events delivered over HTTP to real gunicorn workers, by a real client."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from cloudevents.core.bindings.http import HTTPMessage, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from sqlalchemy import create_engine

from edda_wsgi.auth import sign
from tests.e2e import events_app
from tests.faults.processes import Process
from tests.integration.deliveries import ACCEPTED, batch, event, rows
from tests.integration.flask_apps import driver_url
from tests.support import eventually

SECRET = "a-secret-of-the-tests"


class Server:
    """gunicorn with two workers, and a client that signs what it sends."""

    def __init__(self, process: Process, url: str, database_url: str) -> None:
        self.process, self._url, self.database_url = process, url, database_url
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=20.0)

    def deliver(self, sent: CloudEvent, *, binary: bool = False) -> tuple[int, Any]:
        return self.send(to_binary_event(sent) if binary else to_structured_event(sent))

    def send(self, message: HTTPMessage, *, secret: str = SECRET, path: str = "/events") -> tuple[int, Any]:
        signature = sign(secret, path=path, headers=message.headers, body=message.body)
        answer = self._client.post(path, content=message.body, headers={**message.headers, **signature})
        return answer.status_code, answer.json()

    def stream(self, pieces: Iterable[bytes], headers: dict[str, str]) -> httpx.Response:
        """Deliver a body whose length is not known beforehand, so in chunks."""
        return self._client.post("/events", content=pieces, headers=headers)

    def raw(self, request: bytes) -> None:
        """Begin a request and hang up."""
        host, port = self._url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(request)

    def notes(self) -> list[str]:
        return sorted(row[0] for row in rows(self.database_url, "SELECT text FROM note"))

    def close(self) -> None:
        self._client.close()
        self.process.kill_group()
        print(self.process.log[-6000:])


@pytest.fixture
def dies_at() -> str:
    return ""


@pytest.fixture
def server(database_url: str, tmp_path: Path, dies_at: str) -> Iterator[Server]:
    engine = create_engine(driver_url(database_url))
    events_app.Base.metadata.create_all(engine)
    engine.dispose()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FLASK_", "EDDA_"))} | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "SHOP_DATABASE_URL": driver_url(database_url),
        "SHOP_SECRET": SECRET,
        "SHOP_FOLDER": str(tmp_path),
        "SHOP_DIES_AT": dies_at,
    }
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("wb") as file:
        command = ["-c", "python:edda_wsgi.gunicorn", "--workers", "2", "--bind", f"fd://{listener.fileno()}"]
        popen = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *command, "tests.e2e.events_app:create_app()"],
            cwd=Path(__file__).parents[2],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=(listener.fileno(),),
            start_new_session=True,
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    found = Server(Process(popen, log), url, database_url)
    yield found
    found.close()


def test_events_of_every_mode_start_and_wake_workflows_and_reach_handlers(server: Server) -> None:
    assert server.deliver(event("served.order", {"order_id": 1})) == ACCEPTED
    sent = event("served.order", {"order_id": 2}, id="2", datacontenttype="application/json", subject="ü 2")
    assert server.deliver(sent, binary=True) == ACCEPTED
    many = [event("served.order", {"order_id": number}, id=str(number)) for number in range(3, 9)]
    assert server.send(batch(*many, event("order.paid", 5, id="paid"))) == ACCEPTED
    expected = sorted([f"placed {number}" for number in range(1, 9)] + ["handled 5"])
    eventually(lambda: server.notes() == expected, timeout=40)


def test_the_same_event_delivered_to_all_workers_at_once_happens_once(server: Server) -> None:
    sent = [event("served.order", {"order_id": 7}), event("order.paid", 5, id="paid")] * 12
    with ThreadPoolExecutor(8) as pool:
        # As senders do: one whose connection is cut delivers again.
        list(pool.map(lambda each: eventually(lambda: accepted(server, each), timeout=40), sent))
    eventually(lambda: "placed 7" in server.notes(), timeout=40)
    assert server.notes() == ["handled 5", "placed 7"]


@pytest.mark.parametrize("dies_at", ["events.before_commit", "events.after_commit"])
def test_an_event_whose_worker_dies_before_the_answer_happens_once_when_it_comes_again(
    server: Server, dies_at: str
) -> None:
    with pytest.raises(httpx.TransportError):
        server.deliver(event("order.paid", 5))
    eventually(lambda: accepted(server, event("order.paid", 5)), timeout=40)
    assert server.notes() == ["handled 5"]


def accepted(server: Server, sent: CloudEvent) -> bool:
    try:
        return server.deliver(sent) == ACCEPTED
    except httpx.TransportError:
        return False


def test_what_is_not_signed_or_too_large_or_broken_off_is_refused(server: Server) -> None:
    sent = to_structured_event(event("order.paid", 5))
    assert server.send(sent, secret="another")[0] == 401
    assert server.send(HTTPMessage(sent.headers, sent.body + b" " * 100_000))[0] == 413

    def endless() -> Iterator[bytes]:
        for _ in range(10_000):
            yield b" " * 10_000

    try:
        answer = server.stream(endless(), {**sent.headers, "Edda-Signature": "t=1,v1=00"})
    except httpx.TransportError:
        pass  # the server has hung up in the middle of the body
    else:
        assert answer.status_code in (401, 413)
    chunks = [sent.body[:10], sent.body[10:]]
    signature = sign(SECRET, path="/events", headers=sent.headers, body=sent.body)
    assert server.stream(iter(chunks), {**sent.headers, **signature}).status_code == 202

    half = to_binary_event(event("order.paid", b"half", id="half", datacontenttype="application/octet-stream"))
    signature = sign(SECRET, path="/events", headers=half.headers, body=half.body)
    lines = [f"{name}: {value}" for name, value in {**half.headers, **signature}.items()]
    head = "\r\n".join(["POST /events HTTP/1.1", "Host: shop", *lines, "Content-Length: 100", "", ""])
    server.raw(head.encode() + half.body)
    server.raw(head.replace("Content-Length: 100", "Transfer-Encoding: chunked").encode() + b"nonsense\r\n")
    assert server.deliver(event("order.paid", 6, id="after")) == ACCEPTED
    assert server.notes() == ["handled 5", "handled 6"]
    assert SECRET not in server.process.log
    assert "Traceback" not in server.process.log


def test_an_instance_is_cancelled_over_http(server: Server) -> None:
    empty = HTTPMessage({}, b"")
    assert server.send(empty, path="/events/cancel/nobody")[0] == 404
    server.deliver(event("served.order", {"order_id": 7}))
    ((instance_id,),) = rows(server.database_url, "SELECT instance_id FROM edda_instances")
    eventually(lambda: server.notes() == ["placed 7"], timeout=40)
    eventually(
        lambda: server.send(empty, path=f"/events/cancel/{instance_id}") == (200, {"status": "ended already"}),
        timeout=20,
    )
