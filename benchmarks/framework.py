"""The asyncio library ``edda-framework`` as the programs use it: an event loop on a thread, and calls from others.

Needs its environment, which ``running.py`` makes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from importlib.metadata import version
from typing import Any

import uvloop
from common import plain_url
from edda import EddaApp

SYSTEM = "framework"
VERSION = version("edda-framework")

_loop = uvloop.new_event_loop()
threading.Thread(target=_loop.run_forever, daemon=True).start()


def wait_for(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on the library's loop, and wait for it on this thread."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop).result()


def launch(url: str, pool: int) -> EddaApp:
    """An application with default settings; its pool is given as that of the others is."""
    options = {"pool_size": pool, "max_overflow": 0} if pool else {}
    app = EddaApp(
        service_name="bench", db_url=plain_url(url).replace("postgresql://", "postgresql+asyncpg://"), **options
    )
    wait_for(app.initialize())
    return app


async def result_of(app: EddaApp, instance_id: str) -> Any:
    """What a workflow returned; its start returns when it ends, or when it waits for something longer."""
    while True:
        found = await app.storage.get_instance(instance_id)
        if found is not None and found["status"] == "completed":
            output = found["output_data"]
            return output["result"] if isinstance(output, dict) and set(output) == {"result"} else output
        if found is None or found["status"] in ("failed", "cancelled"):
            raise RuntimeError(f"{instance_id}: {found and found['status']}")
        await asyncio.sleep(0.05)
