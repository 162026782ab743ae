"""The one way to wait in a test."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(look: Callable[[], T], *, timeout: float = 20.0, pause: float = 0.01) -> T:
    """Call *look* until it returns something true, and return that; fail after *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"{look} did not become true within {timeout} s; the last answer was {found!r}")
        time.sleep(pause)
