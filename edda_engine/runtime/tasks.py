"""Tasks that go on until the worker stops, and work that goes on although nobody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_GIVING_UP_SECONDS = 10.0

_log = logging.getLogger(__name__)


def keep_running(name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
    """Run a service until cancelled; one that breaks is begun again, and its error is logged."""

    async def for_ever() -> None:
        while True:
            try:
                await work()
            except Exception:  # a worker without one of its services would only look alive
                _log.exception("The %s of this worker broke; it is begun again", name)
                await asyncio.sleep(1.0)

    return asyncio.create_task(for_ever(), name=f"edda:{name}")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """What *work* returns. Whoever is cancelled meanwhile, however often, waits for its end before he goes."""
    task = asyncio.ensure_future(work)
    is_cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            is_cancelled = True
    if is_cancelled:
        task.cancelled() or task.exception()  # looked at: nobody is there to hear of it
        raise asyncio.CancelledError
    return task.result()


async def given_up(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their ends, but not for ever: they run user code."""
    left = [task for task in tasks if not task.done()]
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=_GIVING_UP_SECONDS)


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
