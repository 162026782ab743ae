"""What the shop's neighbours have in common: a small JSON server on the standard library, as a program of its own."""

from __future__ import annotations

import argparse
import json
import random
import socket
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JsonRequest(BaseHTTPRequestHandler):
    """One request; answers are JSON."""

    protocol_version = "HTTP/1.1"

    def body(self) -> Any:
        """What was sent.

        :raises ValueError: it is not JSON.
        """
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def answer(self, status: int, content: dict[str, Any]) -> None:
        """Say this."""
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def hang_up(self) -> None:
        """Say nothing, and end the connection."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing; the books tell."""


class SmallServer(ThreadingHTTPServer):
    """Serves on a socket that is bound already; *attributes* are those of each request."""

    daemon_threads = True

    def __init__(self, listening: socket.socket, request: type[JsonRequest], **attributes: Any) -> None:
        bound = type("BoundRequest", (request,), attributes)
        super().__init__(listening.getsockname(), bound, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_name, self.server_port = listening.getsockname()[:2]
        self.server_activate()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A shop that was killed in the middle of a request is no error of ours."""


class Mood:
    """Draws how the next request is treated, from a seeded sequence; *trouble* is the share of bad manners."""

    def __init__(self, seed: int, trouble: float) -> None:
        self._random, self._trouble = random.Random(seed), trouble

    def draw(self, bad: Sequence[str], good: str) -> str:
        """One of the bad manners, or more often the good one."""
        return self._random.choice(bad) if self._random.random() < self._trouble else good

    def seconds(self, least: float, most: float) -> float:
        """So long."""
        return self._random.uniform(least, most)


def arguments(description: str, *, port: int) -> argparse.ArgumentParser:
    """What both take."""
    parser = argparse.ArgumentParser(description=description)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--port", type=int, default=port, help="port on 127.0.0.1 (default: %(default)s)")
    where.add_argument("--fd", type=int, help="an inherited socket that is bound already")
    parser.add_argument("--seed", type=int, default=1, help="of its moods (default: %(default)s)")
    parser.add_argument("--trouble", type=_share, default=0.3, help="share of bad answers (default: %(default)s)")
    return parser


def listening_socket(given: argparse.Namespace) -> socket.socket:
    """The socket that the arguments name."""
    if given.fd is not None:
        return socket.socket(fileno=given.fd)
    return socket.create_server(("127.0.0.1", given.port))


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError("a share is a number from 0 to 1")
    return share
