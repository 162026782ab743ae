"""A relay in a process of its own, killed or stopped where the test wants.

It is told everything by environment variables: ``SHOP_DATABASE_URL``; ``RELAY_BROKER``, an address;
``RELAY_PROBE`` (``"relay.publish.after 3 kill"``); ``RELAY_LOCK_SECONDS`` and ``RELAY_RETENTION_DAYS``.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal

from edda_engine import OutboxRelayer
from edda_engine.runtime.probes import RELAY_POINTS

CONCURRENCY = 4

_POINT, _PASSING, _ACTION = (os.environ.get("RELAY_PROBE") or "nowhere 0 kill").split()
_passings = itertools.count(1)


def probe(point: str) -> None:
    assert point in RELAY_POINTS, f"{point} is missing in RELAY_POINTS, so no test kills there"
    if point == _POINT and next(_passings) == int(_PASSING):
        if _ACTION == "kill":
            os._exit(9)
        os.kill(os.getpid(), signal.SIGSTOP)


async def main() -> None:
    relayer = OutboxRelayer(
        os.environ["SHOP_DATABASE_URL"],
        broker_url=os.environ["RELAY_BROKER"],
        poll_interval_seconds=0.05,
        concurrency=CONCURRENCY,
        lock_seconds=float(os.environ.get("RELAY_LOCK_SECONDS", "60")),
        retention_days=float(os.environ.get("RELAY_RETENTION_DAYS", "7")),
        probe=probe,
    )
    async with relayer:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, relayer.stop)
        logging.getLogger(__name__).info("ready")
        await relayer.run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(process)d %(name)s %(message)s")
    asyncio.run(main())
