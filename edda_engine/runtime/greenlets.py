"""Plain ``def`` bodies on the event loop: each runs in a greenlet that hands its awaitables to the loop.

A call that must wait switches to the parent greenlet, which awaits in the body's task and switches back with
the value, or throws. The body never holds a thread while it waits.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from greenlet import getcurrent, greenlet


class _Body(greenlet):  # type: ignore[misc]  # greenlet has no stubs
    """A greenlet that runs a plain ``def`` body, in the context variables of the task that drives it."""

    def __init__(self, function: Callable[..., Any], parent: greenlet) -> None:
        super().__init__(function, parent)
        self.gr_context = parent.gr_context


async def run_in_greenlet(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a plain function that may use :func:`wait_in_greenlet`; returns what it returns."""
    body = _Body(function, getcurrent())
    value = body.switch(*args, **kwargs)
    while not body.dead:
        try:
            awaited = await value
        except BaseException:  # whatever it is belongs to the body, which decides what to do about it
            value = body.throw(*sys.exc_info())
        else:
            value = body.switch(awaited)
    return value


def is_in_greenlet() -> bool:
    """Whether the caller is a plain ``def`` body."""
    return isinstance(getcurrent(), _Body)


def wait_in_greenlet(awaitable: Awaitable[Any]) -> Any:
    """Wait for *awaitable* without holding the thread."""
    parent = getcurrent().parent
    assert parent is not None
    return parent.switch(awaitable)


def hand_out(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a call gives its caller: in a plain ``def`` body the value, in an ``async def`` one something to await."""
    return wait_in_greenlet(coroutine) if is_in_greenlet() else coroutine
