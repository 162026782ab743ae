"""What an engine takes from the process around it: the probe, the host's clock, the event loop.

Made once, by the front door; a test gives others before the engine starts. What the database decides by its own clock
is none of these.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from edda_engine.runtime.probes import Probe, no_probe


def utc_now() -> datetime:
    """The host's time."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under which one engine runs."""

    probe: Probe = no_probe
    now: Callable[[], datetime] = utc_now
    """What ``ctx.now()`` says."""
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    """Makes the loop of a front door that has none of its own; its ``time()`` paces everything in memory."""
