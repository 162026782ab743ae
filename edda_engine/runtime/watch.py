"""The watch over the event loop: who blocks it is named, with the stack, while it does.

A body runs on the loop, so one that computes or sleeps there stops every other instance of the process, its leases'
renewal included. Nothing can interrupt it; a thread beside the loop can say what it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
import traceback

_log = logging.getLogger(__name__)

LIMIT_SECONDS = 1.0


class LoopWatch:
    """Asks a loop for an answer again and again, from a thread of its own."""

    def __init__(self, *, limit_seconds: float = LIMIT_SECONDS) -> None:
        self._limit = limit_seconds
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch the running loop; call on it."""
        loop, ident = asyncio.get_running_loop(), threading.get_ident()
        self._thread = threading.Thread(target=self._watch, args=(loop, ident), name="edda-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch; its thread ends by itself in a moment."""
        self._stopping.set()

    def _watch(self, loop: asyncio.AbstractEventLoop, ident: int) -> None:
        while not self._stopping.wait(self._limit):
            answered = threading.Event()
            asked_at = time.monotonic()
            try:
                loop.call_soon_threadsafe(answered.set)
            except RuntimeError:
                return  # the loop is closed
            if answered.wait(self._limit) or self._stopping.is_set():
                continue
            self._report(loop, ident)
            while not answered.wait(0.05):
                if self._stopping.is_set() or loop.is_closed():
                    return
            _log.warning("The event loop goes on after %.1f s", time.monotonic() - asked_at)

    def _report(self, loop: asyncio.AbstractEventLoop, ident: int) -> None:
        name = "something"
        with contextlib.suppress(RuntimeError):
            task = asyncio.current_task(loop)
            if task is not None:
                name = task.get_name().replace("edda:body:", "the body of instance ", 1)
        frame = sys._current_frames().get(ident)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "its thread has ended"
        _log.warning(
            "The event loop has been blocked for %.1f s by %s, and nothing else goes on in this process meanwhile."
            " A workflow's body must do nothing slow by itself: move it into an @activity. It is here:\n%s",
            self._limit,
            name,
            stack,
        )
