"""Draining: how a worker that is to stop lets go of what it runs.

How it thinks. Nothing new begins. An attempt that is under way may end, for so many seconds, and what it has done is
saved. As soon as nothing is under way for an instance its lease is handed back, so that it goes on elsewhere while
others here still end. Whoever waits, for time, for a message or for the next attempt, has nothing under way. What has
not ended in time loses its lease: it can commit nothing any more, and is done again elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, MutableMapping

from edda_engine.errors import Suspended
from edda_engine.runtime.run import Run

_LOOK_SECONDS = 0.01
_LONGEST_PAUSE_SECONDS = 0.5
_LAST_SECONDS = 1.0


async def drain(
    held: MutableMapping[str, Run], *, seconds: float, release_all_but: Callable[[list[str]], Awaitable[bool]]
) -> None:
    """Empty *held*, handing leases back on the way.

    :param release_all_but: Hands back every lease of this worker but these: a claim may have been on its way. False if
        something is left that somebody has locked.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    before: set[str] = set()
    is_first = True
    while held and loop.time() < deadline:
        quiet = {instance_id for instance_id, run in held.items() if run.is_quiet}
        # Twice in a row: a body that has just got a result may be about to return.
        settled, before = quiet & before, quiet
        if settled or is_first:
            let_go(held, settled)
            await release_all_but(list(held))
            is_first = False
        await asyncio.sleep(_LOOK_SECONDS)
    let_go(held, list(held))
    # A commit of ours is over in a moment; a request that has locked an instance may take longer, and is not waited for
    # without end: its instance is due when the lease ends, or when a sibling finds it.
    deadline = max(deadline, loop.time() + _LAST_SECONDS)
    pause = _LOOK_SECONDS
    while not await release_all_but([]) and loop.time() < deadline:
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def let_go(runs: MutableMapping[str, Run], instance_ids: Collection[str]) -> None:
    """Take bodies out of memory; nothing they do has any effect from now on."""
    for instance_id in instance_ids:
        runs.pop(instance_id).seal(Suspended)
