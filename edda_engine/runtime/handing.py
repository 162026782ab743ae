"""Handing what a thread has found to who waits for it on the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar, cast

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


class Answer(Generic[T]):
    """What will be said on the loop once, and can be waited for again by one whose wait was cancelled.

    Cheaper than a future that is shielded: what is said is not passed on from one future to another.
    """

    __slots__ = ("_found", "_waiter", "is_there")

    def __init__(self) -> None:
        self.is_there = False
        self._found: T | BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    def say(self, found: T | BaseException) -> None:
        """The answer, a value or an exception; only the first one counts."""
        if self.is_there:
            return
        self.is_there, self._found = True, found
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def say_as(self, task: asyncio.Task[T]) -> None:
        """What a task, which has ended, returned or raised."""
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        self.say(task.result() if error is None else error)

    async def wait(self) -> T:
        """The value, or the exception raised."""
        if not self.is_there:
            await self._told()
        if isinstance(self._found, BaseException):
            raise self._found
        return cast(T, self._found)

    async def is_there_within(self, seconds: float) -> bool:
        """Whether it comes in so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if not self.is_there:
                    await self._told()
        return self.is_there

    def _told(self) -> asyncio.Future[None]:
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter


def tell(loop: asyncio.AbstractEventLoop, resolve: Callable[[Any], None], found: Any) -> None:
    """Call *resolve* on the loop, from another thread; if the loop has ended, nobody waits any more."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(resolve, found)


async def run_on(threads: DaemonThreads, work: Callable[[], T]) -> T:
    """Run *work* on one of the threads and wait for what it returns or raises."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def job() -> None:
        try:
            found: T | BaseException = work()
        except BaseException as error:  # whoever waits gets it, SystemExit too
            found = error
        tell(loop, partial(resolve, future), found)

    threads.put(job)
    return await future
