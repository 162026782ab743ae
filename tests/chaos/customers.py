"""Customers: they place their orders with one server and pay at the other, and ask again until they are answered."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import httpx

from tests.chaos import story

_CUSTOMERS = 16
_PATIENCE_SECONDS = 5.0
_PAUSE_SECONDS = 0.1


class Customers:
    """Come one after the other, evenly over *seconds*."""

    def __init__(self, urls: Sequence[str], *, orders: int, seconds: float, seed: int) -> None:
        self._urls, self._orders, self._seconds = urls, orders, seconds
        self._random = random.Random(f"customers {seed}")
        self._client = httpx.Client(timeout=_PATIENCE_SECONDS, trust_env=False)
        self._pool = ThreadPoolExecutor(_CUSTOMERS, thread_name_prefix="customer")
        self._leaving = threading.Event()
        self._lock = threading.Lock()
        self._futures: list[Future[None]] = []
        self.asked_again = 0

    def start(self) -> None:
        """Let them come."""
        now = time.monotonic()
        for number in range(1, self._orders + 1):
            first = self._random.randrange(len(self._urls))
            thinks_seconds = self._random.choice((0.0, 0.0, 0.5, 1.5))
            due = now + self._seconds * number / self._orders
            self._futures.append(self._pool.submit(self._buy, number, first, thinks_seconds, due))

    def all_are_served(self) -> bool:
        """Whether everybody is answered.

        :raises AssertionError: somebody was refused.
        """
        done = [future for future in self._futures if future.done()]
        for future in done:
            future.result()
        return len(done) == len(self._futures)

    def ask(self, path: str, *, first: int = 0) -> None:
        """Post this to one server after the other, until one answers.

        :raises AssertionError: it was refused.
        """
        for attempt in range(1_000_000):
            try:
                status = self._client.post(self._urls[(first + attempt) % len(self._urls)] + path).status_code
            except httpx.TransportError:
                status = 599  # killed while it answered: perhaps it is done, perhaps not
            if status < 500:
                assert status in (200, 202), f"{path} was refused with {status}"
                return
            with self._lock:
                self.asked_again += 1
            if self._leaving.wait(_PAUSE_SECONDS):
                return

    def close(self) -> None:
        """Send them home."""
        self._leaving.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def _buy(self, number: int, first: int, thinks_seconds: float, due: float) -> None:
        if self._leaving.wait(max(0.0, due - time.monotonic())):
            return
        self.ask(f"/orders/{number}", first=first)
        if story.is_paid(number) and not self._leaving.wait(thinks_seconds):
            self.ask(f"/payments/{number}", first=first + 1)
