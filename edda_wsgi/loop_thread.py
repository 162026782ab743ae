"""The event loop's thread: one for each process, beside the threads of the WSGI server."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from edda_engine.errors import UsageError

_log = logging.getLogger(__name__)

T = TypeVar("T")

_BLOCKED_SECONDS = 5.0
"""So long does a loop not answer that is blocked, and not only busy."""
_LOOK_SECONDS = 1.0


class LoopThread:
    """Runs coroutines for threads that have no loop."""

    def __init__(
        self,
        name: str = "edda-loop",
        *,
        new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
        died: Callable[[], None] | None = None,
    ) -> None:
        self._loop = new_event_loop()
        self._died = died
        self._stopping = self._is_over = self._is_left = False
        self._changing = threading.Lock()
        self._submitted: dict[Future[Any], Coroutine[Any, Any, Any]] = {}
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()
        self._started.wait()

    @property
    def is_alive(self) -> bool:
        """False after :meth:`stop`, or if the loop died."""
        return self._thread.is_alive() and not self._is_over

    @property
    def is_current(self) -> bool:
        """Whether this is the loop's own thread."""
        return threading.current_thread() is self._thread

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop, and do not wait for it.

        :raises RuntimeError: the loop has ended.
        """
        with self._changing:
            if self._is_over:
                coroutine.close()
                raise RuntimeError("The event loop has ended; nothing more can run on it.")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
            self._submitted[future] = coroutine
        future.add_done_callback(lambda ended: self._submitted.pop(ended, None))
        return future

    def refuse_own_thread(self) -> None:
        """Waiting for the loop on its own thread would never end.

        :raises UsageError: called on the loop's own thread.
        """
        if self.is_current:
            raise UsageError("This would block the event loop waiting for itself; call it from another thread.")

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine on the loop and wait for its result.

        :raises UsageError: called on the loop's own thread, which would wait for itself for ever.
        """
        try:
            self.refuse_own_thread()
        except UsageError:
            coroutine.close()
            raise
        return self.submit(coroutine).result(timeout)

    def run_last(self, coroutine: Coroutine[Any, Any, None], *, seconds: float) -> None:
        """Run what ends all work of the loop and wait for it, longer than *seconds* only while the loop answers.

        Nothing can interrupt a body that blocks the loop, and a process that is told to stop must end all the same.
        """
        ending = self.submit(coroutine)
        wait([ending], seconds)
        while not ending.done():
            if not self._answers() and not ending.done():
                self._is_left = True
                ending.add_done_callback(lambda _: self._ask_to_stop())
                _log.error(
                    "The event loop is blocked, so this worker stops without handing over what it was running; that goes on"
                    " elsewhere when this process has ended. The warning before this one names the body that blocks"
                )
                return
            wait([ending], _LOOK_SECONDS)
        ending.result()

    def stop(self) -> bool:
        """Stop the loop; from its own thread, without waiting for its end.

        :returns: False if it is blocked: it is left to itself, and stops when it goes on, if ever.
        """
        if self._is_left:
            return False
        self._ask_to_stop()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        return True

    def _answers(self) -> bool:
        answered = threading.Event()
        with contextlib.suppress(RuntimeError):  # it has died, and is closed: nobody waits for it
            self._loop.call_soon_threadsafe(answered.set)
        return answered.wait(_BLOCKED_SECONDS)

    def _ask_to_stop(self) -> None:
        self._stopping = True
        with contextlib.suppress(RuntimeError):  # it has died, and is closed
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.call_soon(self._started.set)
        try:
            self._run()
            self._finish()
        except Exception:  # of the loop itself: none of a task comes here
            _log.exception("The event loop broke; nothing more can run on it")
        with self._changing:
            self._is_over = True
        for future, coroutine in list(self._submitted.items()):
            future.cancel()  # nobody shall wait for what will not happen
            if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
                coroutine.close()
        self._loop.close()
        asyncio.set_event_loop(None)
        if self._died is not None and not self._stopping:
            self._died()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                # Some task raised it; asyncio stops the loop for that, and everybody else's work with it.
                _log.error("A task on the event loop raised %r; the loop goes on", error)

    def _finish(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        pending = asyncio.all_tasks(self._loop)
        if pending:
            self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
