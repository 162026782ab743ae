"""A payment service with bad manners, as a process of its own: ``python -m example_flask_app.payment_service``.

``POST /charges`` only takes an order for payment; what came of it is told later, by a signed CloudEvent to the address
that was given. The service refuses some requests, dawdles over others, sometimes does what it was asked and hangs up
without an answer, and sometimes tells the same event twice. In one thing it can be relied on: one ``Idempotency-Key``
is one charge, however often it is sent. A card that ends in 0000 is declined; the bank of one that ends in 9999 is
never heard of again, until the shop withdraws the charge with ``DELETE /charges``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import uuid
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import httpx

from edda_wsgi.auth import sign
from example_flask_app.small_server import JsonRequest, Mood, SmallServer, arguments, listening_socket

SECRET_VARIABLE = "SHOP_EVENT_SECRET"
REFUSED, HUNG_UP, SLOW, PROMPT = "refused", "hung up", "slow", "prompt"
TOLD_ONCE, TOLD_TWICE = "told once", "told twice"
OPEN, PAID, DECLINED, WITHDRAWN = "open", "paid", "declined", "withdrawn"
_LONGEST_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Charge:
    """A sum that is to be paid, and what came of it."""

    key: str
    reference: str
    amount_cents: int
    card: str
    outcome: str = OPEN


class Books:
    """What has been charged, and how each request was treated."""

    def __init__(self, mood: Mood, slow_seconds: float) -> None:
        self._mood, self._slow_seconds = mood, slow_seconds
        self._lock = threading.Lock()
        self._charges: dict[str, Charge] = {}
        self._manners: Counter[str] = Counter()

    def treat(self) -> str:
        """Take some time over a request; how it is treated."""
        with self._lock:
            manner = self._mood.draw((REFUSED, REFUSED, HUNG_UP, SLOW), PROMPT)
            self._manners[manner] += 1
            seconds = self._slow_seconds if manner == SLOW else self._mood.seconds(0.02, 0.1)
        time.sleep(seconds)
        return manner

    def think(self) -> str:
        """Take as much time as a bank does; how its answer is told."""
        with self._lock:
            manner = self._mood.draw((TOLD_TWICE,), TOLD_ONCE)
            self._manners[manner] += 1
            seconds = self._mood.seconds(0.05, 0.4)
        time.sleep(seconds)
        return manner

    def open(self, key: str, amount_cents: int, card: str) -> tuple[Charge, bool]:
        """The charge of this key, and whether it is new."""
        with self._lock:
            new = Charge(key, f"pay-{len(self._charges) + 1:05}", amount_cents, card)
            found = self._charges.setdefault(key, new)
            return found, found is new

    def end(self, key: str, outcome: str) -> Charge:
        """End a charge so, unless it has ended already; the charge as it is then. One that never was cannot be any more."""
        with self._lock:
            found = self._charges.get(key, Charge(key, "none", 0, ""))
            if found.outcome == OPEN:
                found = replace(found, outcome=outcome)
            self._charges[key] = found
            return found

    def summary(self) -> dict[str, Any]:
        """Everything, for an audit."""
        with self._lock:
            return {"charges": [asdict(charge) for charge in self._charges.values()], "manners": dict(self._manners)}


class Bank:
    """Decides after a while, and tells whoever asked."""

    def __init__(self, books: Books, secret: str) -> None:
        self._books, self._secret = books, secret
        self._client = httpx.Client(timeout=10.0)

    def decide(self, charge: Charge, answer_to: str, instance_id: str) -> None:
        """Begin to think about a charge."""
        if not charge.card.endswith("9999"):
            threading.Thread(target=self._decide, args=(charge, answer_to, instance_id), daemon=True).start()

    def _decide(self, charge: Charge, answer_to: str, instance_id: str) -> None:
        manner = self._books.think()
        ended = self._books.end(charge.key, DECLINED if charge.card.endswith("0000") else PAID)
        if ended.outcome == WITHDRAWN:
            return
        event = {
            "specversion": "1.0",
            "type": "payment.settled",
            "source": "payment-service",
            "id": str(uuid.uuid4()),
            "eddainstanceid": instance_id,
            "data": {"outcome": ended.outcome, "reference": ended.reference},
        }
        for _ in range(2 if manner == TOLD_TWICE else 1):
            self._deliver(answer_to, json.dumps(event).encode())

    def _deliver(self, url: str, body: bytes) -> None:
        """Post it until it is taken; whoever gets it notices by its id that it has come before."""
        pause = 0.05
        while True:
            headers = {"Content-Type": "application/cloudevents+json"}
            headers |= sign(self._secret, path=urlsplit(url).path, headers=headers, body=body)
            try:
                status = self._client.post(url, content=body, headers=headers).status_code
            except httpx.TransportError:
                status = 503
            if status < 500:
                return
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


class PaymentRequest(JsonRequest):
    """``POST`` opens a charge, ``DELETE`` withdraws it, ``GET`` shows the books."""

    books: Books
    bank: Bank

    def do_GET(self) -> None:
        self.answer(200, self.books.summary())

    def do_POST(self) -> None:
        key = self.headers.get("Idempotency-Key")
        try:
            wanted = self.body()
            amount_cents, card = int(wanted["amount_cents"]), str(wanted["card"])
            answer_to, instance_id = str(wanted["answer_to"]), str(wanted["instance_id"])
        except (ValueError, TypeError, KeyError):
            return self.answer(400, {"error": "Send JSON with amount_cents, card, answer_to and instance_id."})
        if not key:
            return self.answer(400, {"error": "Send an Idempotency-Key."})
        manner = self.books.treat()
        if manner == REFUSED:
            return self.answer(503, {"error": "Not now."})
        charge, is_new = self.books.open(key, amount_cents, card)
        if is_new:
            self.bank.decide(charge, answer_to, instance_id)
        return self._say(manner, 202, charge)

    def do_DELETE(self) -> None:
        manner = self.books.treat()
        if manner == REFUSED:
            return self.answer(503, {"error": "Not now."})
        return self._say(manner, 200, self.books.end(self.headers.get("Idempotency-Key", ""), WITHDRAWN))

    def _say(self, manner: str, status: int, charge: Charge) -> None:
        if manner == HUNG_UP:
            return self.hang_up()
        return self.answer(status, {"outcome": charge.outcome, "reference": charge.reference})


def main() -> None:
    parser = arguments("Run the payment service until it is killed.", port=8001)
    parser.add_argument("--slow-seconds", type=float, default=1.0, help="when it dawdles (default: %(default)s)")
    given = parser.parse_args()
    secret = os.environ.get(SECRET_VARIABLE)
    if not secret:
        sys.exit(f"Set {SECRET_VARIABLE} to the secret that the shop shares with its payment service.")
    books = Books(Mood(given.seed, given.trouble), given.slow_seconds)
    SmallServer(listening_socket(given), PaymentRequest, books=books, bank=Bank(books, secret)).serve_forever()


if __name__ == "__main__":
    main()
