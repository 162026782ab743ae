"""A relay in a process of its own.

It is told everything by environment variables: ``SHOP_DATABASE_URL``; ``RELAY_BROKER``, an address; and
``RELAY_LOCK_SECONDS``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal

from edda_engine import OutboxRelayer

CONCURRENCY = 4


async def main() -> None:
    relayer = OutboxRelayer(
        os.environ["SHOP_DATABASE_URL"],
        broker_url=os.environ["RELAY_BROKER"],
        poll_interval_seconds=0.05,
        concurrency=CONCURRENCY,
        lock_seconds=float(os.environ.get("RELAY_LOCK_SECONDS", "60")),
    )
    async with relayer:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, relayer.stop)
        logging.getLogger(__name__).info("ready")
        await relayer.run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(process)d %(name)s %(message)s")
    asyncio.run(main())
