"""What a test is told when a promise is broken; each is an ``AssertionError``, so a test runner counts it as a failure."""

from __future__ import annotations


class StuckError(AssertionError):
    """A workflow does not come to its end, however much time passes, or not in the time that the test has."""


class ReplayError(AssertionError):
    """The code of today does not repeat what is recorded."""


class CrashError(AssertionError):
    """After a crash something else came out than without one."""
