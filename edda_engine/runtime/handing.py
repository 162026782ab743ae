"""Handing what a thread has found to who waits for it on the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from edda_engine.threads import DaemonThreads

T = TypeVar("T")


def resolve(future: asyncio.Future[Any], found: Any) -> None:
    """Set a future to a value or an exception, unless nobody waits for it any more."""
    if future.done():
        return
    if isinstance(found, BaseException):
        future.set_exception(found)
    else:
        future.set_result(found)


def tell(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], found: Any) -> None:
    """Resolve a future of *loop* from another thread; if the loop has ended, nobody waits any more."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(resolve, future, found)


async def run_on(threads: DaemonThreads, work: Callable[[], T]) -> T:
    """Run *work* on one of the threads and wait for what it returns or raises."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def job() -> None:
        try:
            found: T | BaseException = work()
        except BaseException as error:  # whoever waits gets it, SystemExit too
            found = error
        tell(loop, future, found)

    threads.put(job)
    return await future
