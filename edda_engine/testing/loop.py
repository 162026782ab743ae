"""An event loop whose time can be skipped, and which knows when there is nothing to do.

How it thinks. A loop is *at rest* when no callback is ready, no function it has sent to a thread is under way, and the
engine says that nothing goes on. From then on only time, or somebody outside, brings anything about. What the loop
itself sees last, just before it waits for the operating system, is the one moment at which this can be told for
certain; whoever waits for it in another thread is told then.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from edda_engine.core.ports import current_place
from edda_engine.testing.clock import SkippableClock


class SkippableLoop(asyncio.SelectorEventLoop):
    """The loop of one engine under test.

    :param is_engine_at_rest: Asked on the loop.
    """

    def __init__(self, clock: SkippableClock, *, is_engine_at_rest: Callable[[], bool]) -> None:
        self._clock_of_test, self._is_engine_at_rest = clock, is_engine_at_rest
        self._sent = 0
        self._timers_of_bodies: list[asyncio.TimerHandle] = []
        self._changed = threading.Condition()
        self._rests = 0
        self._is_at_rest = False
        super().__init__(_Selector(self._falls_asleep, self._wakes_up))

    # Time.

    def time(self) -> float:
        """Seconds, those that were skipped included."""
        return super().time() + self._clock_of_test.skipped_seconds

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:  # type: ignore[override]
        """As usual; what a workflow's body waits for is remembered."""
        handle = super().call_at(when, callback, *args, context=context)
        place = current_place.get() if context is None else context.get(current_place)
        if place is not None and place.is_body:
            self._timers_of_bodies.append(handle)
        return handle

    def seconds_to_next_timer(self) -> float | None:
        """Until a body that is in memory wants to go on, if one wants to; call on the loop."""
        now = self.time()
        # What is due has been called, or the loop would not be at rest.
        self._timers_of_bodies = [
            timer for timer in self._timers_of_bodies if not timer.cancelled() and timer.when() > now
        ]
        return min((timer.when() - now for timer in self._timers_of_bodies), default=None)

    # What is under way.

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """As usual; counted."""
        self._sent += 1
        future: Any = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._has_come_back)
        return future

    @property
    def is_waiting_for_threads(self) -> bool:
        """Whether something it has sent to a thread has not come back; call on the loop."""
        return self._sent > 0

    def _has_come_back(self, _: Any) -> None:
        self._sent -= 1

    def _falls_asleep(self) -> None:
        is_at_rest = self._sent == 0 and self._is_engine_at_rest()
        with self._changed:
            self._is_at_rest = is_at_rest
            if is_at_rest:
                self._rests += 1
                self._changed.notify_all()

    def _wakes_up(self) -> None:
        with self._changed:
            self._is_at_rest = False

    # What another thread asks.

    def wait_until_at_rest(self, timeout: float, *, after: int = 0, unless: Callable[[], bool]) -> int | None:
        """Return which rest this is, numbered from 1, once the loop is at one later than *after*.

        :param unless: Give up when this is true; whoever makes it true calls :meth:`tell`.
        :returns: ``None`` if *unless*, or the time, came first.
        """
        with self._changed:
            self._changed.wait_for(lambda: (self._is_at_rest and self._rests > after) or unless(), timeout)
            return self._rests if self._is_at_rest and self._rests > after and not unless() else None

    def tell(self) -> None:
        """Something has changed that somebody may wait for."""
        with self._changed:
            self._changed.notify_all()

    def ask(self, question: Callable[[], Any], timeout: float) -> Any:
        """What *question* answers on the loop."""
        answer: Future[Any] = Future()

        def work() -> None:
            try:
                answer.set_result(question())
            except BaseException as error:
                answer.set_exception(error)

        self.call_soon_threadsafe(work)
        return answer.result(timeout)


class _Selector(selectors.DefaultSelector):
    """Says when it is going to wait."""

    def __init__(self, falls_asleep: Callable[[], None], wakes_up: Callable[[], None]) -> None:
        super().__init__()
        self._falls_asleep, self._wakes_up = falls_asleep, wakes_up

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As usual; what is ready at once is no reason to wait."""
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        self._falls_asleep()
        try:
            return super().select(timeout)
        finally:
            self._wakes_up()
