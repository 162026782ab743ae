"""Timers: a workflow sleeps for seconds or months and holds nothing meanwhile.

The due time is fixed once, by the database's clock, when the body first gets there; a crash does not move it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, overload

from edda_engine.context import SyncWorkflowContext, WorkflowContext, body_of
from edda_engine.core.ports import WaitKind, WaitRequest

_CENTURY_SECONDS = 36525 * 86400.0
LAST_YEAR = 9000


@overload
def sleep(ctx: SyncWorkflowContext, seconds: float | timedelta, timer_id: str | None = None) -> None: ...
@overload
def sleep(ctx: WorkflowContext, seconds: float | timedelta, timer_id: str | None = None) -> Awaitable[None]: ...
def sleep(ctx: Any, seconds: float | timedelta, timer_id: str | None = None) -> Any:
    """Let this workflow go on after so many seconds.

    Awaitable in an ``async def`` body, ``await sleep(ctx, 3600)``; in a plain ``def`` body it returns when it is time.
    Neither a thread nor a connection is held; after a crash the rest of the time is waited for.

    :param seconds: Seconds, or a ``timedelta``; zero or less is over at once.
    :param timer_id: The id of this step in history; numbered by itself if left out.
    :raises ValueError: not a number, or longer than a century.
    :raises UsageError: called outside a workflow body.
    """
    body = body_of(ctx, "sleep()", "In an activity use time.sleep(), or let it raise and be retried later.")
    request = WaitRequest(WaitKind.TIMER, seconds=checked_seconds("sleep", "seconds", seconds))
    return body.wait("sleep", request, lambda _: None, activity_id=timer_id)


@overload
def sleep_until(ctx: SyncWorkflowContext, moment: datetime, timer_id: str | None = None) -> None: ...
@overload
def sleep_until(ctx: WorkflowContext, moment: datetime, timer_id: str | None = None) -> Awaitable[None]: ...
def sleep_until(ctx: Any, moment: datetime, timer_id: str | None = None) -> Any:
    """Let this workflow go on at *moment*, or at once if that has passed.

    :param moment: An aware instant, such as ``datetime.now(UTC) + timedelta(days=1)`` taken from ``ctx.now()``.
    :param timer_id: The id of this step in history; numbered by itself if left out.
    :raises ValueError: *moment* is naive, or not in the years 1 to 9000 of UTC.
    :raises UsageError: called outside a workflow body.
    """
    body = body_of(ctx, "sleep_until()", "In an activity raise an error to be retried later.")
    if not isinstance(moment, datetime):
        raise ValueError(f"sleep_until() takes a datetime, not {moment!r}.")
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise ValueError(
            f"sleep_until({moment!r}): the time has no zone, so it means another instant on each host. Give an aware"
            " one, such as ctx.now() + timedelta(hours=1) or datetime(..., tzinfo=UTC)."
        )
    request = WaitRequest(WaitKind.TIMER, until=_in_utc(moment))
    return body.wait("sleep_until", request, lambda _: None, activity_id=timer_id)


wait_timer = sleep
wait_until = sleep_until


def checked_seconds(function: str, name: str, value: float | timedelta) -> float:
    """A finite number of seconds.

    :raises ValueError: it is none.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise ValueError(f"{function}({name}={value!r}): a number of seconds or a timedelta is needed.")
    # Compared as it is: an integer may be too large for a float.
    if not -math.inf < seconds <= _CENTURY_SECONDS:
        raise ValueError(
            f"{function}({name}={value!r}): at most a century, {_CENTURY_SECONDS:.0f} seconds, can be waited."
        )
    return float(max(0, seconds))


def _in_utc(moment: datetime) -> datetime:
    found: datetime | None = None
    with suppress(OverflowError):
        found = moment.astimezone(UTC)
    if found is None or found.year > LAST_YEAR:
        raise ValueError(
            f"sleep_until({moment!r}): only a time in the years 1 to {LAST_YEAR} of UTC can be waited for."
        )
    return found
