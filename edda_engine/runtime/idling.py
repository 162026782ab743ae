"""When a body counts as idle: it waits, and has nothing left to do with what it was told.

How it thinks. What a call brings reaches the code that awaits it in a few turns of the loop: through the call's task,
a race or a gathering of calls around it, and the body. Time alone does not tell that these turns were given: on a busy
machine, or after the process was stopped for a while, they come late. So when the time is up the turns are given too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

IDLE_AFTER_SECONDS = 0.02
"""How long a body must have nothing to do but wait before its lease is given back."""

_TURNS = 25


def when_idle(is_idle: Callable[[], bool], act: Callable[[], None]) -> None:
    """Call *act* in a moment, if *is_idle* holds then and for some turns of the loop more."""
    loop = asyncio.get_running_loop()

    def look(turns: int) -> None:
        if not is_idle():
            return
        if turns:
            loop.call_soon(look, turns - 1)
        else:
            act()

    loop.call_later(IDLE_AFTER_SECONDS, look, _TURNS)
