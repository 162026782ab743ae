"""A broker for tests: a real HTTP server in a thread that reads every request with the real CloudEvents package."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.http import HTTPMessage, from_http_event

Answer = tuple[int, dict[str, str], bytes]

ACCEPTED: Answer = (202, {}, b"")


@dataclass
class Receiver:
    """What came, and how it is answered."""

    url: str = ""
    answer: Callable[[BaseCloudEvent], Answer] = lambda _: ACCEPTED
    """Called with each event; what it returns is the answer."""
    seen: list[BaseCloudEvent] = field(default_factory=list)
    """Every event that came, taken or not, in the order of the requests' arrival."""
    taken: list[BaseCloudEvent] = field(default_factory=list)
    """Those that were answered with 2xx."""
    requests: list[HTTPMessage] = field(default_factory=list)
    most_at_once: int = 0
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def taken_ids(self) -> list[str]:
        return [event.get_id() for event in self.taken]

    @property
    def data(self) -> list[Any]:
        """The payloads that were taken, in order."""
        return [event.get_data() for event in self.taken]

    def receive(self, message: HTTPMessage) -> Answer:
        """One request; an event that is no CloudEvent is answered with 400."""
        with self._lock:
            self.requests.append(message)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            try:
                event = from_http_event(message)
            except Exception as error:
                return 400, {}, str(error).encode()
            with self._lock:
                self.seen.append(event)
            answer = self.answer(event)
            if 200 <= answer[0] < 300:
                with self._lock:
                    self.taken.append(event)
            return answer
        finally:
            with self._lock:
                self._at_once -= 1


@contextmanager
def receiving(*, port: int = 0) -> Iterator[Receiver]:
    """A receiver that answers 202 to everything, until told otherwise."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, headers, told = receiver.receive(HTTPMessage(dict(self.headers.items()), body))
            try:
                self.send_response_only(status)  # without a Date of its own
                for name, value in {"Content-Length": str(len(told)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(told)
            except OSError:
                self.close_connection = True  # whoever asked does not wait any more

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: Any) -> None:
            """A client that was killed is no error here."""

    server = Server(("127.0.0.1", port), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/events"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="receiver", daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
