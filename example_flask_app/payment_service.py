"""A payment service with bad manners, as a process of its own: ``python -m example_flask_app.payment_service``.

It refuses some requests, dawdles over others, and sometimes takes the money and then hangs up without an answer.
What it does next is drawn from a seeded sequence. In one thing it can be relied on: one ``Idempotency-Key`` is
charged once, however often it is sent. A card number ending in 0000 is declined.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REFUSED, HUNG_UP, SLOW, PROMPT = "refused", "hung up after charging", "slow", "prompt"


@dataclass(frozen=True, slots=True)
class Charge:
    """Money taken."""

    key: str
    reference: str
    amount_cents: int


class Ledger:
    """What has been charged, and how each request was treated."""

    def __init__(self, *, seed: int, trouble: float, slow_seconds: float) -> None:
        self._random = random.Random(seed)
        self._trouble, self._slow_seconds = trouble, slow_seconds
        self._lock = threading.Lock()
        self._charges: dict[str, Charge] = {}
        self._manners: Counter[str] = Counter()

    def draw(self) -> tuple[str, float]:
        """How the next request is treated, and how many seconds it takes."""
        with self._lock:
            manner = self._random.choices(
                (REFUSED, HUNG_UP, SLOW, PROMPT),
                (self._trouble / 2, self._trouble / 4, self._trouble / 4, 1 - self._trouble),
            )[0]
            self._manners[manner] += 1
            seconds = self._slow_seconds if manner == SLOW else self._random.uniform(0.02, 0.15)
        return manner, seconds

    def charge(self, key: str, amount_cents: int) -> Charge:
        """Take the money, unless this key has been charged before."""
        with self._lock:
            return self._charges.setdefault(key, Charge(key, f"pay-{len(self._charges) + 1:05}", amount_cents))

    def summary(self) -> dict[str, Any]:
        """Everything, for an audit."""
        with self._lock:
            return {
                "charges": [asdict(charge) for charge in self._charges.values()],
                "requests": sum(self._manners.values()),
                "manners": dict(self._manners),
            }


class PaymentRequest(BaseHTTPRequestHandler):
    """``POST /charges`` takes money, ``GET /charges`` shows the books."""

    ledger: Ledger
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path != "/charges":
            return self._answer(404, {"error": "There is only /charges here."})
        return self._answer(200, self.ledger.summary())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key = self.headers.get("Idempotency-Key")
        try:
            wanted = json.loads(body)
            amount_cents, card = int(wanted["amount_cents"]), str(wanted["card"])
        except (ValueError, TypeError, KeyError):
            return self._answer(400, {"error": "Send JSON with amount_cents and card."})
        if self.path != "/charges" or not key:
            return self._answer(400, {"error": "POST to /charges, with an Idempotency-Key."})
        manner, seconds = self.ledger.draw()
        time.sleep(seconds)
        if manner == REFUSED:
            return self._answer(503, {"error": "Not now."})
        if card.endswith("0000"):
            return self._answer(402, {"error": "The card was declined."})
        charge = self.ledger.charge(key, amount_cents)
        if manner == HUNG_UP:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        return self._answer(201, asdict(charge))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing; the books tell."""

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class PaymentServer(ThreadingHTTPServer):
    """Serves on a socket that is bound already."""

    daemon_threads = True

    def __init__(self, listening: socket.socket, ledger: Ledger) -> None:
        bound = type("BoundRequest", (PaymentRequest,), {"ledger": ledger})
        super().__init__(listening.getsockname(), bound, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_name, self.server_port = listening.getsockname()[:2]
        self.server_activate()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A shop that was killed in the middle of a request is no error of ours."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the payment service until it is killed.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--port", type=int, default=8001, help="port on 127.0.0.1 (default: %(default)s)")
    where.add_argument("--fd", type=int, help="an inherited socket that is bound already")
    parser.add_argument("--seed", type=int, default=1, help="of its moods (default: %(default)s)")
    parser.add_argument("--trouble", type=float, default=0.3, help="share of bad answers (default: %(default)s)")
    parser.add_argument("--slow-seconds", type=float, default=1.0, help="when it dawdles (default: %(default)s)")
    given = parser.parse_args()
    if not 0 <= given.trouble <= 1:
        parser.error("--trouble is a share, from 0 to 1")
    listening = (
        socket.socket(fileno=given.fd) if given.fd is not None else socket.create_server(("127.0.0.1", given.port))
    )
    PaymentServer(
        listening, Ledger(seed=given.seed, trouble=given.trouble, slow_seconds=given.slow_seconds)
    ).serve_forever()


if __name__ == "__main__":
    main()
