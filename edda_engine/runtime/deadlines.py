"""How long an attempt is waited for: to its end, to its deadline, or until the body gives it up.

An attempt that is not waited for any more is refused: nothing of it may be saved. One that is committing already counts.
"""

from __future__ import annotations

import asyncio
from typing import Any

from edda_engine.activity import Activity
from edda_engine.errors import ActivityTimeoutError
from edda_engine.runtime import attempts
from edda_engine.runtime.transactions import AttemptTransaction


async def within_time(
    activity: Activity[..., Any],
    future: asyncio.Future[attempts.Ending],
    transaction: AttemptTransaction,
    *,
    begun: asyncio.Future[None] | None = None,
) -> attempts.Ending:
    """Wait for an attempt to end, at most for the activity's ``timeout_seconds`` from when it has *begun*.

    :param begun: Resolved when a thread has taken the attempt up; the time before does not count.
    :raises asyncio.CancelledError: the body has given the attempt up, and nothing of it will be saved.
    """
    limit = activity.timeout_seconds
    if limit is None:
        return await _uninterrupted(future, transaction)
    try:
        if begun is not None:
            either: set[asyncio.Future[Any]] = {begun, future}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        done, _ = await asyncio.wait({future}, timeout=limit)
    except asyncio.CancelledError:
        return await _given_up(future, transaction)
    if done:
        return future.result()
    late = ActivityTimeoutError(activity.name, limit)
    if isinstance(future, asyncio.Task):
        future.cancel()
        ending = await _uninterrupted(future, transaction)
        return ending if not isinstance(ending, attempts.Raised) else attempts.Raised(late)
    if not transaction.refuse():
        return await _uninterrupted(future, transaction)  # it is committing: that counts
    await asyncio.to_thread(transaction.terminate_backend)
    return attempts.Raised(late)


async def _uninterrupted(future: asyncio.Future[attempts.Ending], transaction: AttemptTransaction) -> attempts.Ending:
    """Wait for an attempt to end."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        return await _given_up(future, transaction)


async def _given_up(future: asyncio.Future[attempts.Ending], transaction: AttemptTransaction) -> attempts.Ending:
    """The body no longer waits for this attempt. Unless it is committing already, nothing of it may be saved.

    :raises asyncio.CancelledError: it will not be saved.
    """
    if transaction.refuse():
        raise asyncio.CancelledError
    return await asyncio.shield(future)
