"""The tasks of a worker that go on until it stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

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


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
