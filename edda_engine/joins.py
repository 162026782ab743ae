"""A change made in an ``AsyncSession`` or ``AsyncConnection`` that somebody else commits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

from edda_engine.errors import UsageError
from edda_engine.unsaved import after_commit

T = TypeVar("T")


async def write_in(session: Any, work: Callable[[Connection], T], then: Callable[[], None]) -> T:
    """Do *work* in the transaction of *session*; *then* follows its commit, which only a session tells of.

    :raises UsageError: it is neither a session nor a connection for asyncio.
    """
    found = session() if isinstance(session, async_scoped_session) else session
    if isinstance(found, AsyncSession):
        done = await (await found.connection()).run_sync(work)
        after_commit(found.sync_session, then)
        return done
    if isinstance(found, AsyncConnection):
        return await found.run_sync(work)
    raise UsageError(
        f"session= takes an AsyncSession or AsyncConnection, or None to commit at once, not {found!r:.80}."
    )
