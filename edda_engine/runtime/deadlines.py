"""How long an attempt is waited for: to its end, to its deadline, or until the body gives it up.

An attempt that is not waited for any more is refused: nothing of it may be saved. One that is committing already counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from edda_engine.activity import Activity
from edda_engine.errors import ActivityTimeoutError
from edda_engine.runtime import attempts
from edda_engine.runtime.handing import Answer
from edda_engine.runtime.transactions import AttemptTransaction

Ending = Answer[attempts.Ending]


async def within_time(
    activity: Activity[..., Any],
    ending: Ending,
    transaction: AttemptTransaction,
    *,
    begun: Answer[None] | None = None,
    cancel: Callable[[], object] | None = None,
) -> attempts.Ending:
    """Wait for an attempt to end, at most for the activity's ``timeout_seconds`` from when it has *begun*.

    :param begun: Said when a thread has taken the attempt up; the time before does not count.
    :param cancel: Ends the attempt, if that can be done; it says then how it has ended.
    :raises asyncio.CancelledError: the body has given the attempt up, and nothing of it will be saved.
    """
    limit = activity.timeout_seconds
    try:
        if limit is None:
            return await ending.wait()
        if begun is not None:
            await begun.wait()
        is_in_time = await ending.is_there_within(limit)
    except asyncio.CancelledError:
        return await _given_up(ending, transaction)
    if is_in_time:
        return await ending.wait()
    late = ActivityTimeoutError(activity.name, limit)
    if cancel is not None:
        cancel()
        found = await _uninterrupted(ending, transaction)
        return found if not isinstance(found, attempts.Raised) else attempts.Raised(late)
    if not transaction.refuse():
        return await _uninterrupted(ending, transaction)  # it is committing: that counts
    await asyncio.to_thread(transaction.terminate_backend)
    return attempts.Raised(late)


async def _uninterrupted(ending: Ending, transaction: AttemptTransaction) -> attempts.Ending:
    """Wait for an attempt to end."""
    try:
        return await ending.wait()
    except asyncio.CancelledError:
        return await _given_up(ending, transaction)


async def _given_up(ending: Ending, transaction: AttemptTransaction) -> attempts.Ending:
    """The body no longer waits for this attempt. Unless it is committing already, nothing of it may be saved.

    :raises asyncio.CancelledError: it will not be saved.
    """
    if transaction.refuse():
        raise asyncio.CancelledError
    return await ending.wait()
