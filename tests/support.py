"""The one way to wait in a test, and the one way not to run it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

import pytest

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


def cannot_run(reason: str) -> NoReturn:
    """Skip a test that needs what is not there; in CI it is there, and its absence a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"This cannot run, and in CI it has to: {reason}")
    pytest.skip(reason)
