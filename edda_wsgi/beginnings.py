"""What may keep the engine of a process from beginning, and what is done before it begins again.

An event loop does not die by what runs on it. It does when somebody closes its file descriptors, say. Then nobody in
the process would go on with what it had under way, and no sibling would take it over while the process lives: the old
engine is buried first, so that its instances are free.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future

from edda_engine.errors import ConfigurationError
from edda_engine.runtime.engine import Engine
from edda_engine.storage.database import is_outage

_log = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.5


def refuse_gevent() -> None:
    """The engine needs real threads.

    :raises ConfigurationError: gevent has replaced them in this process.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        raise ConfigurationError(
            "gevent has replaced threads in this process, and the engine needs real ones. Set EDDA['ROLE'] = 'client' here"
            " and run the workflows with `flask edda worker` beside the web server."
        )


def report(starting: Future[None]) -> None:
    """Log why an engine has not started; nobody may be waiting to hear it."""
    if starting.cancelled():
        return
    error = starting.exception()
    if error is not None:
        _log.error("The engine could not start, so this process runs no workflows: %s", error, exc_info=error)


def bury(engine: Engine | None, *, is_wanted: Callable[[], bool]) -> None:
    """Free what an engine held whose event loop has died; returns when another one may begin.

    :param is_wanted: Whether one is to begin; asked again while the database is away.
    """
    _log.error(
        "The event loop of this process has died, and its engine with it; what it had under way goes on in another one",
        extra={"worker_id": engine.worker_id if engine is not None else None},
    )
    while engine is not None:
        try:
            asyncio.run(engine.bury())
            break
        except Exception as error:
            if not is_outage(error) or not is_wanted():
                _log.exception("What the dead engine held could not be freed; it goes on when the leases expire")
                break
        _pause()
    if is_wanted():
        _pause()  # not too often, should the next one die as well


def _pause() -> None:
    threading.Event().wait(_PAUSE_SECONDS)
